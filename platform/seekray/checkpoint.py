"""Resume state: weights, optimizers, RNG and position, as JSON and tensors.

The only owner of what is written under a run's `checkpoints/`. A checkpoint is a folder
`step_00000120/` with `state.json`, `tensors.safetensors` and, written last, `manifest.json` with
the sha256 of both: without it the folder is a torn write and is passed over. Of a sharded run there is
`tensors-00001-of-00002.safetensors` a rank, and `state.json` says which rows of each tensor are where.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.optim import Optimizer

from seekray.errors import ConfigError, CorruptError
from seekray.manifest import sha256
from seekray.storage import Storage

if TYPE_CHECKING:
    from seekray.session import Session

FORMAT = 1
TENSORS = "tensors.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """state: JSON values; tensors: name -> tensor on the CPU.

    shards: of what is cut over ranks, name -> `shape` of the whole and `rows` of each rank; `tensors` has one rank's.
    """

    state: dict[str, Any]
    tensors: dict[str, Tensor]
    shards: dict[str, Any] = field(default_factory=dict)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors below `prefix/`, without it."""
        start = prefix + "/"
        return {k[len(start) :]: v for k, v in self.tensors.items() if k.startswith(start)}


def named_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """All weights and buffers as `module/key`."""
    return {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def load_named(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Put `module/key` tensors back. Raises CorruptError where they do not fit."""
    for name, module in modules.items():
        state = {k.split("/", 1)[1]: v for k, v in tensors.items() if k.split("/", 1)[0] == name}
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise CorruptError(f"weights do not fit the model's settings: {error}") from error


def load_initial(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Start from another model's `module/key` weights, as far as there are modules and keys of those names.

    Raises ConfigError where a shape differs or no name fits.
    """
    own = named_tensors(modules)
    shared = [name for name in own if name in tensors]
    for name in shared:
        if own[name].shape != tensors[name].shape:
            raise ConfigError(
                f"model.init_from: {name} is {tuple(tensors[name].shape)} there and {tuple(own[name].shape)} here; "
                "leave the sizes of `model` out to take those of the model that is started from",
                field="model.init_from",
            )
    if not shared:
        raise ConfigError(
            "model.init_from: the model that is started from has no weight of this one's", field="model.init_from"
        )
    with torch.no_grad():
        for name in shared:
            own[name].copy_(tensors[name])
    if fresh := [name for name in own if name not in tensors]:
        logging.getLogger(__name__).info("%d tensors start fresh: %s", len(fresh), ", ".join(fresh[:8]))


def optimizer_state(optimizer: Optimizer) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Settings of the groups as JSON, and the state as `index/key` tensors."""
    full = optimizer.state_dict()
    groups = [{k: v for k, v in g.items() if not isinstance(v, Tensor)} for g in full["param_groups"]]
    tensors = {
        f"{index}/{key}": torch.as_tensor(value)
        for index, entries in full["state"].items()
        for key, value in entries.items()
        if value is not None
    }
    return groups, tensors


def load_optimizer(optimizer: Optimizer, groups: list[dict[str, Any]], tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_state`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split("/", 1)
        state.setdefault(int(index), {})[key] = tensor
    if len(groups) != len(optimizer.param_groups):  # another weight decay: the same parameters, divided otherwise
        groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def rows_of(rows: int, world_size: int) -> list[int]:
    """How many of a tensor's rows each rank has, as FSDP2 cuts them: equal, but for the last that have any."""
    each = -(-rows // world_size)
    return [max(0, min(each, rows - rank * each)) for rank in range(world_size)]


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run: Storage, keep: int = 2) -> None:
        self._run, self._keep = run, keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        names = [n for n in self._run.list("checkpoints") if n.startswith("step_")]
        return [int(n[5:]) for n in names if self._run.exists(f"checkpoints/{n}/manifest.json")]

    def save(self, step: int, checkpoint: Checkpoint, session: Session | None = None) -> None:
        """Write one and drop all but the newest `keep`; each holds the best weights too.

        session: of a sharded run, whose ranks all call it; rank 0 writes the manifest when all have written their shards.
        """
        folder = f"checkpoints/step_{step:08d}"
        tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
        data = save_tensors(_apart(tensors))
        state = checkpoint.state | ({"shards": checkpoint.shards} if session else {})
        if session is None:
            self._run.delete(f"{folder}/manifest.json")
            self._run.write_bytes(f"{folder}/{TENSORS}", data)
            digests = {TENSORS: sha256(data)}
        else:
            digests = self._save_shard(folder, data, session)
            if session.rank != 0:
                return
        raw = json.dumps(state, sort_keys=True).encode()
        self._run.write_bytes(f"{folder}/state.json", raw)
        self._run.write_json(f"{folder}/manifest.json", {"format": FORMAT, "files": digests | {"state.json": sha256(raw)}})
        for old in self._run.list("checkpoints"):
            if old.startswith("step_") and int(old[5:]) < step and old not in self._newest(step):
                self._run.delete(f"checkpoints/{old}")

    def _save_shard(self, folder: str, data: bytes, session: Session) -> dict[str, str]:
        """Write this rank's file; the sha256 of all ranks' files, when all are there."""
        if session.rank == 0:  # what an earlier try left, perhaps of another number of ranks; what was whole is so no longer
            self._run.delete(f"{folder}/manifest.json")
            self._run.delete(folder)
        session.agree(True)  # nobody writes before
        names = [f"tensors-{rank + 1:05d}-of-{session.world_size:05d}.safetensors" for rank in range(session.world_size)]
        self._run.write_bytes(f"{folder}/{names[session.rank]}", data)
        own = torch.tensor([list(bytes.fromhex(sha256(data)))], dtype=torch.uint8, device=session.device)
        return {name: bytes(digest).hex() for name, digest in zip(names, session.gather(own).tolist(), strict=True)}

    def _newest(self, step: int) -> set[str]:
        older = [s for s in self.steps() if s < step]
        return {f"step_{s:08d}" for s in older[-(self._keep - 1) :]} if self._keep > 1 else set()

    def load(self, step: int, rank: int = 0, world_size: int = 1) -> Checkpoint:
        """Read one, a file at a time. Raises CorruptError where a file does not match the manifest.

        Tensors are whole whoever wrote them; with `world_size`, of those that are cut over ranks, the rows
        that `rank` of so many has.
        """
        folder, what = f"checkpoints/step_{step:08d}", f"checkpoint {step} of {self._run.uri}"

        def read(name: str) -> bytes:
            try:
                data, digest = self._run.read_bytes(f"{folder}/{name}"), digests[name]
            except (OSError, KeyError) as error:
                raise CorruptError(f"{what} cannot be read: {error}") from error
            if sha256(data) != digest:
                raise CorruptError(f"{what}: {name} does not match its sha256")
            return data

        try:
            digests = self._run.read_json(f"{folder}/manifest.json")["files"]
        except (OSError, ValueError, KeyError) as error:
            raise CorruptError(f"{what} cannot be read: {error}") from error
        state = json.loads(read("state.json"))
        shards = state.pop("shards", {})
        tensors: dict[str, Tensor] = {}
        parts: dict[str, list[Tensor]] = {}
        for number, name in enumerate(sorted(digests.keys() - {"state.json"})):
            for key, tensor in load_tensors(read(name)).items():
                if key in shards:
                    parts.setdefault(key, []).append(_wanted(tensor, shards[key]["rows"], number, rank, world_size))
                else:
                    tensors[key] = tensor
        return Checkpoint(state, tensors | {key: torch.cat(found) for key, found in parts.items()})

    def latest(self, rank: int = 0, world_size: int = 1) -> Checkpoint | None:
        """The newest that is whole, see `load`, with a warning for each corrupt one that is passed over."""
        for step in reversed(self.steps()):
            try:
                return self.load(step, rank, world_size)
            except CorruptError as error:
                logging.getLogger(__name__).warning("%s; going on from the one before", error.message)
        return None


def _wanted(tensor: Tensor, rows: list[int], number: int, rank: int, world_size: int) -> Tensor:
    """Of the rows that file `number` has of a tensor, those that `rank` wants; a copy, so that the file's memory is let go."""
    theirs, first = rows_of(sum(rows), world_size), sum(rows[:number])
    start = sum(theirs[:rank])
    found = tensor[max(0, start - first) : max(0, start + theirs[rank] - first)]
    return found.clone() if len(found) < len(tensor) else found


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory (tied weights, gradients in one buffer): copy those."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return out
