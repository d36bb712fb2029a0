"""The README's commands run as they stand; the Chinese one has the same."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.M | re.S)


def blocks(name: str) -> list[tuple[str, str, str]]:
    """(language, title, text) of each code block."""
    return [(m[1], m[2].strip(), m[3]) for m in BLOCK.finditer((ROOT / name).read_text())]


@pytest.mark.e2e
def test_readme_commands_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    script = "\n".join(text for language, title, text in blocks("README.md") if language == "sh" and not title)
    assert "seekray serve up" in script
    script = script.replace("8000", str(port))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SEEKRAY_", "RAY_", "MLFLOW_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
        )
    finally:
        subprocess.run([Path(sys.executable).with_name("seekray"), "serve", "down"], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert '"predictions":[' in done.stdout.replace(" ", "")
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 801


def test_cluster_commands_exist() -> None:
    text = "\n".join(t for language, title, t in blocks("README.md") if "cluster" in title)
    for verb in re.findall(r"^seekray (\w+)", text, re.M):
        subprocess.run([Path(sys.executable).with_name("seekray"), verb, "--help"], check=True, capture_output=True)


def test_table_lists_every_verb() -> None:
    from seekray.cli import app

    verbs = {c.name or c.callback.__name__.rstrip("_") for c in app.registered_commands}  # type: ignore[union-attr]
    verbs |= {g.name for g in app.registered_groups}
    for name in ("README.md", "README.zh-CN.md"):
        listed = set(re.findall(r"^\| `seekray (\w+)`", (ROOT / name).read_text(), re.M))
        assert listed == verbs, name


def test_subcommands_are_named() -> None:
    from seekray.cli import app

    lines = (ROOT / "README.md").read_text().splitlines()
    for group in app.registered_groups:
        line = next(x for x in lines if x.startswith(f"| `seekray {group.name}`"))
        for command in group.typer_instance.registered_commands:  # type: ignore[union-attr]
            name = command.name or command.callback.__name__  # type: ignore[union-attr]
            assert f"`{name}`" in line, f"{group.name} {name}"


def test_chinese_readme_has_the_same_commands() -> None:
    english = [b for b in blocks("README.md") if b[0] == "sh"]
    assert english == [b for b in blocks("README.zh-CN.md") if b[0] == "sh"]


def test_every_help_has_an_example() -> None:
    from seekray.cli import app

    commands = list(app.registered_commands)
    for group in app.registered_groups:
        commands += group.typer_instance.registered_commands  # type: ignore[union-attr]
    for command in commands:
        assert command.epilog, command.callback
        assert command.epilog.startswith("Example: seekray ")
