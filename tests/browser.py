"""Debian's headless Chromium by its DevTools protocol, and axe in it."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

BINARY = shutil.which("chromium")


class Page:
    """One tab. Collects what went wrong in it and what it asked for."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.requested: list[str] = []
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's result; events on the way are noted."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])
            self._note(message.get("method"), message.get("params", {}))

    def _note(self, event: str | None, about: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requested.append(about["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.problems.append(str(about["exceptionDetails"].get("exception", about["exceptionDetails"])))
        elif event == "Log.entryAdded" and about["entry"]["level"] == "error" and about["entry"]["source"] != "network":
            self.problems.append(about["entry"]["text"])

    def js(self, expression: str) -> Any:
        """The value of an expression; a promise is waited for."""
        done = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, expression: str, seconds: float = 20) -> Any:
        """The value of an expression once it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.js(f"(e => e instanceof Node || e)({expression})")):
            assert time.monotonic() < deadline, (expression, self.js("document.body.innerText"), self.problems)
            time.sleep(0.05)
        return value

    def open(self, url: str) -> None:
        """Go there."""
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def press(self, key: str, times: int = 1, text: str = "") -> None:
        """A key of the keyboard."""
        code = {"Tab": 9, "Enter": 13}.get(key, 0)
        text = text or ("\r" if key == "Enter" else "")
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                given = {"text": text} if text and kind == "keyDown" else {}
                self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **given)

    def choose_file(self, selector: str, path: Path) -> None:
        """Put a file into a file input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def scheme(self, name: str, width: int = 1240, height: int = 860) -> None:
        """`dark` or `light`, and the window's size."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self, path: Path) -> None:
        """A PNG of what is seen."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def axe(self) -> list[str]:
        """axe's violations, a line each."""
        spec = importlib.util.find_spec("axe_playwright_python")  # for its data alone: the script
        assert spec
        assert spec.submodule_search_locations
        script = (Path(next(iter(spec.submodule_search_locations))) / "axe.min.js").read_text()
        self.send("Runtime.evaluate", expression=script)
        found = json.loads(self.js("axe.run({resultTypes: ['violations']}).then(r => JSON.stringify(r.violations))"))
        return [f"{v['id']}: {n['target']} {n['failureSummary']}" for v in found for n in v["nodes"]]


@contextmanager
def browser() -> Iterator[Page]:
    """A tab of a Chromium of its own. Skips where there is none."""
    if BINARY is None:
        pytest.skip("no chromium; on Debian: apt install chromium")
    with tempfile.TemporaryDirectory(prefix="sk-chromium-", ignore_cleanup_errors=True) as folder:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += [f"--user-data-dir={folder}", "--remote-debugging-port=0", "--hide-scrollbars", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([BINARY, *options], start_new_session=True, **quiet)
        try:
            deadline = time.monotonic() + 30
            while not (ports := _written(Path(folder) / "DevToolsActivePort")):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.05)
            with connect(f"ws://127.0.0.1:{ports[0]}{ports[1]}", max_size=None) as socket:
                target = _command(socket, "Target.createTarget", url="about:blank")["targetId"]
                with connect(f"ws://127.0.0.1:{ports[0]}/devtools/page/{target}", max_size=None) as tab:
                    yield Page(tab)
        finally:
            process.terminate()
            process.wait(10)
            _wait_for_group(process.pid)


def _wait_for_group(group: int) -> None:
    """Until a browser's other processes have ended too: while they write, its folder cannot be removed."""
    deadline = time.monotonic() + 5
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)  # asks only whether there is one
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)


def _written(file: Path) -> list[str]:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return []
    return lines if len(lines) == 2 else []


def _command(socket: Any, method: str, **parameters: Any) -> Any:
    socket.send(json.dumps({"id": 1, "method": method, "params": parameters}))
    while (message := json.loads(socket.recv(timeout=30))).get("id") != 1:
        pass
    return message["result"]
