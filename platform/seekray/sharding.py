"""Weights that are cut over the ranks (torch's FSDP2): each rank keeps some rows of every parameter.

A parameter is then a DTensor, and so are its average and its optimizer state. Imported by sharded runs alone,
since torch's part of it takes three seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from seekray.checkpoint import rows_of


def shard(modules: Mapping[str, nn.Module], parts: Sequence[nn.Module], device: torch.device) -> None:
    """Cut modules over all ranks, in place, and move them to the device, a part at a time: it never holds a whole model.

    Rank 0 has the weights; the others' modules are on torch's meta device and get their rows a parameter at a time, so
    that they begin as one process would, whose random numbers no rank could draw for its rows alone.

    parts: submodules that are gathered for their own forward and backward pass; what is outside of them is gathered
        from a module's forward pass to its backward pass.
    """
    # The families do nothing in place to what a module returns.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    first = dist.get_rank() == 0
    whole = {(m, name): p.detach() for m in modules.values() for name, p in m.named_parameters()} if first else {}
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in [*parts, *modules.values()]:
        fully_shard(module, mesh=mesh, reshard_after_forward=all(module is not m for m in modules.values()))
        cut = cast("FSDPModule", module)
        # A loss is a sum divided by the global rows: gradients are summed over ranks, not averaged.
        cut.set_gradient_divide_factor(1.0)
        cut.set_force_sum_reduction_for_comms(True)
    for module in modules.values():
        if any(p.is_meta for p in module.parameters()):
            module.to_empty(device=device)
        else:
            module.to(device)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            _from_first(tensor, whole.pop((module, name), None))


@torch.no_grad()
def _from_first(tensor: Tensor, whole: Tensor | None) -> None:
    """Give a rank its rows of a parameter, or a buffer, as rank 0 has them; `whole`: a parameter's, there."""
    if not isinstance(tensor, DTensor):
        dist.broadcast(tensor, 0)
        return
    own, start = tensor.to_local(), 0
    for rank, rows in enumerate(rows_of(len(tensor), dist.get_world_size())):
        if rank and rows and whole is not None:
            dist.send(whole[start : start + rows].to(own.device).contiguous(), rank)
        elif rank and rows and rank == dist.get_rank():
            dist.recv(own, 0)
        start += rows


def let_go(modules: Mapping[str, nn.Module]) -> None:
    """Drop what a forward pass without a backward pass left gathered."""
    for module in modules.values():
        cast("FSDPModule", module).reshard()


def own_rows(tensors: Mapping[str, Tensor], rank: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a rank writes, and `Checkpoint.shards`: its rows of what is cut, and on rank 0 what is whole on each rank too."""
    own, index = {}, {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            own[name] = tensor.to_local()
            index[name] = {"shape": list(tensor.shape), "rows": rows_of(len(tensor), dist.get_world_size())}
        elif rank == 0:
            own[name] = tensor
    return own, index


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor, whole or this rank's rows of it already, as `like` has it."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    here = like.to_local()
    if tensor.shape == like.shape:
        start = sum(rows_of(len(like), dist.get_world_size())[: dist.get_rank()])
        tensor = tensor[start : start + len(here)]
    made: Tensor = DTensor.from_local(
        tensor.to(here.device).contiguous(),
        like.device_mesh,
        [Shard(0)],
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return made


def placed_state(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`index/key` tensors of `optimizer_state` as the parameters are; a step counter is no part of one."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    fitting = {name: parameters[int(name.split("/", 1)[0])] for name in tensors}
    return {name: placed(t, fitting[name]) if t.ndim == fitting[name].ndim else t for name, t in tensors.items()}
