"""The endpoint beside bare FastAPI + uvicorn on the same model, and where a request's microseconds go.

    python benchmarks/serving.py [BUNDLE] [--rounds 5] [--seconds 4] [--json]

Needs `wrk` (Debian: `apt-get install wrk`). Without BUNDLE a small model is trained on the digits.
All servers run at the same time and take turns, so that a busy machine slows them all; medians
over the rounds. Two bare servers: `bare`, one process with the same predictor, as a user would
write it; and `bare torch`, which leaves out the features too (raw numbers into layers of the same
size), so it does less than any endpoint of a trained model can.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seekray.settings import read_settings
from seekray_serve.lifecycle import deploy, instance
from seekray_serve.lifecycle.ready import ModelToServe

BUNDLE = "SEEKRAY_BENCH_BUNDLE"


def _load(path: str) -> Any:
    import torch

    from seekray.predictor import Predictor

    torch.set_num_threads(1)
    return Predictor.load(path, name="bench", version="1")


def _fastapi(predictor: Any, predict: Callable[[list[Any]], Any]) -> Any:
    from fastapi import FastAPI
    from pydantic import create_model

    fields: dict[str, Any] = {
        feature.name: (float | None if feature.kind == "numeric" else Any, ...) for feature in predictor.schema.features
    }
    row = create_model("Row", **fields)
    request = create_model("Request", rows=(list[row], ...))  # type: ignore[valid-type]
    app = FastAPI()

    async def handler(body: request) -> dict[str, Any]:  # type: ignore[valid-type]
        predictions, probabilities = predict(body.rows)  # type: ignore[attr-defined]
        return {"predictions": predictions, "probabilities": probabilities, "model": "bench", "version": "1"}

    handler.__annotations__["body"] = request
    app.post("/v1/predict")(handler)
    return app


def bare() -> Any:
    """FastAPI around the same predictor (`uvicorn --factory serving:bare`)."""
    predictor = _load(os.environ[BUNDLE])
    names = [feature.name for feature in predictor.schema.features]

    def predict(rows: list[Any]) -> Any:
        answer = predictor.predict({name: [getattr(row, name) for row in rows] for name in names})
        columns = answer.probabilities
        if columns is None:
            return answer.predictions, None
        return answer.predictions, [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    return _fastapi(predictor, predict)


def bare_torch() -> Any:
    """FastAPI around plain layers of the same sizes, without any features."""
    import torch

    predictor = _load(os.environ[BUNDLE])
    names = [feature.name for feature in predictor.schema.features if feature.kind == "numeric"]
    hidden = getattr(predictor, "info", {}).get("model", {}).get("hidden_size", [128, 128])
    sizes = [len(names), *([hidden] if isinstance(hidden, int) else hidden), len(predictor.schema.classes or [0])]
    layers: list[torch.nn.Module] = []
    for width, following in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(width, following), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers[:-1]).eval()

    def predict(rows: list[Any]) -> Any:
        with torch.inference_mode():
            inputs = torch.tensor([[getattr(row, name) or 0.0 for name in names] for row in rows])
            probabilities = network(inputs).double().softmax(1)
        named = [{str(i): value for i, value in enumerate(row)} for row in probabilities.tolist()]
        return probabilities.argmax(1).tolist(), named

    return _fastapi(predictor, predict)


def ours() -> Any:
    """Our application on uvicorn alone, without Serve and HAProxy."""
    from seekray_serve.prediction import PredictionApp

    return PredictionApp(_load(os.environ[BUNDLE]))


@contextmanager
def uvicorn(factory: str, bundle: Path) -> Iterator[str]:
    """One of this file's applications in a process of its own; gives its URL."""
    port = instance.free_ports(1)[0]
    command = [sys.executable, "-m", "uvicorn", "--factory", f"serving:{factory}", "--port", str(port)]
    command += ["--app-dir", str(Path(__file__).parent), "--log-level", "warning", "--no-access-log"]
    command += ["--loop", "uvloop", "--http", "httptools"]
    path = os.pathsep.join([*instance.source_roots(), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(command, env={**os.environ, BUNDLE: str(bundle), "PYTHONPATH": path})
    try:
        deadline = time.monotonic() + 60
        while not instance.listens(f"127.0.0.1:{port}"):
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"{factory} did not start")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def wrk(url: str, connections: int, seconds: int, script: Path | None) -> tuple[float, float]:
    """Requests a second and the median latency in microseconds. Any answer but 2xx ends the benchmark."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    command += ["-s", str(script)] if script else []
    text = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(f"{url} answered with errors:\n{text}")
    rate, median = re.search(r"Requests/sec:\s+([\d.]+)", text), re.search(r"\n\s+50%\s+([\d.]+)(us|ms|s)", text)
    assert rate
    assert median
    return float(rate[1]), float(median[1]) * {"us": 1, "ms": 1e3, "s": 1e6}[median[2]]


def replica_address(pids: list[int], name: str) -> str:
    """`host:port` of the model's replica, behind HAProxy."""
    import psutil

    for pid in pids:
        for entry in psutil.Process(pid).net_connections("tcp"):
            if entry.status != psutil.CONN_LISTEN or entry.laddr.ip != instance.LOOPBACK:
                continue
            address = f"{entry.laddr.ip}:{entry.laddr.port}"
            try:
                with urllib.request.urlopen(f"http://{address}/-/routes", timeout=2) as answer:
                    if json.loads(answer.read()) == {f"/{name}": name}:
                        return address
            except (OSError, ValueError):
                continue
    raise SystemExit("the replica's port was not found")


def stages(bundle: Path, body: bytes) -> dict[str, float]:
    """Microseconds of each stage in this process, for one row alone."""
    import orjson

    from seekray_serve.prediction import PredictionApp

    predictor = _load(str(bundle))
    app = PredictionApp(predictor)
    parsed = orjson.loads(body)
    job = app.reader.read(parsed)
    columns = app.reader.columns(job.rows) if job.rows else job.columns
    inputs = predictor.prepare(columns)
    outputs = predictor.forward(inputs)
    answer = predictor.decode(outputs)
    head = {"model": "bench", "version": "1", "predictions": answer.predictions}
    found = {
        "parse": timed(lambda: app.reader.read(orjson.loads(body))),
        "features": timed(lambda: predictor.prepare(app.reader.columns(job.rows) if job.rows else job.columns)),
        "forward": timed(lambda: predictor.forward(inputs)),
        "decode": timed(lambda: predictor.decode(outputs)),
        "encode": timed(lambda: orjson.dumps({**head, "probabilities": answer.probabilities})),
    }
    asyncio.run(app.shutdown())
    return found


def timed(call: Callable[[], object], count: int = 2000) -> float:
    """Microseconds a call, the best of five."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(count // 5):
            call()
        best = min(best, (time.perf_counter() - start) / (count // 5))
    return best * 1e6


def train_bundle(folder: Path, hidden_size: tuple[int, ...] = (128, 128)) -> Path:
    """A small digits model."""
    from seekray.experiment_file import validate
    from seekray.trainer import train

    raw = {
        "name": "bench",
        "family": "net",
        "task": "classification",
        "data": {"source": "sample:digits", "target": "label"},
        "model": {"hidden_size": list(hidden_size)},
        "training": {"epochs": 3},
        "resources": {"workers": 0},
    }
    return Path(train(validate(raw), read_settings({"SEEKRAY_HOME": str(folder)})).bundle)


def measure(bundle: Path, folder: Path, rounds: int, seconds: int) -> dict[str, Any]:
    """All figures, as one document."""
    rows = json.loads((bundle / "sample.json").read_text())["rows"][:1]
    body = json.dumps({"rows": rows})
    script = folder / "predict.lua"
    quoted = body.replace("\\", "\\\\").replace("'", "\\'")
    script.write_text(f"wrk.method='POST'\nwrk.headers['Content-Type']='application/json'\nwrk.body='{quoted}'\n")
    settings = read_settings({"SEEKRAY_HOME": str(folder)})
    try:
        port = instance.free_ports(1)[0]
        url = deploy.up([ModelToServe("bench", "1", bundle)], settings, port=port)["url"]
        head = instance.load(settings.home / "serve.json")
        assert head
        direct = replica_address(instance.pids(head.name), "bench")
        with uvicorn("bare", bundle) as a, uvicorn("bare_torch", bundle) as b, uvicorn("ours", bundle) as c:
            servers = {
                "bare": f"{a}/v1/predict",
                "bare torch": f"{b}/v1/predict",
                "seekray": f"{url}/bench/v1/predict",
                "front door": f"{url}/v1/models/bench/predict",
                "our application on uvicorn": f"{c}/v1/predict",
            }
            empty = {"socket": f"{c}/healthz", "serve": f"http://{direct}/bench/healthz", "all": f"{url}/bench/healthz"}
            for target in servers.values():  # first times are paid here
                wrk(target, 8, 2, script)
            found: dict[str, dict[int, list[tuple[float, float]]]] = {name: {32: [], 1: []} for name in servers}
            hops: dict[str, list[float]] = {name: [] for name in empty}
            for _ in range(rounds):
                for connections in (32, 1):
                    for name, target in servers.items():
                        found[name][connections].append(wrk(target, connections, seconds, script))
                for name, target in empty.items():
                    hops[name].append(wrk(target, 1, seconds, None)[1])
    finally:
        deploy.down(settings)
    table = {
        name: {
            "rate_32": statistics.median(rate for rate, _ in of[32]),
            "p50_1_us": statistics.median(p50 for _, p50 in of[1]),
        }
        for name, of in found.items()
    }
    socket_us, serve_us, all_us = (statistics.median(hops[name]) for name in ("socket", "serve", "all"))
    split = {"socket and uvicorn": socket_us, "Serve's replica wrapper": serve_us - socket_us}
    split |= {"HAProxy": all_us - serve_us, **stages(bundle, body.encode())}
    split["the rest (waking up, batching)"] = table["seekray"]["p50_1_us"] - sum(split.values())
    ratios = {
        base: {
            "throughput_32": table["seekray"]["rate_32"] / table[base]["rate_32"],
            "p50_1": table["seekray"]["p50_1_us"] / table[base]["p50_1_us"],
        }
        for base in ("bare", "bare torch")
    }
    return {"host": socket.gethostname(), "cores": os.cpu_count(), "servers": table, "ratios": ratios, "split_us": split}


def main() -> None:
    """Measure and print, as Markdown or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("wrk is not installed; on Debian: apt-get install wrk")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = measure(given.bundle or train_bundle(folder), folder, given.rounds, given.seconds)
    if given.json:
        print(json.dumps(result, indent=2))
        return
    print(f"| server ({result['cores']} cores) | requests/s, 32 connections | p50 µs, 1 connection |\n|---|---:|---:|")
    for name, of in result["servers"].items():
        print(f"| {name} | {of['rate_32']:.0f} | {of['p50_1_us']:.0f} |")
    for base, ratio in result["ratios"].items():
        print(f"\nseekray : {base} = {ratio['throughput_32']:.2f} throughput (wanted at least 1.0), ", end="")
        print(f"{ratio['p50_1']:.2f} p50 (wanted at most 1.6)")
    print("\n| where one request's microseconds go | µs |\n|---|---:|")
    for name, microseconds in result["split_us"].items():
        print(f"| {name} | {microseconds:.0f} |")


if __name__ == "__main__":
    main()
