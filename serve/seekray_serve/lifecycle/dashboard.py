"""Serve's REST API on Ray's dashboard: what plain `serve deploy` and `serve status` speak.

Speaking it directly keeps `import ray` (seconds) out of the command line.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from seekray.errors import ClusterError

_PATH = "/api/serve/applications/"


class Dashboard:
    """One cluster's dashboard; `token` where the cluster authenticates."""

    def __init__(self, address: str, token: str | None) -> None:
        self._address = address.rstrip("/")
        self._token = token

    def applications(self, timeout_s: float = 30.0) -> dict[str, Any]:
        """Serve's own description of what is deployed, and how it is."""
        return dict(json.loads(self._call("GET", None, timeout_s)))

    def deploy(self, config: dict[str, Any], timeout_s: float = 120.0) -> None:
        """Make `config` (what `serve deploy` takes) the whole of what is deployed."""
        self._call("PUT", json.dumps(config).encode(), timeout_s)

    def delete(self, timeout_s: float = 120.0) -> None:
        """Take down Serve with all its applications."""
        self._call("DELETE", None, timeout_s)

    def _call(self, method: str, body: bytes | None, timeout_s: float) -> bytes:
        request = urllib.request.Request(self._address + _PATH, data=body, method=method)
        request.add_header("Content-Type", "application/json")
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        # No proxy of the environment: the dashboard is on this machine or in the cluster's network.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout_s) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")[:2000]
            if error.code in (401, 403):
                text += "; RAY_AUTH_TOKEN, or a file named by RAY_AUTH_TOKEN_PATH, must hold the cluster's token"
            raise ClusterError(f"Ray's dashboard refused ({error.code}): {text}") from error
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise ClusterError(f"Ray's dashboard at {self._address} does not answer: {error}") from error
