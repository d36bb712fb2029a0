"""What is to be served, the request that shows that it is, and the wait until it does."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seekray.errors import ClusterError
from seekray_serve.lifecycle.cluster import Target

FRONT = "front"


@dataclass(frozen=True)
class ModelToServe:
    """A model's version and the bundle folder that holds it.

    serve_options: the experiment's `serve:` section and more: `autoscaling` {min, max, target},
    `num_replicas`, `num_cpus`, `num_gpus`, and the fields of `options.Limits`. follow: the alias that the version was
    found by, where the endpoint shall follow it (`following.follow_arguments`).
    """

    name: str
    version: str | None
    bundle_path: str | Path
    serve_options: Mapping[str, Any] = field(default_factory=dict)
    follow: Mapping[str, Any] | None = None

    def example(self) -> tuple[str, dict[str, Any]]:
        """A path below the model's own and a body from its bundle's sample, which a replica answers."""
        sample = json.loads((Path(self.bundle_path) / "sample.json").read_text())
        if "rows" in sample:
            return "v1/predict", {"rows": sample["rows"][:1]}
        request = dict(sample["requests"][0])
        if "prompts" not in request:
            return "v1/generate", request
        return "v1/completions", {"model": self.name, "prompt": request.pop("prompts")[0], **request}


def import_path(bundle: Path) -> str:
    """The application of a bundle: a model that has targets predicts, others generate."""
    file = bundle / "bundle.json"
    generates = file.exists() and not json.loads(file.read_bytes())["schema"]["targets"]
    return f"seekray_serve.{'generation' if generates else 'prediction'}:build"


def wait(
    target: Target, models: Sequence[ModelToServe], describe: Callable[[], Mapping[str, Any]], timeout_s: float
) -> dict[str, str]:
    """Until Serve says that all runs and each model has answered through the public address; those that do not, and why.

    Both: Serve is ready before its HAProxy knows the route, and during a rolling update the old
    version answers too. describe: Serve's own words of our applications. Raises ClusterError where the front door fails.
    """
    deadline = time.monotonic() + timeout_s
    waiting = {model.name: model for model in models}
    reasons = dict.fromkeys([*waiting, FRONT], "nothing answered yet")
    failed: dict[str, str] = {}
    while True:
        apps = describe()
        for name, app in apps.items():
            if app["status"] in ("DEPLOY_FAILED", "UNHEALTHY") and (name in waiting or name == FRONT):
                failed[name] = f"{name!r} does not start: {_last_line(app)}"
                waiting.pop(name, None)
        running = {name for name, app in apps.items() if app["status"] == "RUNNING"}
        for name in sorted(running & waiting.keys()):
            if why := _probe(target, waiting[name]):
                reasons[name] = why
            else:
                del waiting[name]
        if FRONT in failed:
            raise ClusterError(failed[FRONT])
        if FRONT in running and not waiting:
            if not (why := _get(f"{target.url}/healthz")):
                return failed
            reasons[FRONT] = why
        if time.monotonic() > deadline:
            late = {name: f"{name} did not answer within {timeout_s:.0f} s: {reasons[name]}" for name in waiting or (FRONT,)}
            if FRONT in late:
                raise ClusterError(late[FRONT])
            return failed | late
        time.sleep(0.1)


def _last_line(app: Mapping[str, Any]) -> str:
    messages = [app.get("message") or "", *(d.get("message") or "" for d in app["deployments"].values())]
    lines = [line.strip() for text in messages for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "Ray gave no reason"


def _probe(target: Target, model: ModelToServe) -> str | None:
    """Why a real request did not pass, None when it did."""
    try:
        path, body = model.example()
        answer = json.loads(_open(f"{target.url}/{model.name}/{path}", json.dumps(body).encode(), target.key))
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode(errors='replace')[:300]}"
    except (OSError, ValueError) as error:
        return str(error)
    # Where an alias is followed, it may have moved meanwhile.
    if answer["version"] != model.version and not (model.follow and int(answer["version"]) > int(model.version or 0)):
        return f"version {answer['version']} still answers"
    return None


def _get(url: str) -> str | None:
    try:
        _open(url, None)
    except OSError as error:
        return str(error)
    return None


def _open(url: str, body: bytes | None, key: str | None = None) -> bytes:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        return bytes(answer.read())
