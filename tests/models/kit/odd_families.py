"""Families that only a test would want."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from seekray.data.batches import Batch
from seekray.models.family import Modules, StepSession
from seekray.models.net import Net


class FailsOnLastRank(Net):
    """An error on one rank only, while the others wait for it."""

    def train_step(
        self, modules: Modules, optimizers: Mapping[str, Optimizer], batch: Batch, session: StepSession
    ) -> dict[str, Tensor]:
        if dist.is_initialized() and dist.get_rank() == dist.get_world_size() - 1:
            raise ValueError("rank one has had enough")
        return super().train_step(modules, optimizers, batch, session)


class Slow(Net):
    """Steps that take a while."""

    def train_step(self, *args: Any) -> dict[str, Tensor]:
        time.sleep(0.05)
        return super().train_step(*args)


class Paced(Net):
    """Slow steps until a file says that the test has seen enough."""

    def train_step(self, *args: Any) -> dict[str, Tensor]:
        time.sleep(0.0 if Path(os.environ["PACED_UNTIL"]).exists() else 0.1)
        return super().train_step(*args)
