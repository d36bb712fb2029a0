"""What is served and how it is: Serve's own words, and what replicas and the autoscaler leave on the board."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Mapping
from typing import Any

from seekray_serve.lifecycle import configuration
from seekray_serve.lifecycle.cluster import Target
from seekray_serve.scaling import WHO

BOARD_TIMEOUT_S = 5.0


def describe(target: Target) -> dict[str, Any]:
    """Serve's description of our applications."""
    described = target.dashboard.applications()["applications"]
    return {name: described[name] for name in configuration.ours(described)}


def status(target: Target) -> dict[str, Any]:
    """`{url, models: [{name, version, url, state, replicas, alias, problem, …}]}`.

    version: of the answers; where replicas differ for a moment, those of all. alias: the one that is followed, None where
    none is; problem: why something is not as it was asked for, in words. scaling: the last decision of the autoscaler,
    `{at, from, to, why}`, None where there was none.
    """
    board = _board(target)
    models = []
    for name, app in sorted(describe(target).items()):
        config = app["deployed_app_config"]
        if config["import_path"] == configuration.FRONT_PATH:
            continue
        replicas = [r for d in app["deployments"].values() for r in d["replicas"] if r["state"] in ("RUNNING", "UPDATING")]
        said = board.get(name, {})
        told = [said[r["replica_id"]] for r in replicas if r["replica_id"] in said]
        versions = Counter(state["version"] for state in told)
        models.append(
            {
                "name": name,
                "version": ", ".join(sorted(versions)) if versions else config["args"].get("version"),
                "url": f"{target.url}{app['route_prefix']}",
                "state": app["status"].lower(),
                "replicas": len(replicas),
                "alias": (config["args"].get("follow") or {}).get("alias"),
                "scaling": said.get(WHO) if _scales(config["args"]) else None,
                "problem": next((state["problem"] for state in told if state["problem"]), None),
            }
        )
    grpc = {"grpc": f"{urllib.parse.urlsplit(target.url).hostname}:{target.grpc_port}"} if target.grpc_port else {}
    return {"url": target.url, **grpc, "models": models}


def _scales(args: Mapping[str, Any]) -> bool:
    scaling = args.get("autoscaling") or {}
    return bool(scaling.get("max", 1) != scaling.get("min", 1))


def _board(target: Target) -> dict[str, Any]:
    """`{model: {replica: state}}`; nothing where the front door does not answer, which is no reason to say nothing at all."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"{target.url}/v1/status")
    if target.key:
        request.add_header("Authorization", f"Bearer {target.key}")
    try:
        with opener.open(request, timeout=BOARD_TIMEOUT_S) as answer:
            return dict(json.load(answer))
    except (OSError, ValueError):
        return {}
