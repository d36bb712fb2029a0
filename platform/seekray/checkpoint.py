"""Resume state: weights, optimizers, RNG and position, as JSON and tensors.

The only owner of what is written under a run's `checkpoints/`. A checkpoint is a folder
`step_00000120/` with `state.json`, `tensors.safetensors` and, written last, `manifest.json` with
the sha256 of both: without it the folder is a torn write and is passed over.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.optim import Optimizer

from seekray.errors import ConfigError, CorruptError
from seekray.manifest import sha256
from seekray.storage import Storage

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """state: JSON values; tensors: name -> tensor on the CPU."""

    state: dict[str, Any]
    tensors: dict[str, Tensor]

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
    optimizer.load_state_dict({"state": state, "param_groups": groups})


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run: Storage, keep: int = 2) -> None:
        self._run, self._keep = run, keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        names = [n for n in self._run.list("checkpoints") if n.startswith("step_")]
        return [int(n[5:]) for n in names if self._run.exists(f"checkpoints/{n}/manifest.json")]

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Write one and drop all but the newest `keep`; each holds the best weights too."""
        folder = f"checkpoints/step_{step:08d}"
        tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
        files = {
            "tensors.safetensors": save_tensors(_apart(tensors)),
            "state.json": json.dumps(checkpoint.state, sort_keys=True).encode(),
        }
        self._run.delete(f"{folder}/manifest.json")
        for name, data in files.items():
            self._run.write_bytes(f"{folder}/{name}", data)
        manifest = {"format": FORMAT, "files": {name: sha256(data) for name, data in files.items()}}
        self._run.write_json(f"{folder}/manifest.json", manifest)
        for old in self._run.list("checkpoints"):
            if old.startswith("step_") and int(old[5:]) < step and old not in self._newest(step):
                self._run.delete(f"checkpoints/{old}")

    def _newest(self, step: int) -> set[str]:
        older = [s for s in self.steps() if s < step]
        return {f"step_{s:08d}" for s in older[-(self._keep - 1) :]} if self._keep > 1 else set()

    def load(self, step: int) -> Checkpoint:
        """Read one. Raises CorruptError where a file does not match the manifest."""
        folder = f"checkpoints/step_{step:08d}"
        try:
            manifest = self._run.read_json(f"{folder}/manifest.json")
            files = {name: self._run.read_bytes(f"{folder}/{name}") for name in manifest["files"]}
        except (OSError, ValueError, KeyError) as error:
            raise CorruptError(f"checkpoint {step} of {self._run.uri} cannot be read: {error}") from error
        for name, digest in manifest["files"].items():
            if sha256(files[name]) != digest:
                raise CorruptError(f"checkpoint {step} of {self._run.uri}: {name} does not match its sha256")
        return Checkpoint(json.loads(files["state.json"]), load_tensors(files["tensors.safetensors"]))

    def latest(self) -> Checkpoint | None:
        """The newest that is whole, with a warning for each corrupt one that is passed over."""
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except CorruptError as error:
                logging.getLogger(__name__).warning("%s; going on from the one before", error.message)
        return None


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory (tied weights, gradients in one buffer): copy those."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return out
