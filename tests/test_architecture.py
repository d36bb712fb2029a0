"""The house's rules: floors, rooms, no pickle, documented functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    "seekray": ROOT / "platform/seekray",
    "seekray_jobs": ROOT / "jobs/seekray_jobs",
    "seekray_serve": ROOT / "serve/seekray_serve",
}
FILES = sorted(f for folder in SOURCES.values() for f in folder.rglob("*.py"))
# Floor of each room of `seekray`; a file imports from lower floors, or from its own room.
FLOORS = [
    {"errors", "settings", "log", "system", "storage"},
    {"models", "data", "metrics", "images"},
    {"config", "yaml_file", "experiment_file", "search_space"},
    {"manifest", "checkpoint", "bundle", "session", "shared_sum", "sharding"},
    {
        "model_ref", "loaded", "predictor", "generator", "huggingface", "plots", "tracking", "evaluation", "importances",
        "batch", "augment", "verify", "progress", "train_state", "promotion", "stream",
    },
    {"loop", "report"},
    {"interrupts", "mailbox", "driver_trainer", "ray_environment", "ray_train", "trainer", "model_import"},
    {"tuner"},
    {"cluster", "inspect", "submission", "jobs_api", "parcel"},
    {"cli"},
]  # fmt: skip
# The same within `data`, whose root is the lowest floor: what all families share imports from none of these.
DATA_FLOORS = [{"samples"}, {"sources"}, {"sequences"}, {"tables"}, {"text", "synthetic"}]


def floor(room: str) -> int:
    found = [n for n, rooms in enumerate(FLOORS) if room in rooms or room.split("_")[0] in rooms]
    assert found, f"room {room!r} has no floor: put it into FLOORS"
    return found[0]


def imports(file: Path, *, runtime: bool = True) -> set[str]:
    """Modules that a file imports; those for type checking alone are left out."""
    tree = ast.parse(file.read_text())
    checked = [
        n for n in ast.walk(tree)
        if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"
    ]  # fmt: skip
    skipped = {id(c) for n in checked for c in ast.walk(n)}
    found = set()
    for node in ast.walk(tree):
        if runtime and id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_come_from_lower_floors(file: Path) -> None:
    package = file.relative_to(ROOT).parts[1]
    for name in imports(file):
        parts = name.split(".")
        if package == "seekray" and parts[0] in ("seekray_jobs", "seekray_serve"):
            assert "cli" in file.parts, f"{file.name} imports {name}; only cli may"
        if package == "seekray_serve":
            assert parts[0] != "seekray_jobs"
        if package != "seekray" or parts[0] != "seekray" or len(parts) < 2:
            continue
        own = file.relative_to(SOURCES["seekray"]).parts[0].removesuffix(".py")
        if (
            own in ("__init__", "cli")
            or parts[1] == own
            or (not (SOURCES["seekray"] / f"{parts[1]}.py").exists() and not (SOURCES["seekray"] / parts[1]).is_dir())
        ):
            continue
        assert floor(parts[1]) <= floor(own), f"{own} (floor {floor(own)}) imports {parts[1]} (floor {floor(parts[1])})"


def data_floor(name: str) -> int:
    room = name.removeprefix("seekray.data.").split(".")[0]
    return next((n for n, rooms in enumerate(DATA_FLOORS, 1) if room in rooms), 0)


def test_data_has_floors_too() -> None:
    root = SOURCES["seekray"] / "data"
    rooms = {folder.name for folder in root.iterdir() if (folder / "__init__.py").exists()}
    assert rooms == set.union(*DATA_FLOORS), "put a new room of data into DATA_FLOORS"
    for file in root.rglob("*.py"):
        own = file.relative_to(root).parts[0] if file.parent != root else ""
        for name in imports(file):
            if name.startswith("seekray.data.") and name.split(".")[2] != own:
                assert data_floor(name) < (data_floor(own) or 1), (
                    f"{file.relative_to(root)} imports {name}; only lower floors of data may be imported"
                )


@pytest.mark.parametrize(("module", "room"), [("mlflow", "tracking"), ("matplotlib", "plots"), ("yaml", "")])
def test_each_heavy_library_has_one_door(module: str, room: str) -> None:
    for file in FILES:
        users = {n.split(".")[0] for n in imports(file)}
        if module in users and module != "yaml":
            assert room in str(file), f"{file} imports {module}; only {room} may"
        if module == "yaml" and module in users:
            assert (
                "experiment_file" in file.name
                or file.name == "yaml_file.py"
                or "cli" in file.parts
                or "inspect" in str(file)
                or file.name == "deploy.py"
                or "init" in file.name
            )


def test_no_pickle_near_the_product() -> None:
    for file in FILES:
        users = {n.split(".")[0] for n in imports(file)}
        assert not users & {"pickle", "joblib", "cloudpickle", "dill"}, file
        assert "torch.load(" not in file.read_text(), file


def test_platform_is_no_package() -> None:
    assert not (ROOT / "platform/__init__.py").exists()
    code = "import platform, sys; assert hasattr(platform, 'python_version'), platform"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['seekray', '--help']\n"
        "from seekray.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'pyarrow', 'matplotlib', 'pydantic'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_are_short_and_documented(file: Path) -> None:
    text = file.read_text()
    most = 60 if file.is_relative_to(SOURCES["seekray_jobs"]) else 350
    assert text.count("\n") <= most, f"{file} is two rooms"
    tree = ast.parse(text)
    if text.strip():
        assert ast.get_docstring(tree), f"{file} does not say what it is for"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{file}: {node.name} has no docstring"


def test_the_engine_knows_neither_ray_nor_http() -> None:
    """It stands on the platform alone: nothing of the serving package around it, nothing that speaks HTTP."""
    for file in (SOURCES["seekray_serve"] / "engine").rglob("*.py"):
        for name in imports(file, runtime=False):
            parts = name.split(".")
            own = parts[:2] == ["seekray_serve", "engine"]
            assert own or parts[0] not in {"ray", "seekray_serve", "starlette", "uvicorn", "fastapi", "http"}, f"{file}: {name}"
