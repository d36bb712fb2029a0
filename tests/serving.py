"""What the tests of real endpoints share: a client, a load, ports."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import uvicorn

from seekray.settings import Settings
from seekray_serve.http import Application, json_response
from seekray_serve.lifecycle import instance, place


def free_port() -> int:
    """A port on which nobody listens now."""
    return instance.free_ports(1)[0]


def rewritten(bundle: Path, target: Path, change: Callable[[Any], object]) -> Path:
    """A bundle whose `sample.json` was changed before it was sealed, so that its manifest fits."""
    shutil.copytree(bundle, target)
    kept = json.loads((target / "sample.json").read_text())
    change(kept)
    (target / "sample.json").write_text(json.dumps(kept))
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["files"]["sample.json"] = hashlib.sha256((target / "sample.json").read_bytes()).hexdigest()
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def sample(bundle: Path) -> list[dict[str, Any]]:
    """The bundle's own rows."""
    return json.loads((bundle / "sample.json").read_text())["rows"]


def call(url: str, body: object = None, method: str | None = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """Status and parsed answer (text where it is not JSON) of one request on a connection of its own."""
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=30)
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    connection.request(method, "/" + path, data, {"content-type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if answer.getheader("content-type") == "application/json" else text


class Server:
    """An application on a free port of loopback, in a thread of its own."""

    def __init__(self, app: Any) -> None:
        self.app = app
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        self.thread = threading.Thread(target=self.server.run, args=([listener],))

    def __enter__(self) -> Server:
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), "the application did not start"
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()


class Load:
    """Requests from several clients, half of them with kept connections, until the block ends.

    Counts the versions that answered, and each failure by its own words.
    """

    def __init__(self, url: str, body: object, clients: int = 4) -> None:
        self._host, _, self._path = url.removeprefix("http://").partition("/")
        self._body = json.dumps(body)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i % 2 == 0,)) for i in range(clients)]
        self.seen: Counter[str] = Counter()

    def _run(self, keep: bool) -> None:
        connection = None
        while not self._stop.is_set():
            try:
                if connection is None or not keep:
                    connection = http.client.HTTPConnection(self._host, timeout=30)
                connection.request("POST", "/" + self._path, self._body, {"content-type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
                self.seen[json.loads(text)["version"] if answer.status == 200 else f"status {answer.status}"] += 1
                if answer.getheader("connection", "").lower() == "close":
                    connection = None
            except Exception as error:
                self.seen[repr(error)] += 1
                connection = None
            time.sleep(0.01)  # or the clients alone would keep two CPUs busy

    def __enter__(self) -> Counter[str]:
        for thread in self._threads:
            thread.start()
        return self.seen

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def listening(pids: list[int]) -> list[tuple[str, int, int]]:
    """Host, port and pid of every listening socket of these processes."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            for entry in psutil.Process(pid).net_connections("tcp"):
                if entry.status == psutil.CONN_LISTEN:
                    found.append((entry.laddr.ip, entry.laddr.port, pid))
    return found


def until(ask: Any, expected: Any, timeout_s: float = 5.0) -> float:
    """Seconds until `ask` gives what is expected."""
    start = time.monotonic()
    while (found := ask()) != expected:
        assert time.monotonic() - start < timeout_s, found
        time.sleep(0.02)
    return time.monotonic() - start


def processes(where: Settings, title: str) -> list[int]:
    """Process ids of what shows a title."""
    running = instance.load(where.home / "serve.json")
    assert running
    found = []
    for pid in instance.pids(running.name):
        try:
            if title in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
        except OSError:  # ended meanwhile
            continue
    return found


def remove(where: Settings, name: str) -> None:
    """Serve a model no more, and leave the others."""
    target = place.running(where, None)
    assert target
    rest = [app for key, app in place.deployed(target).items() if key != name]
    place.deploy(target, rest)
    until(lambda: call(f"{target.url}/{name}/healthz")[0], 404, timeout_s=30)
    until(lambda: name in [m["name"] for m in call(f"{target.url}/v1/models")[1]["models"]], expected=False, timeout_s=30)


class Ingress:
    """What HAProxy is to the front door: models by prefix, all in one process."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}
        self.front: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await Lifespan([*self.models.values(), self.front])(scope, receive, send)
            return
        if scope["path"] == "/-/routes":
            await json_response({f"/{name}": name for name in self.models}).send(send)
            return
        name = scope["path"].split("/")[1]
        if name in self.models:
            scope = {**scope, "root_path": f"/{name}"}
        await self.models.get(name, self.front)(scope, receive, send)


class Lifespan(Application):
    """Starts and stops several applications."""

    def __init__(self, apps: list[Any]) -> None:
        super().__init__()
        self.apps = apps

    async def startup(self) -> None:
        for app in self.apps:
            if isinstance(app, Application):
                await app.startup()
            else:
                app.refresh()

    async def shutdown(self) -> None:
        for app in self.apps:
            if isinstance(app, Application):
                await app.shutdown()
