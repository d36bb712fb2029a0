"""`python elastic.py FOLDER`: an elastic run on a cluster that grows by a node and loses it again, in FOLDER/run.

Prints JSON: the worlds that its checkpoints were of, in order, and how often the run's points were told.
"""

from __future__ import annotations

import collections
import json
import os
import sys
import threading
import time
from pathlib import Path
from unittest import mock

os.environ["PACED_UNTIL"] = f"{sys.argv[1]}/enough"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray.cluster_utils import Cluster
from training_kit import experiment, prepare_for, run_ray

from seekray import ray_train
from seekray.checkpoint import Checkpoints
from seekray.progress import Progress
from seekray.storage import Storage
from seekray.tracking.spool import Spool, Tracker
from seekray.trainer import Ears

NODE = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 100_000_000}
PATIENCE = 240.0


def main() -> None:
    folder = Path(sys.argv[1])
    given = experiment(
        folder / "table.csv", family="odd_families:Paced", resources={"workers": [1, 2], "max_failures": 3},
        training={"precision": "fp64", "max_steps": 2000, "epochs": None, "checkpoints": {"every_steps": 5}},
    )  # fmt: skip
    run = Storage(str(folder / "run"))
    worlds: list[int] = []

    def trained_by(world: int) -> None:
        """Until three checkpoints in a row come from that many workers."""
        deadline, seen = time.monotonic() + PATIENCE, 0
        last = -1
        while seen < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
            newest = Checkpoints(run).latest()
            if newest is not None and newest.state["step"] > last:
                last = newest.state["step"]
                worlds.append(newest.state["world_size"])
                seen = seen + 1 if worlds[-1] == world else 0

    def come_and_go() -> None:
        try:
            trained_by(1)
            with mock.patch("ray._private.utils.set_sigterm_handler"):  # which only a main thread may
                node = cluster.add_node(**NODE)
            trained_by(2)
            cluster.remove_node(node, allow_graceful=False)
            trained_by(1)
        finally:
            Path(os.environ["PACED_UNTIL"]).touch()

    cluster = Cluster()
    cluster.add_node(**NODE, include_dashboard=False)
    ray.init(address=cluster.address, log_to_driver=False)
    visitor = threading.Thread(target=come_and_go)
    try:
        visitor.start()
        tracker = Tracker(run, "run")
        with mock.patch.object(ray_train, "RESIZE_SECONDS", 2.0):
            run_ray(given, prepare_for(given), folder / "run", Ears(tracker, Progress(quiet=True)))
        tracker.finish("finished")
    finally:
        visitor.join()
        ray.shutdown()
        cluster.shutdown()
    told = [(p["key"], p["step"]) for e in Spool(run).events() if e["kind"] == "points" for p in e["points"]]
    losses = {
        p["step"]: p["value"] for e in Spool(run).events() if e["kind"] == "points" for p in e["points"] if p["key"] == "loss"
    }
    most = max(collections.Counter(told).values())
    print(json.dumps({"worlds": worlds, "most": most, "losses": sorted(losses.items())}))


if __name__ == "__main__":
    main()
