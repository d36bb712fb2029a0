"""The servers of `benchmarks.serving`, each in a process of its own, and the load generator."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.shared import BUNDLE, answers, load
from seekray_serve.lifecycle import instance

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).parent / "peers"
START_S = 120


def _fastapi(predictor: Any, predict: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Any:
    from fastapi import FastAPI
    from pydantic import create_model

    fields: dict[str, Any] = {
        feature.name: (float | None if feature.kind == "numeric" else Any, ...) for feature in predictor.schema.features
    }
    row = create_model("Row", **fields)
    request = create_model("Request", rows=(list[row], ...))  # type: ignore[valid-type]
    app = FastAPI()

    async def handler(body: request) -> dict[str, Any]:  # type: ignore[valid-type]
        return predict([dict(row) for row in body.rows])  # type: ignore[attr-defined]

    handler.__annotations__["body"] = request
    app.post("/v1/predict")(handler)
    return app


def bare() -> Any:
    """FastAPI around the same predictor, as a user would write it."""
    predictor = load()
    return _fastapi(predictor, lambda rows: answers(predictor, rows))


def bare_torch() -> Any:
    """FastAPI around plain layers of the same sizes, without any features: less than any endpoint of a trained model does."""
    import torch

    predictor = load()
    names = [feature.name for feature in predictor.schema.features if feature.kind == "numeric"]
    hidden = predictor.info["model"]["hidden_size"]
    sizes = [len(names), *([hidden] if isinstance(hidden, int) else hidden), len(predictor.schema.classes or [0])]
    layers: list[torch.nn.Module] = []
    for width, following in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(width, following), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers[:-1]).eval()

    def predict(rows: list[dict[str, Any]]) -> dict[str, Any]:
        with torch.inference_mode():
            inputs = torch.tensor([[row[name] or 0.0 for name in names] for row in rows])
            probabilities = network(inputs).double().softmax(1)
        named = [{str(i): value for i, value in enumerate(row)} for row in probabilities.tolist()]
        return {"predictions": probabilities.argmax(1).tolist(), "probabilities": named, "model": "bench", "version": "1"}

    return _fastapi(predictor, predict)


def ours() -> Any:
    """Our application on uvicorn alone, without Serve and HAProxy."""
    from seekray_serve.prediction import PredictionApp

    return PredictionApp(load())


@contextmanager
def _process(command: Sequence[str], bundle: Path, port: int, cwd: Path, more: Mapping[str, str] = {}) -> Iterator[str]:
    path = os.pathsep.join([*instance.source_roots(), str(ROOT), os.environ.get("PYTHONPATH", "")])
    programs = os.pathsep.join([str(Path(command[0]).parent), os.environ["PATH"]])
    environment = {**os.environ, BUNDLE: str(bundle), "PYTHONPATH": path, "PATH": programs, **more}
    log = Path(os.environ.get("BENCH_LOGS", os.devnull))
    output = (log / f"{port}.log").open("wb") if log.is_dir() else subprocess.DEVNULL
    process = subprocess.Popen(command, env=environment, cwd=cwd, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + START_S
        while not instance.listens(f"127.0.0.1:{port}"):
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"{' '.join(command[:4])} did not start; BENCH_LOGS=FOLDER keeps what it says")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            # BentoML's workers are in process groups of their own.
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    each.kill()
        process.wait()


@contextmanager
def uvicorn(factory: str, bundle: Path) -> Iterator[str]:
    """One of this file's applications; gives its URL."""
    port = instance.free_ports(1)[0]
    command = [sys.executable, "-m", "uvicorn", "--factory", f"benchmarks.serving_servers:{factory}", "--port", str(port)]
    command += ["--log-level", "warning", "--no-access-log", "--loop", "uvloop", "--http", "httptools"]
    with _process(command, bundle, port, ROOT) as url:
        yield f"{url}/v1/predict"


@contextmanager
def litserve(bundle: Path, python: Path, batch: int) -> Iterator[str]:
    """LitServe, with its own batching where `batch` is over 1."""
    port = instance.free_ports(1)[0]
    with _process([str(python), "lit.py", str(port), str(batch)], bundle, port, PEERS) as url:
        yield f"{url}/v1/predict"


@contextmanager
def bentoml(bundle: Path, python: Path) -> Iterator[str]:
    """BentoML, one worker."""
    port = instance.free_ports(1)[0]
    command = [str(python.with_name("bentoml")), "serve", "bento:Bench", "--port", str(port), "--host", "127.0.0.1"]
    with _process(command, bundle, port, PEERS, {"BENTOML_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1"}) as url:
        yield f"{url}/v1/predict"


@contextmanager
def mlflow(bundle: Path, folder: Path) -> Iterator[str]:
    """`mlflow models serve` of the model that MLflow's registry holds of such a bundle."""
    from seekray.tracking.versions import save

    save(bundle, folder / "linked", json.loads((bundle / "bundle.json").read_text()))
    model = Path(shutil.copytree(folder / "linked", folder / "mlflow"))  # as the artifact store has it, files and no links
    port = instance.free_ports(1)[0]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--port", str(port)]
    with _process([*command, "--env-manager", "local", "--workers", "1"], bundle, port, PEERS) as url:
        yield f"{url}/invocations"


def peers_python(folder: Path) -> Path:
    """Python of an environment with the peers, made where it is not there: their packages and ours do not share versions.

    Ours come after theirs on its path, so that torch is not installed twice.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        site = next((folder / "lib").glob("python*")) / "site-packages"
        import torch

        (site / "zz_ours.pth").write_text(str(Path(torch.__file__).parents[1]))
        command = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
            str(PEERS / "requirements.txt"),
        ]
        if subprocess.run(command, check=False).returncode:
            shutil.rmtree(folder)
            raise SystemExit("the peers could not be installed")
    return python


@dataclass(frozen=True)
class Load:
    """What a run of wrk saw: requests/s, median and 99th percentile in µs, and the cores that wrk itself took."""

    rate: float
    p50_us: float
    p99_us: float
    cores: float


def wrk(url: str, connections: int, seconds: int, script: Path | None) -> Load:
    """A closed loop of requests. Any answer but 2xx ends the benchmark."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", "--latency"]
    command += ["-s", str(script)] if script else []
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    text = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - start
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(f"{url} answered with errors:\n{text}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert rate
    p50, p99 = (_microseconds(text, percent) for percent in ("50", "99"))
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Load(float(rate[1]), p50, p99, spent / wall)


def _microseconds(text: str, percent: str) -> float:
    found = re.search(rf"\n\s+{percent}%\s+([\d.]+)(us|ms|s)", text)
    assert found
    return float(found[1]) * {"us": 1, "ms": 1e3, "s": 1e6}[found[2]]


def script(folder: Path, name: str, content_type: str, body: bytes) -> Path:
    """What wrk sends: a POST of `body`."""
    (folder / f"{name}.body").write_bytes(body)
    path = folder / f"{name}.lua"
    path.write_text(
        f"local file = io.open('{folder}/{name}.body', 'rb')\nwrk.method = 'POST'\nwrk.body = file:read('*a')\nfile:close()\n"
        f"wrk.headers['Content-Type'] = '{content_type}'\n"
    )
    return path


def replica_addresses(pids: list[int], name: str) -> list[str]:
    """`host:port` of the model's replicas, behind HAProxy."""
    import psutil

    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            for entry in psutil.Process(pid).net_connections("tcp"):
                own = entry.status == psutil.CONN_LISTEN and entry.laddr.ip == instance.LOOPBACK
                address = f"{entry.laddr.ip}:{entry.laddr.port}"
                if own and _routes(address) == {f"/{name}": name}:
                    found.append(address)
    if not found:
        raise SystemExit("the replica's port was not found")
    return found


def _routes(address: str) -> Any:
    try:
        with urllib.request.urlopen(f"http://{address}/-/routes", timeout=2) as answer:
            return json.loads(answer.read())
    except (OSError, ValueError):
        return None
