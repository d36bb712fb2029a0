"""Which Ray a command uses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ASK = (
    "import ray\n"
    "from seekray.cluster import connect\n"
    "from seekray.settings import read_settings\n"
    "with connect(read_settings({})):\n"
    "    print('GCS', ray.get_runtime_context().gcs_address)\n"
)


@pytest.mark.parametrize("resources", ["workers=1000", "workers=1, gpus_per_worker=1000"])
def test_what_this_machine_will_never_have_is_refused_before_a_ray_starts(resources: str) -> None:
    code = (
        "import sys\n"
        "from seekray.cluster import connect\n"
        "from seekray.config import Resources\n"
        "from seekray.errors import ResourcesError\n"
        "from seekray.settings import read_settings\n"
        "import ray\n"
        "ray.init = lambda *a, **k: sys.exit('a Ray was started')\n"
        "try:\n"
        f"    connect(read_settings({{}}), Resources({resources})).__enter__()\n"
        "except ResourcesError as error:\n"
        "    print(error.message)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("asked: 1"), done.stderr
    assert "on this machine" in done.stdout


LEFT = """
import psutil, ray
from seekray.cluster import connect
from seekray.config import Resources
from seekray.settings import read_settings
with connect(read_settings({}), Resources(workers=1)):
    daemons = [p for p in psutil.Process().children() if p.name() in ("raylet", "gcs_server")]
    started = psutil.Process().children(recursive=True)
    ray.shutdown = lambda: [p.kill() for p in daemons]
left = [p for p in psutil.wait_procs(started, timeout=3)[1] if p.status() != psutil.STATUS_ZOMBIE]
print(len(started) > 2, [" ".join(p.cmdline()) for p in left])
for process in left:
    process.kill()
"""


@pytest.mark.ray
def test_what_outlives_its_raylet_is_ended(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LEFT], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "True []", done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_that_someone_started_on_this_machine_is_left_alone(tmp_path: Path) -> None:
    """Without an address, a command starts a Ray of its own; only RAY_ADDRESS, --address or `serve up` share one."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"RAY_TMPDIR": folder}
    ray = Path(sys.executable).with_name("ray")
    head = [ray, "start", "--head", "--port=0", "--num-cpus=1", "--include-dashboard=false", "--disable-usage-stats"]
    subprocess.run(head, env=environment, check=True, capture_output=True)
    theirs = Path(folder, "ray", "ray_current_cluster").read_text().strip()
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
        )
        ours = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("GCS"))
        assert ours != theirs
    finally:
        _end(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _end(folder: str) -> None:
    """End the processes of this Ray alone: `ray stop` would end every Ray of this machine."""
    import psutil

    for process in psutil.process_iter(["environ", "cmdline"]):
        if folder in " ".join(process.info["cmdline"] or ()) and process.pid != os.getpid():
            process.kill()
