"""The endpoint beside other servers of the same model, and where a request's microseconds go.

    python -m benchmarks.serving [BUNDLE] [--parts peers,replicas,arrow,stages] [--rounds 3] [--seconds 3] [--plot FILE]

Needs `wrk` (Debian: `apt-get install wrk`). Without BUNDLE the MLP 64-256-256-10 is trained on the digits. The servers of
a part run at the same time and take turns, so that a busy machine slows them all; medians over the rounds. LitServe and
BentoML are installed into an environment of their own (`--peers`, made at the first run). Two bare servers: `bare`,
FastAPI and uvicorn in one process with the same predictor, as a user would write it; and `bare torch`, which leaves out
the features too (raw numbers into layers of the same size), so it does less than any endpoint of a trained model can.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import serving_servers as servers
from benchmarks.peers.shared import load
from benchmarks.serving_servers import Load, script, wrk
from seekray.settings import read_settings
from seekray_serve.lifecycle import deploy, instance
from seekray_serve.lifecycle.ready import ModelToServe

PARTS = ("peers", "replicas", "arrow", "stages")
JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
# Throughput at 32 connections, ours over theirs; and the p50 of one connection, ours over bare FastAPI's.
TARGETS = {"bare": 1.15, "LitServe": 2.0, "mlflow models serve": 3.0, "BentoML": 4.0}
P50, FRONT, REPLICAS, ROWS = 1.3, 0.5, 1.4, 5.0


def median(loads: list[Load], name: str) -> float:
    """Of one figure of several runs."""
    return statistics.median(getattr(load, name) for load in loads)


@contextmanager
def served(bundle: Path, folder: Path, **options: Any) -> Iterator[tuple[str, list[str]]]:
    """The model behind real Serve and HAProxy: the public address, and the replicas' own."""
    settings = read_settings({"SEEKRAY_HOME": str(folder / "serve")})
    try:
        model = ModelToServe("bench", "1", bundle, options)
        url = deploy.up([model], settings, port=instance.free_ports(1)[0])["url"]
        head = instance.load(settings.home / "serve.json")
        assert head
        yield url, servers.replica_addresses(instance.pids(head.name), "bench")
    finally:
        deploy.down(settings)


def peers(bundle: Path, folder: Path, rows: list[Any], rounds: int, seconds: int, python: Path) -> dict[str, Any]:
    """One row a request, 32 connections and one."""
    row = script(folder, "row", JSON, json.dumps({"rows": rows[:1]}).encode())
    invocation = script(folder, "invocation", JSON, json.dumps({"dataframe_records": rows[:1]}).encode())
    with ExitStack() as stack:
        url, _ = stack.enter_context(served(bundle, folder))
        start = stack.enter_context
        targets = {
            "bare": (start(servers.uvicorn("bare", bundle)), row),
            "bare torch": (start(servers.uvicorn("bare_torch", bundle)), row),
            "LitServe": (start(servers.litserve(bundle, python, 1)), row),
            "LitServe, batching": (start(servers.litserve(bundle, python, 32)), row),
            "mlflow models serve": (start(servers.mlflow(bundle, folder)), invocation),
            "BentoML": (start(servers.bentoml(bundle, python)), row),
            "our application on uvicorn": (start(servers.uvicorn("ours", bundle)), row),
            "seekray": (f"{url}/bench/v1/predict", row),
            "front door": (f"{url}/v1/models/bench/predict", row),
        }
        return turns(targets, (32, 1), rounds, seconds)


def turns(
    targets: Mapping[str, tuple[str, Path | None]], connections: tuple[int, ...], rounds: int, seconds: int
) -> dict[str, dict[int, list[Load]]]:
    """Each server's runs of wrk, one server after the other, again and again."""
    for url, body in targets.values():  # first times are paid here
        wrk(url, 8, 2, body)
    found: dict[str, dict[int, list[Load]]] = {name: {many: [] for many in connections} for name in targets}
    for _ in range(rounds):
        for many in connections:
            for name, (url, body) in targets.items():
                found[name][many].append(wrk(url, many, seconds, body))
    return found


def replicas(bundle: Path, folder: Path, rows: list[Any], rounds: int, seconds: int) -> dict[str, Any]:
    """One replica and two, one instance after the other, requests of one row and of 64; what wrk itself takes is told."""
    many = (rows * 64)[:64]
    bodies = {
        "1 row": script(folder, "row", JSON, json.dumps({"rows": rows[:1]}).encode()),
        "64 rows": script(folder, "rows", JSON, json.dumps({"rows": many}).encode()),
    }
    with ExitStack() as stack:
        urls = {count: stack.enter_context(served(bundle, folder / str(count), num_replicas=count))[0] for count in (1, 2)}
        targets = {
            f"{name}, {count}": (f"{url}/bench/v1/predict", body)
            for name, body in bodies.items()
            for count, url in urls.items()
        }
        return turns(targets, (32,), rounds, seconds)


def arrow(bundle: Path, folder: Path, rows: list[Any], rounds: int, seconds: int) -> dict[str, Any]:
    """1,000 rows a request, as JSON and as an Arrow stream, answered in the same form; also a net that costs nearly nothing."""
    import pyarrow as pa

    many = (rows * (1000 // len(rows) + 1))[:1000]
    columns = {name: [row[name] for row in many] for name in many[0]}
    table, buffer = pa.table(columns), pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    bodies = {
        "JSON rows": script(folder, "json", JSON, json.dumps({"rows": many}).encode()),
        "JSON columns": script(folder, "columns", JSON, json.dumps({"columns": columns}).encode()),
        "Arrow": script(folder, "arrow", ARROW, buffer.getvalue().to_pybytes()),
    }
    small = train_bundle(folder / "small", (8,))
    found = {}
    for name, one in (("64-256-256-10", bundle), ("64-8-10", small)):
        with served(one, folder / name) as (url, _):
            targets = {body: (f"{url}/bench/v1/predict", lua) for body, lua in bodies.items()}
            found[name] = turns(targets, (4,), rounds, seconds)
    return found


def stages(bundle: Path, folder: Path, rows: list[Any], rounds: int, seconds: int) -> dict[str, float]:
    """Where the microseconds of a lone request of one row go."""
    body = json.dumps({"rows": rows[:1]}).encode()
    row = script(folder, "row", JSON, body)
    with ExitStack() as stack:
        url, [direct, *_] = stack.enter_context(served(bundle, folder))
        alone = stack.enter_context(servers.uvicorn("ours", bundle)).removesuffix("/v1/predict")
        hops: dict[str, tuple[str, Path | None]] = {
            "socket": (f"{alone}/healthz", None), "serve": (f"http://{direct}/bench/healthz", None),
            "all": (f"{url}/bench/healthz", None), "whole": (f"{url}/bench/v1/predict", row),
        }  # fmt: skip
        found = {name: median(runs[1], "p50_us") for name, runs in turns(hops, (1,), rounds, seconds).items()}
    split = {"socket and uvicorn": found["socket"], "Serve's replica wrapper": found["serve"] - found["socket"]}
    split |= {"HAProxy": found["all"] - found["serve"], **in_process(bundle, body)}
    split["the rest (waking up, batching)"] = found["whole"] - sum(split.values())
    return split


def in_process(bundle: Path, body: bytes) -> dict[str, float]:
    """Microseconds of each stage in this process, for one row alone."""
    import orjson

    from seekray_serve.prediction import PredictionApp

    predictor = load(str(bundle))
    app = PredictionApp(predictor)
    job = app.reader.read(orjson.loads(body))
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


def train_bundle(folder: Path, hidden_size: tuple[int, ...] = (256, 256)) -> Path:
    """The MLP 64-256-256-10, or another, on the digits."""
    from seekray.experiment_file import validate
    from seekray.trainer import train

    raw = {
        "name": "bench", "family": "net", "task": "classification", "data": {"source": "sample:digits", "target": "label"},
        "model": {"hidden_size": list(hidden_size)}, "training": {"epochs": 3}, "resources": {"workers": 0},
    }  # fmt: skip
    return Path(train(validate(raw), read_settings({"SEEKRAY_HOME": str(folder)})).bundle)


def plot(split: dict[str, float], path: Path) -> None:
    """The stages of a request, one under the other."""
    from seekray import plots

    figure, [axis] = plots.make_figure(width=7.0, height=3.6)
    names = list(split)
    left = 0.0
    for row, name in enumerate(names):
        axis.barh(row, split[name], left=left, color="#0f766e" if name in ("forward", "features") else "#64748b")
        axis.text(max(left, left + split[name]) + 3, row, f"{split[name]:.0f}", va="center", fontsize=8)
        left += split[name]
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlim(0, left * 1.08)
    axis.set_xlabel("µs of a lone request of one row")
    plots.save(figure, path)


def report(found: dict[str, Any]) -> str:
    """The figures as Markdown, with the targets."""
    out = []
    if "peers" in found:
        table: dict[str, tuple[float, float]] = {
            name: (median(runs[32], "rate"), median(runs[1], "p50_us")) for name, runs in found["peers"].items()
        }
        out.append(
            "| server | requests/s, 32 connections | p50 µs, 1 connection | ours over it | target |\n|---|---|---|---|---|"
        )
        ours = table["seekray"][0]
        for name, (rate, p50) in table.items():
            target = f"{TARGETS[name]}, {_met(ours / rate >= TARGETS[name])}" if name in TARGETS else ""
            out.append(f"| {name} | {rate:,.0f} | {p50:,.0f} | {ours / rate:.2f} | {target} |")
        p50 = table["seekray"][1] / table["bare"][1]
        front = table["front door"][0] / ours
        out.append(f"\np50 at one connection over bare FastAPI's: {p50:.2f} (target {P50}, {_met(p50 <= P50)})")
        out.append(f"front door over direct: {front:.2f} (target {FRONT}, {_met(front >= FRONT)})")
        cores = median(found["peers"]["seekray"][32], "cores")
        out.append(f"wrk took {cores:.2f} cores beside seekray at 32 connections\n")
    if "replicas" in found:
        out.append("| request | 1 replica, requests/s | 2 replicas | ratio | wrk's cores (of all) |\n|---|---|---|---|---|")
        for name in ("1 row", "64 rows"):
            runs = [found["replicas"][f"{name}, {count}"][32] for count in (1, 2)]
            one, two = (median(run, "rate") for run in runs)
            share = " and ".join(f"{median(run, 'cores'):.2f}" for run in runs)
            met = _met(two / one >= REPLICAS)
            out.append(f"| {name} | {one:,.0f} | {two:,.0f} | {two / one:.2f} (target {REPLICAS}, {met}) | {share} |")
        out.append("")
    if "arrow" in found:
        out.append("| net | body of 1,000 rows | rows/s | Arrow over it |\n|---|---|---|---|")
        for net, bodies in found["arrow"].items():
            rates = {name: 1000 * median(runs[4], "rate") for name, runs in bodies.items()}
            for name, rate in rates.items():
                ratio = rates["Arrow"] / rate
                target = f" (target {ROWS}, {_met(ratio >= ROWS)})" if name == "JSON rows" else ""
                out.append(f"| {net} | {name} | {rate:,.0f} | {ratio:.2f}{target} |")
        out.append("")
    if "stages" in found:
        out.append("| where one request's microseconds go | µs |\n|---|---|")
        out += [f"| {name} | {microseconds:.0f} |" for name, microseconds in found["stages"].items()]
    return "\n".join(out)


def _met(yes: bool) -> str:
    return "met" if yes else "**missed**"


def main() -> None:
    """Measure and print, as Markdown or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--peers", type=Path, default=servers.ROOT / ".venv-peers")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends then too
    if not shutil.which("wrk"):
        raise SystemExit("wrk is not installed; on Debian: apt-get install wrk")
    found: dict[str, Any] = {"host": socket.gethostname(), "cores": os.cpu_count(), "load": os.getloadavg()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = given.bundle or train_bundle(folder)
        rows = json.loads((bundle / "sample.json").read_text())["rows"]
        for part in given.parts.split(","):
            (folder / part).mkdir()
            more = {"python": servers.peers_python(given.peers)} if part == "peers" else {}
            found[part] = globals()[part](bundle, folder / part, rows, given.rounds, given.seconds, **more)
    if given.plot and "stages" in found:
        plot(found["stages"], given.plot)
    print(json.dumps(found, indent=2, default=vars) if given.json else report(found))


if __name__ == "__main__":
    main()
