"""Optimizers without torch's compiler.

torch 2.13 wraps their methods so that the first call imports `torch._dynamo`: 0.7 s of CPU before
the first step of every run, in each worker, for something that only a compiled optimizer needs.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch.optim import Optimizer


@cache
def without_compiler(kind: type[Optimizer]) -> type[Any]:
    """The same optimizer with the methods as they are below those wrappers; modules can still be compiled."""
    names = ("state_dict", "load_state_dict", "zero_grad", "add_param_group")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(inspect.unwrap(kind.step))})
