"""`cluster.yaml` is what Ray's own cluster launcher accepts, and closed to the world."""

from __future__ import annotations

import copy
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def written() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return found


@pytest.fixture
def config(written: dict[str, Any]) -> dict[str, Any]:
    """With Ray's defaults, as `ray up` sees it."""
    found: dict[str, Any] = prepare_config(copy.deepcopy(written))
    return found


def test_passes_rays_own_check(config: dict[str, Any]) -> None:
    validate_config(config)


def test_the_check_checks(config: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate_config(config | {"max_worker": 3})


def test_has_a_head_cpu_workers_and_gpu_workers_that_start_at_none(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}
    for kind in ("cpu", "gpu"):
        assert types[kind]["min_workers"] == 0
        assert 0 < types[kind]["max_workers"] <= config["max_workers"]
    assert re.match(r"[gp]\d", types["gpu"]["node_config"]["InstanceType"])


def test_only_ssh_is_open(config: dict[str, Any]) -> None:
    rules = config["provider"]["security_group"]["IpPermissions"]
    assert [(r["FromPort"], r["ToPort"]) for r in rules] == [(22, 22)]


def test_every_node_starts_with_the_token_and_the_dashboard_on_loopback(written: dict[str, Any]) -> None:
    assert "~/.ray/auth_token" in written["file_mounts"]
    for role in ("head", "worker"):
        commands = written[f"{role}_start_ray_commands"]
        starts = [c for c in commands if "ray start" in c]
        assert len(starts) == 1
        assert "RAY_AUTH_MODE=token ray start" in starts[0]
        assert "chmod 600 ~/.ray/auth_token" in commands
    head = next(c for c in written["head_start_ray_commands"] if "ray start" in c)
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in head


def test_the_nodes_get_the_dependencies_of_the_package(written: dict[str, Any]) -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    install = next(c for c in written["setup_commands"] if "pip install" in c)
    assert [d for d in wanted if f"'{d}'" not in install] == []
