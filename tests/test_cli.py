"""The command line itself: one JSON document whatever happens, exit codes, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seekray import cli

WRONG = [
    ["init", "none.csv", "--target", "x"],
    ["init", "none.csv"],
    ["train", "none.yaml"],
    ["train", "--resume", "none"],
    ["train"],
    ["train", "none.yaml", "--dry-run"],
    ["evaluate", "none@champion", "--data", "sample:wine"],
    ["evaluate", "none/1", "--data", "sample:wine"],
    ["predict", "nowhere/bundle", "--data", "sample:wine", "--out", "a.csv"],
    ["verify", "none/1", "--data", "sample:wine"],
    ["models", "show", "none"],
    ["models", "promote", "none", "1", "--to", "champion"],
    ["models", "rollback", "none", "champion"],
    ["models", "export", "none/1", "--out", "x"],
    ["runs", "show", "none"],
    ["runs", "compare", "none", "other"],
    ["serve", "up", "none/1"],
    ["serve", "build", "none/1"],
    ["config", "show", "none.yaml"],
    ["submit", "dance", "none.yaml"],
    ["nonsense"],
]
FINE = [["models", "list"], ["runs", "list"], ["serve", "status"], ["serve", "down"], ["sync"]]


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["seekray", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all: MLflow takes seconds to make a database."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def here(tmp_path: Path, home: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEEKRAY_HOME", str(shared))
    return tmp_path


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_an_error_is_one_document_too(
    arguments: list[str], here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--json"], monkeypatch) == 2
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert error.keys() == {"code", "message", "field"}
    assert f"error: {error['message']}" in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("arguments", FINE, ids=" ".join)
def test_a_list_of_nothing_is_one_document(
    arguments: list[str], here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--json"], monkeypatch) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [(KeyboardInterrupt, 130, "interrupted"), (OSError(28, "No space left on device", "x.bin"), 1, "disk_full")],
)
def test_ctrl_c_and_a_full_disk(
    error: BaseException, code: int, name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("seekray.experiment_file.load", stop)
    assert run(["config", "show", "x.yaml", "--json"], monkeypatch) == code
    assert json.loads(capsys.readouterr().out)["error"]["code"] == name


def test_bash_completes(here: Path) -> None:
    """As bash does it: the script that is shown, and words half typed."""
    command = Path(sys.executable).with_name("seekray")
    if not command.exists():
        pytest.skip("seekray is not installed as a command here")
    shown = subprocess.run(
        [command, "--show-completion"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"_SEEKRAY_COMPLETE": "source_bash"},
    ).stdout
    ask = f'{shown}\nCOMP_WORDS=(seekray models pro); COMP_CWORD=2; _seekray_completion seekray; echo "${{COMPREPLY[@]}}"'
    path = f"{command.parent}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, env=os.environ | {"PATH": path}, check=True)
    assert done.stdout.strip() == "promote"
