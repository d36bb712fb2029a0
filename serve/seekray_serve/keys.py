"""API keys: made, listed and revoked by `seekray keys`, read by every replica.

A file a key in `keys/` of the storage, which all replicas reach and no two processes write at once. Of the key itself
only its SHA-256 is kept: a slow hash protects what people think of, and these are 256 random bits.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from seekray.errors import ModelNotFoundError, UserError
from seekray.storage import Storage

FOLDER, PREFIX = "keys", "seekray"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}\Z")
_UNITS = {"m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Key:
    """What is kept of a key. Times are seconds since 1970; expires and revoked None: never."""

    id: str
    name: str
    sha256: str
    created: float
    expires: float | None = None
    revoked: float | None = None

    def state(self, now: float) -> str:
        """`live`, `expired` or `revoked`."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "live"


class KeyStore:
    """The keys below a storage's URI."""

    def __init__(self, storage: str) -> None:
        self.storage = Storage(storage)
        self._seen: dict[str, tuple[object, Key]] = {}

    def read(self) -> dict[str, Key]:
        """Every key by its id; only files that have changed since the last call are read."""
        import pyarrow.fs as pafs

        selector = pafs.FileSelector(self.storage.path(FOLDER), allow_not_found=True)
        found: dict[str, tuple[object, Key]] = {}
        for info in self.storage.filesystem.get_file_info(selector):
            id_, dot, kind = info.base_name.partition(".")
            if not id_ or (dot, kind) != (".", "json"):
                continue
            # The size too, since an object store's times are whole seconds; revoking changes it.
            mark = (info.mtime_ns, info.size)
            old = self._seen.get(id_)
            found[id_] = old if old and old[0] == mark else (mark, Key(**self.storage.read_json(f"{FOLDER}/{info.base_name}")))
        self._seen = found
        return {id_: key for id_, (_, key) in found.items()}

    def create(self, name: str, lifetime_s: float | None = None) -> tuple[Key, str]:
        """A new key and its text, which is nowhere to be read again. Raises UserError for a name that cannot be or is taken."""
        if not _NAME.match(name):
            raise UserError(f"a key's name is up to 64 letters, digits, '_', '-', '.', '@'; got {name!r}", field="name")
        now = time.time()
        if any(key.name == name and key.state(now) == "live" for key in self.read().values()):
            raise UserError(f"there is a key {name!r} already; revoke it first, or give another name", field="name")
        id_ = secrets.token_hex(4)
        text = f"{PREFIX}_{id_}_{secrets.token_urlsafe(32)}"
        key = Key(id_, name, digest(text).hex(), now, None if lifetime_s is None else now + lifetime_s)
        self._write(key)
        return key, text

    def revoke(self, which: str) -> Key:
        """End a key, named by its id or its name. Raises ModelNotFoundError where there is none."""
        now = time.time()
        live = [key for key in self.read().values() if key.state(now) == "live"]
        found = [key for key in live if which in (key.id, key.name)]
        if not found:
            names = ", ".join(sorted(f"{key.name} ({key.id})" for key in live)) or "none"
            raise ModelNotFoundError(f"no live key {which!r}; live: {names}", field="key")
        key = Key(**{**asdict(found[0]), "revoked": now})
        self._write(key)
        return key

    def _write(self, key: Key) -> None:
        if folder := self.storage.local_path:
            (folder / FOLDER).mkdir(parents=True, exist_ok=True, mode=0o700)
        self.storage.write_json(f"{FOLDER}/{key.id}.json", asdict(key))


def digest(text: str) -> bytes:
    """What is kept of a key's text."""
    return hashlib.sha256(text.encode()).digest()


def operators_key(token: str) -> str:
    """The key of whoever holds Ray's token, and with it everything that Ray runs; the token itself does not travel."""
    return f"{PREFIX}_operator_{hmac.new(token.encode(), b'seekray operator', hashlib.sha256).hexdigest()}"


def lifetime(text: str | None) -> float | None:
    """Seconds of `12h`, `30d` or `45m`; None: for ever. Raises UserError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if not match or not int(match[1]):
        raise UserError(f"--expires is a number with m, h or d, such as 12h or 30d; got {text!r}", field="expires")
    return int(match[1]) * _UNITS[match[2]]


def summary(key: Key) -> Mapping[str, object]:
    """What may be shown of a key."""
    shown = {"created": key.created, "expires": key.expires, "revoked": key.revoked}
    times = {name: None if at is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)) for name, at in shown.items()}
    return {"id": key.id, "name": key.name, **times, "state": key.state(time.time())}


def ray_token(environ: Mapping[str, str]) -> str | None:
    """Ray's token of this user, in the order in which Ray itself looks."""
    if token := environ.get("RAY_AUTH_TOKEN"):
        return token
    path = Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text().strip() if path.is_file() else None
