"""Several ranks without Ray: forks them from one process that has torch imported already.

`python ranks.py JOBS.json`: a list of {kind: "run", experiment, folder, world},
{kind: "norm", arrays, shares, out}, {kind: "held", experiment, world, out}, {kind: "session", world, out}
and {kind: "shared", world, out, lost}; each rank is a process of its own, joined by gloo.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from training_kit import Listen, prepare_for, run_here

from seekray.config import Experiment, Training
from seekray.data.batches import Batch
from seekray.data.prepared import Prepared
from seekray.models.layers import BatchNorm
from seekray.session import Session
from seekray.storage import Storage
from seekray.train_state import TrainState


class RankSession(Session):
    """A session that knows its rank from torch.distributed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()


def fork(world: int, work: Callable[[], None]) -> None:
    """Run `work` on `world` ranks; raises where one fails."""
    children = []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    torch.set_num_threads(1)
                    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
                    work()
                    dist.destroy_process_group()
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(pid)
        failed = [pid for pid in children if os.waitpid(pid, 0)[1] != 0]
    if failed:
        raise RuntimeError(f"{len(failed)} of {world} ranks failed")


def _norm(job: dict[str, Any]) -> None:
    """Batch normalisation of this rank's share: outputs, gradients and running statistics into a file a rank."""
    rank = dist.get_rank()
    given = np.load(job["arrays"])
    start = sum(job["shares"][:rank])
    mine = slice(start, start + job["shares"][rank])
    norm = BatchNorm(given["x"].shape[1]).double()
    x = torch.tensor(given["x"][mine], requires_grad=True)
    y = norm(x)
    (y * torch.tensor(given["w"][mine])).square().sum().backward()
    np.savez(
        f"{job['out']}/{rank}.npz",
        y=y.detach().numpy(), dx=x.grad.numpy(), dweight=norm.weight.grad.numpy(), dbias=norm.bias.grad.numpy(),
        mean=norm.running_mean.numpy(), var=norm.running_var.numpy(),
    )  # fmt: skip


def _session(job: dict[str, Any]) -> None:
    """What the ranks tell each other, with shares of 0, 1, 2, … rows."""
    session = RankSession(Training(), Storage(job["out"]), listener=Listen())
    rank = session.rank
    mine = torch.arange(rank * (rank - 1) // 2, rank * (rank + 1) // 2)[:, None].expand(-1, 2).double()
    said = {
        "gather": session.gather(mine).tolist(),
        "sum": session.sum(torch.tensor([1.0, float(rank)])).tolist(),
        "agree": [session.agree(rank == 0), session.agree(rank != 0)],
    }
    Path(f"{job['out']}/{rank}.json").write_text(json.dumps(said))


def _shared(job: dict[str, Any]) -> None:
    """A session's gradients, and sums of several sizes at uneven paces; with `lost` the last rank is killed on the way."""
    session = RankSession(Training(), Storage(job["out"]), listener=Listen())
    rank, model = session.rank, torch.nn.Linear(3, 2)
    torch.nn.init.zeros_(model.weight)
    rows = torch.arange(2)
    session.begin(Batch(inputs={}, targets=None, rows=rows, global_rows=2, last=True))
    session.backward((model(torch.full((2, 3), float(rank + 1)))).sum() / 2, [model])
    said: dict[str, Any] = {"gradient": model.weight.grad[0].tolist(), "shared": session._shared is not None}
    if (shared := session._shared) is not None:
        waits, wrong = random.Random(rank), 0
        given = [torch.rand(300, generator=torch.Generator().manual_seed(r)).double() / 3 for r in range(session.world_size)]
        try:
            for turn in range(200):
                time.sleep(waits.choice([0, 0, 0.0005]))
                size, kind = (7, 300, 300)[turn % 3], (torch.float64, torch.float32)[turn % 2]
                mine = [(g[:size] * (turn + 1)).to(kind) for g in given]
                out = torch.empty(size, dtype=kind)
                shared.sum([mine[rank][:5], mine[rank][5:]], out)
                wrong += not torch.equal(out, functools.reduce(torch.add, mine))
                if job.get("lost") and turn == 100 and rank == session.world_size - 1:
                    os.kill(os.getpid(), signal.SIGKILL)
        except (RuntimeError, ConnectionError) as error:
            said["error"] = str(error)
        said |= {"turns": turn + 1, "wrong": wrong}
    Path(f"{job['out']}/{rank}.json").write_text(json.dumps(said))


def _held(given: Experiment, prepared: Prepared, out: str) -> None:
    """Bytes of the tensors that a rank holds: after the start, after two steps, and after a validation."""
    session = RankSession(given.training, Storage(out), listener=Listen())
    from seekray import sharding

    before, built = _storages(), 0
    cut = sharding.shard

    def noted(modules: Any, *more: Any) -> None:
        nonlocal built
        built = sum(p.nbytes for m in modules.values() for p in m.parameters() if not p.is_meta)
        cut(modules, *more)

    sharding.shard = noted
    state = TrainState(given, session, prepared.schema, prepared.train, prepared.validation)

    def more() -> int:
        return sum(size for pointer, size in _storages().items() if pointer not in before)

    said = {"built": built, "start": more()}
    for number, batch in enumerate(state.batches):
        session.begin(batch)
        state.family.train_step(state.modules, state.optimizers, batch, session)
        if number == 1:
            break
    del batch
    said["steps"] = more()
    state.validate(session)
    said["validation"] = more()
    Path(f"{out}/{session.rank}.json").write_text(json.dumps(said))


def _storages() -> dict[int, int]:
    """Memory of all tensors that there are: address and bytes."""
    gc.collect()
    found: list[Any] = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
    storages = [(t.to_local() if hasattr(t, "to_local") else t).untyped_storage() for t in found]
    return {s.data_ptr(): s.nbytes() for s in storages}


def _die_while_writing(job: dict[str, Any]) -> None:
    """The last rank is killed as it begins to write its part of a checkpoint."""
    write = Storage.write_bytes

    def or_die(self: Storage, name: str, data: bytes) -> None:
        if f"step_{job['lost_at']:08d}/tensors-" in name and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, name, data)

    Storage.write_bytes = or_die  # type: ignore[method-assign]


def forked(jobs: list[dict[str, Any]]) -> None:
    """Run jobs in a process that may fork."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(jobs, file)
        file.flush()
        subprocess.run([sys.executable, __file__, file.name], check=True, timeout=300)


def main() -> None:
    seen: dict[str, Prepared] = {}
    for job in json.loads(Path(sys.argv[1]).read_text()):
        if job["kind"] == "norm":
            fork(len(job["shares"]), lambda job=job: _norm(job))
            continue
        if job["kind"] == "shared":
            with contextlib.suppress(RuntimeError) if job.get("lost") else contextlib.nullcontext():
                fork(job["world"], lambda job=job: _shared(job))
            continue
        if job["kind"] == "session":
            fork(job["world"], lambda job=job: _session(job))
            continue
        given = Experiment.model_validate(job["experiment"])
        if given.resources.shard:
            importlib.import_module("seekray.sharding")  # once, before the forks
            importlib.import_module("torch._dynamo")  # which FSDP2 imports as it cuts a module
        key = json.dumps([job["experiment"][part] for part in ("family", "task", "data", "model")])
        if key not in seen:
            seen[key] = prepare_for(given)
        prepared = seen[key]

        def work(given: Any = given, prepared: Prepared = prepared, job: Any = job) -> None:
            if job["kind"] == "held":
                _held(given, prepared, job["out"])
                return
            if "lost_at" in job:
                _die_while_writing(job)
            run_here(given, prepared, Path(job["folder"]), Listen(), session=RankSession)

        with contextlib.suppress(RuntimeError) if "lost_at" in job else contextlib.nullcontext():
            fork(job["world"], work)


if __name__ == "__main__":
    main()
