"""What a running loop sees of where it runs: rank, device, gradients, reports, storage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from seekray.checkpoint import Checkpoint
from seekray.config import Training
from seekray.data.batches import Batch
from seekray.errors import DivergedError
from seekray.shared_sum import SharedSum, meet
from seekray.storage import Storage

SMALL_STEP = 10**8  # parameters times rows


@dataclass(frozen=True)
class Point:
    """One value of one metric at one step; `time_ms` since the epoch."""

    key: str
    value: float
    step: int
    time_ms: int


def points(values: Mapping[str, float], step: int) -> list[Point]:
    """Points of now."""
    now = int(time.time() * 1000)
    return [Point(key, float(value), step, now) for key, value in values.items()]


class Listener(Protocol):
    """Who hears of a run: the tracker and the progress bar."""

    def points(self, new: Sequence[Point]) -> None: ...

    def progress(self, state: Mapping[str, Any]) -> None: ...


def _learned(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    return [p for m in modules for p in m.parameters() if p.requires_grad]


class Session:
    """One rank of a run. This class alone is the plain process; launchers give it ranks and ears.

    storage: the run's folder; resume_from: the checkpoint to go on from, or None.
    """

    rank = 0
    world_size = 1
    sharded = False  # weights are cut over the ranks, see `sharding`: their gradients are summed on the way back

    def __init__(
        self,
        training: Training,
        storage: Storage,
        *,
        listener: Listener,
        resume_from: Checkpoint | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.training, self.storage, self.resume_from = training, storage, resume_from
        self.device = torch.device(device)
        self.grad_norm: Tensor | None = None
        self._listener = listener
        self._batch: Batch | None = None
        self._parts: list[Tensor] = []  # row numbers of the step's parts so far
        self._losses: Tensor | None = None  # of the parts so far
        self._messages: dict[int, Tensor] = {}
        self._shared: SharedSum | None = None
        self._pending: tuple[Tensor, list[Tensor], str] | None = None
        self.where: Callable[[], str] = lambda: ""
        precision = training.precision
        if precision == "auto":
            bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
            precision = "bf16" if bf16 else "fp32"
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self._autocast = precision == "bf16"

    def use_threads(self, work: int) -> None:
        """Choose torch's threads by a row's multiplications: with few a step, a second thread costs more than it brings."""
        if self.device.type == "cpu" and work * self.training.batch_size < SMALL_STEP:
            torch.set_num_threads(1)

    # ---- steps

    def begin(self, batch: Batch) -> None:
        """Name the batch that the next `backward` calls belong to."""
        if self._batch is None or self._batch.last:
            self._parts = []
        self._batch = batch
        self._parts.append(batch.rows)

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 where the experiment or the device says so."""
        return torch.autocast(self.device.type, torch.bfloat16) if self._autocast else contextlib.nullcontext()

    def backward(self, loss: Tensor, modules: Sequence[nn.Module]) -> bool:
        """See StepSession: gradients summed over ranks and parts, checked, clipped; True: step now."""
        loss.backward()  # type: ignore[no-untyped-call]
        assert self._batch is not None
        total = loss.detach() if self._losses is None else self._losses + loss.detach()
        self._losses = None if self._batch.last else total
        if not self._batch.last:
            return False  # a NaN is seen at the last part, where all ranks see it
        if self.world_size > 1:
            total = self.sum(total) if self.sharded else self._reduce(_learned(modules), total)
        if self.training.clip_norm is not None:
            self.grad_norm = self._clip(_learned(modules), self.training.clip_norm)
            total = total + 0 * self.grad_norm
        self._check(total)
        return True

    def _reduce(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Sum gradients over ranks in one message, with the loss at its end so that all ranks see a NaN."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        parts = [*(g.reshape(-1) for g in grads), loss.reshape(1).to(grads[0].dtype)]
        if not self._messages and self.device.type == "cpu":
            self._shared = meet(self.rank, self.world_size)
        flat = self._messages.get(id(parameters[0]))
        if flat is None:  # kept: fresh memory of this size costs as much as the message
            flat = self._messages[id(parameters[0])] = torch.empty_like(torch.cat(parts))
        if self._shared is not None:
            self._shared.sum(parts, flat)
        else:
            torch.cat(parts, out=flat)
            dist.all_reduce(flat)
        offset = 0
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = flat[offset : offset + grad.numel()].view_as(grad)
            offset += grad.numel()
        return flat[-1]

    def _clip(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        """Scale gradients down to a norm of `most`, over all parameters and all of their rows; the norm before."""
        if not self.sharded:
            return nn.utils.clip_grad_norm_(parameters, most)
        own: list[Tensor] = [p.grad.to_local() for p in parameters if p.grad is not None]  # type: ignore[attr-defined]
        norm = self.sum(nn.utils.get_total_norm(own).square()).sqrt()
        scale = (most / (norm + 1e-6)).clamp(max=1.0)  # as torch does
        for grad in own:
            grad.mul_(scale)
        return norm

    def _check(self, value: Tensor) -> None:
        """Stop at a NaN: before the step on a CPU; on a GPU one step later, so that nothing waits for it."""
        if self.device.type == "cpu":
            if not torch.isfinite(value):
                self._fail()
            return
        if self._pending is not None and not bool(torch.isfinite(self._pending[0])):
            self._fail(self._pending[1], self._pending[2])
        self._pending = (value.detach().to("cpu", non_blocking=True), self._parts, self.where())

    def _fail(self, parts: Sequence[Tensor] | None = None, where: str | None = None) -> None:
        rows = sorted(self.gather(torch.cat(list(parts or self._parts)).to(self.device)).tolist())
        shown = ", ".join(map(str, rows[:20])) + (f", … ({len(rows)} rows)" if len(rows) > 20 else "")
        raise DivergedError(
            f"the loss became NaN or infinite {where or self.where()}; rows of the batch: {shown}. "
            "Lower training.lr, set training.clip_norm, or look at these rows; the last good checkpoint is kept."
        )

    # ---- ranks

    def gather(self, tensor: Tensor) -> Tensor:
        """Rows of all ranks, rank by rank; ranks may have different numbers of rows."""
        if self.world_size == 1:
            return tensor
        count = torch.tensor([len(tensor)], device=self.device)
        counts = [torch.zeros_like(count) for _ in range(self.world_size)]
        dist.all_gather(counts, count)
        most = int(max(int(c) for c in counts))
        padded = tensor.new_zeros((most, *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(c)] for part, c in zip(parts, counts, strict=True)])

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over ranks."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def agree(self, choice: bool) -> bool:
        """Rank 0's choice, on every rank."""
        if self.world_size == 1:
            return choice
        flag = torch.tensor([int(choice)], device=self.device)
        dist.broadcast(flag, 0)
        return bool(flag.item())

    # ---- reports

    def report(self, new: Sequence[Point]) -> None:
        """Hand points to the tracker; every rank calls it equally often."""
        self._listener.points(new)

    def progress(self, state: Mapping[str, Any]) -> None:
        """Show where the run is; called by rank 0, cheap."""
        self._listener.progress(state)


LocalSession = Session
