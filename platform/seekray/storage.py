"""One folder of files behind a URI: a local path, `s3://…` or `gs://…`, through pyarrow.fs.

Every write is atomic: a local file is written beside its place, flushed and renamed; an object
store shows an object only when it is whole.
"""

from __future__ import annotations

import builtins
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import IO, Any

import pyarrow.fs as pafs

from seekray.errors import UserError, full

COPIED = 8 * 2**20


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """A pyarrow filesystem and the path in it. Raises UserError for an unknown scheme.

    `s3://` follows the usual variables (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …).
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().resolve())
    if uri.startswith("s3://"):
        bucket_path = uri[len("s3://") :].split("?")[0].rstrip("/")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            scheme, _, host = endpoint.rpartition("://")
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
            s3 = pafs.S3FileSystem(endpoint_override=host, scheme=scheme or "https", region=region)
            return s3, bucket_path
    if uri.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in uri:
        # PyArrow's own limit is a quarter of an hour, without credentials too.
        uri += f"{'&' if '?' in uri else '?'}retry_limit_seconds=10"
    try:
        found, path = pafs.FileSystem.from_uri(uri)
    except Exception as error:
        raise UserError(
            f"cannot open {uri!r} as a storage or data address: {error}; expected a path, file://, s3:// or gs://"
        ) from error
    return found, path.rstrip("/")


class Storage:
    """Files below one URI, addressed by relative names with `/`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") if "://" in uri else Path(uri).expanduser().resolve().as_uri()
        self._fs, self._root = filesystem(uri)
        self.is_local = isinstance(self._fs, pafs.LocalFileSystem)

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return (Storage, (self.uri,))

    @property
    def filesystem(self) -> pafs.FileSystem:
        """What `path` is a path of."""
        return self._fs

    def child(self, name: str) -> Storage:
        """The folder `name` below this one."""
        return Storage(f"{self.uri}/{name}")

    def path(self, name: str = "") -> str:
        """The path of `name` in the filesystem."""
        return f"{self._root}/{name}" if name else self._root

    @property
    def local_path(self) -> Path | None:
        """The folder itself where it is local."""
        return Path(self._root) if self.is_local else None

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write one file, whole or not at all."""
        if self.is_local:
            target = Path(self.path(name))
            beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with beside.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(target)
            except BaseException as error:
                beside.unlink(missing_ok=True)
                if isinstance(error, OSError) and (told := full(error, str(target))):
                    raise told from error
                raise
            return
        with self._fs.open_output_stream(self.path(name)) as stream:
            stream.write(data)

    def read_bytes(self, name: str) -> bytes:
        """A file's content. Raises FileNotFoundError."""
        with self._fs.open_input_stream(self.path(name)) as stream:
            return bytes(stream.read())

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON document."""
        self.write_bytes(name, json.dumps(value, indent=1, sort_keys=True).encode())

    def read_json(self, name: str) -> Any:
        """Read a JSON document. Raises FileNotFoundError."""
        return json.loads(self.read_bytes(name))

    def exists(self, name: str) -> bool:
        """True where a file or folder of that name is there."""
        return bool(self._fs.get_file_info(self.path(name)).type != pafs.FileType.NotFound)

    def list(self, name: str = "") -> builtins.list[str]:
        """Names of the files and folders directly in a folder, sorted; empty where it is not there."""
        selector = pafs.FileSelector(self.path(name), allow_not_found=True)
        names = (info.base_name for info in self._fs.get_file_info(selector))
        return sorted(n for n in names if not n.startswith("."))

    def files(self, name: str = "") -> builtins.list[str]:
        """Relative names of all files below a folder, sorted."""
        selector = pafs.FileSelector(self.path(name), recursive=True, allow_not_found=True)
        base = self.path(name).rstrip("/") + "/"
        found = (i.path for i in self._fs.get_file_info(selector) if i.type == pafs.FileType.File)
        return sorted(p[len(base) :] for p in found)

    def delete(self, name: str) -> None:
        """Remove a file or a folder with all in it; nothing happens where it is not there."""
        info = self._fs.get_file_info(self.path(name))
        if info.type == pafs.FileType.Directory:
            self._fs.delete_dir(self.path(name))
        elif info.type == pafs.FileType.File:
            self._fs.delete_file(self.path(name))

    def copy_to(self, name: str, file: IO[bytes]) -> None:
        """Write a file's content into an open one, piece by piece. Raises FileNotFoundError."""
        with self._fs.open_input_stream(self.path(name)) as stream:
            while piece := stream.read(COPIED):
                file.write(piece)

    def copy_from(self, file: Path, name: str) -> None:
        """Write a local file to `name`, piece by piece, whole or not at all."""
        if self.is_local:
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
            shutil.copyfile(file, beside)
            beside.replace(target)
            return
        with file.open("rb") as stream, self._fs.open_output_stream(self.path(name)) as out:
            while piece := stream.read(COPIED):
                out.write(piece)

    def upload(self, folder: Path, name: str) -> None:
        """Copy a local folder's files to `name`."""
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.write_bytes(f"{name}/{file.relative_to(folder).as_posix()}", file.read_bytes())

    def download(self, name: str, folder: Path) -> None:
        """Copy all files below `name` into a local folder."""
        for file in self.files(name):
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.read_bytes(f"{name}/{file}" if name else file))
