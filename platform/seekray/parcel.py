"""What goes to a cluster with a job: the user's folder without its ballast, and this package."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from seekray.data.sources import FORMATS
from seekray.errors import UserError

PACKAGES = ("seekray", "seekray_jobs", "seekray_serve")
TOLD_FROM = 20 * 2**20
LIMIT = 100 * 2**20  # of Ray's dashboard, for one upload
LEFT_OUT_FOLDERS = {"node_modules", "__pycache__", "venv", "env", "mlruns", "mlartifacts"}
LEFT_OUT_SUFFIXES = {
    ".pyc", ".pyo", ".npy", ".npz", ".h5", ".hdf5", ".db", ".sqlite", ".sqlite3", ".zip", ".tar", ".tgz",
    ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".safetensors", ".avro", ".orc", ".xlsx", ".mp4", ".wav",
    ".pem", ".key", ".p12",
}  # fmt: skip
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4", ".xz")
TEXTS = {".txt", ".json"}  # data where they are large, else notes and settings
TEXT_LIMIT = 2**20
NETWORK = ("nfs", "cifs", "smb", "fuse.", "lustre", "ceph", "gpfs", "beegfs", "glusterfs", "9p", "virtiofs", "afs")


def files(folder: Path) -> dict[str, Path]:
    """What goes along, by its name there: the packages, and of `folder` what is neither hidden nor data.

    Left out: hidden files and folders (.git, .env, .seekray), environments, caches, data by its suffix,
    private keys, links to the outside, and what .gitignore names. Of a home folder nothing is taken.
    """
    found = {}
    if folder not in (Path.home().resolve(), Path(folder.anchor)):
        ignored = _ignored(folder)
        for parent, folders, names in os.walk(folder):
            here = Path(parent)
            folders[:] = sorted(d for d in folders if _folder_goes(here / d) and _name(here / d, folder) + "/" not in ignored)
            for name in sorted(names):
                path = here / name
                if _name(path, folder) not in ignored and _file_goes(path, folder):
                    found[_name(path, folder)] = path
    return found | _packages()


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _folder_goes(path: Path) -> bool:
    if path.name.startswith(".") or path.name in LEFT_OUT_FOLDERS or path.name.endswith(".egg-info") or path.is_symlink():
        return False
    return not (path / "pyvenv.cfg").exists() and not (path / "conda-meta").exists()


def _file_goes(path: Path, folder: Path) -> bool:
    if path.name.startswith(".") or not path.is_file() or not path.resolve().is_relative_to(folder):
        return False
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    suffix = PurePosixPath(name).suffix
    if suffix in TEXTS and name == path.name.lower():
        return path.stat().st_size <= TEXT_LIMIT
    return suffix not in LEFT_OUT_SUFFIXES and suffix not in FORMATS


def _ignored(folder: Path) -> set[str]:
    """What git ignores, relative to the folder, folders with a `/` at the end; nothing without git."""
    command = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "--directory", "-z"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return set()
    return set(done.stdout.decode(errors="surrogateescape").split("\0")) - {""}


def _packages() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for place in spec.submodule_search_locations or () if spec else ():
            root = Path(place)
            for path in sorted(root.rglob("*")):
                if path.is_file() and path.suffix != ".pyc":
                    found[f"{package}/{path.relative_to(root).as_posix()}"] = path
    return found


def mib(size: float) -> str:
    """A size for people."""
    if size < 2**10:
        return f"{size:.0f} bytes"
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 / 10 else f"{size / 2**10:.1f} KiB"


def summary(sent: Mapping[str, Path], largest: int = 5) -> str:
    """How much it is and what the largest files are."""
    sizes = {name: path.stat().st_size for name, path in sent.items()}
    top = sorted(sizes, key=lambda n: sizes[n], reverse=True)[:largest]
    return f"{mib(sum(sizes.values()))} in {len(sizes)} files; the largest: {', '.join(f'{n} {mib(sizes[n])}' for n in top)}"


def check_size(sent: Mapping[str, Path], say: Callable[[str], None]) -> None:
    """Tell what is sent where it is much. Raises UserError where it is more than Ray's dashboard takes."""
    size = sum(path.stat().st_size for path in sent.values())
    hint = "a line in .gitignore leaves a file out"
    if size > LIMIT:
        raise UserError(f"{summary(sent)}: over the {mib(LIMIT)} that Ray's dashboard takes; {hint}")
    if size > TOLD_FROM:
        say(f"sending {summary(sent)}; {hint}")


def write(sent: Mapping[str, Path], target: Path) -> Path:
    """One zip file, the same bytes for the same files, so that Ray uploads nothing twice."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in sorted(sent):
            entry = zipfile.ZipInfo(name)  # dated 1980
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if os.access(sent[name], os.X_OK) else 0o644) << 16
            archive.writestr(entry, sent[name].read_bytes())
    return target


def on_network_file_system(path: Path) -> bool:
    """True where the path lies on a file system that several machines can mount (as /proc/mounts names it)."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return False
    around = [(len(place), kind) for place, kind in mounts if path.is_relative_to(place.replace("\\040", " "))]
    return bool(around) and max(around)[1].startswith(NETWORK)
