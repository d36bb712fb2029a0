"""Not open by accident: whose keys the endpoints ask for, and what has to be said before they ask for none."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from seekray.errors import UserError
from seekray_serve.keys import KeyStore

if TYPE_CHECKING:
    from seekray.settings import Settings


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def auth_of(host: str, settings: Settings, insecure: bool) -> dict[str, Any] | None:
    """The argument `auth` of endpoints that are bound to `host`: the keys of the storage, once there are any; None: nobody's.

    insecure: the consent to ask for none. Raises UserError where more than this machine could ask, there is no key, and nobody
    has consented.
    """
    if insecure:
        return None
    required = not is_loopback(host)
    if required:
        now = time.time()
        if not any(key.state(now) == "live" for key in KeyStore(settings.storage).read().values()):
            raise UserError(
                f"{host} is not this machine alone, and there is no key to ask for: make one with `seekray keys create NAME`, "
                "leave out --host, or say --insecure-no-auth if everybody who reaches the port may use the models",
                field="host",
            )
    return {"keys": settings.storage, "required": required}


def with_auth(applications: Mapping[str, dict[str, Any]], auth: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The same applications, ours asking for these keys; those of others on the cluster stay as they are."""

    def asking(app: dict[str, Any]) -> dict[str, Any]:
        args = {name: value for name, value in (app.get("args") or {}).items() if name != "auth"}
        return {**app, "args": args | ({"auth": auth} if auth else {})}

    ours = {name for name, app in applications.items() if str(app.get("import_path", "")).startswith("seekray_serve.")}
    return {name: asking(app) if name in ours else app for name, app in applications.items()}
