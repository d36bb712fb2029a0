"""`python kills.py EXPERIMENT.json FOLDER TRIALS SEED`: a run whose process is killed again and again.

Each trial forks a process that goes on with the run and kills it with SIGKILL at a random moment;
prints what the kills left behind. The last trial is let be.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from training_kit import prepare_for, run_here

from seekray.checkpoint import Checkpoints
from seekray.config import Experiment
from seekray.progress import Progress
from seekray.storage import Storage
from seekray.tracking.spool import Tracker
from seekray.trainer import Ears


def main() -> None:
    given = Experiment.model_validate(json.loads(Path(sys.argv[1]).read_text()))
    folder, trials, rng = Path(sys.argv[2]), int(sys.argv[3]), random.Random(int(sys.argv[4]))
    torch.set_num_threads(1)
    prepared = prepare_for(given)
    run = Storage(str(folder))
    torn, partial, steps = 0, 0, []
    for trial in range(trials + 1):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                run_here(given, prepared, folder, Ears(Tracker(run, "killed"), Progress(quiet=True)))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        if trial < trials:
            newest, began = _newest(run), time.monotonic()
            # let it get a step further, so that the run moves on, then strike at any moment of the next steps
            while _newest(run) <= newest and time.monotonic() - began < 20:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.03))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if trial < trials:
            assert os.WIFSIGNALED(status), "the run ended before it could be killed"
        folders = {n for n in run.list("checkpoints") if n.startswith("step_")}
        torn += any(not run.exists(f"checkpoints/{n}/manifest.json") for n in folders)
        partial += any((folder / "checkpoints").rglob("*.part"))
        last = Checkpoints(run).latest()
        assert last is not None, "nothing to resume from"
        steps.append(last.state["step"])
    print(json.dumps({"torn": torn, "partial": partial, "steps": steps, "status": status}))


def _newest(run: Storage) -> int:
    return max(Checkpoints(run).steps(), default=-1)


if __name__ == "__main__":
    main()
