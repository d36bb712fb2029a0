"""`serve up models.yaml` on an instance of its own: what the file says is what runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.serve")

from tests.serving import Load, call, free_port, processes, rewritten, sample

from seekray.settings import read_settings
from seekray_serve.lifecycle import deploy

pytestmark = [pytest.mark.ray, pytest.mark.e2e, pytest.mark.slow]


def test_models_are_added_changed_and_removed_and_one_that_fails_leaves_the_others(
    bundles, tmp_path: Path, monkeypatch
) -> None:
    settings = read_settings({"SEEKRAY_HOME": str(tmp_path / "home")})
    monkeypatch.setenv("SEEKRAY_HOME", str(tmp_path / "home"))
    file, port = tmp_path / "models.yaml", free_port()
    wrong = rewritten(bundles["wine"], tmp_path / "wrong", lambda s: s["answers"]["prediction"].reverse())

    def up(models: dict[str, Any], *options: str) -> tuple[int, dict[str, Any]]:
        file.write_text(json.dumps({"port": port, "models": models}))
        command = [sys.executable, "-c", "from seekray.cli import main; main()", "serve", "up", str(file), "--json", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def served() -> dict[str, tuple[str, int]]:
        return {m["name"]: (m["state"], m["replicas"]) for m in deploy.status(settings)["models"]}

    digits, wine = str(bundles["digits1"]), str(bundles["wine"])
    body = {"rows": sample(bundles["digits1"])[:1]}
    try:
        first = {"digits": digits, "wine": wine, "lost": {"model": "nobody/3"}}
        assert up(first, "--dry-run")[1]["changes"] == {"added": ["digits", "wine"], "changed": {}, "removed": []}
        assert served() == {}
        code, done = up(first)
        assert (code, done["failed"].keys()) == (1, {"lost"})
        assert served() == {"digits": ("running", 1), "wine": ("running", 1)}
        kept = processes(settings, "ServeReplica:digits")
        with Load(f"{done['url']}/digits/v1/predict", body, clients=2) as seen:
            # wine's own answers are not what its bundle keeps, so it stays as it was; a third model comes
            code, done = up({"digits": digits, "wine": str(wrong), "again": {"model": digits, "max_rows": 3}})
            assert code == 1
            assert "not those kept in its bundle" in done["failed"]["wine"]
            assert served() == dict.fromkeys(("again", "digits", "wine"), ("running", 1))
            assert call(f"{done['url']}/wine/v1/predict", {"rows": sample(bundles["wine"])})[0] == 200
            change = {"digits": digits, "again": {"model": digits, "replicas": 2, "max_rows": 4}}
            expected = {
                "added": [],
                "changed": {"again": {"autoscaling": None, "max_rows": [3, 4], "num_replicas": [None, 2]}},
                "removed": ["wine"],
            }
            code, said = up(change, "--dry-run")
            expected["changed"]["again"]["autoscaling"] = said["changes"]["changed"]["again"]["autoscaling"]
            assert said == {"changes": expected, "failed": {}}
            code, done = up(change)
            assert (code, done["changes"]) == (0, expected)
        assert served() == {"again": ("running", 2), "digits": ("running", 1)}
        assert call(f"{done['url']}/again/v1/predict", {"rows": sample(bundles["digits1"]) * 2})[0] == 413
        assert seen.keys() == {None}  # bundles have no version; and no failure
        assert set(processes(settings, "ServeReplica:digits")) == set(kept)  # what was not changed was not touched
        assert up(change)[1]["changes"] == {"added": [], "changed": {}, "removed": []}
    finally:
        deploy.down(settings)
