"""Serving texts: our endpoint at 16 streams and at one, beside the offline generator, FastAPI around `transformers.generate`
and `transformers serve`; what a long prompt costs the others; latency by offered load.

    python -m benchmarks.generation_serving [--rounds 3] [--parts streams transformers delay load] [--plot FILE] [--json]

The Llama of 5.3 million parameters of `benchmarks.generation`, float32, one torch thread each, random prompts of 16 tokens (no
two begin alike), greedy, 32 to 96 new tokens (64 in the mean). A token is a character, so the client counts what it gets.
All servers run at the same time and take turns; the client shares their cores. `seekray` is the endpoint behind Ray Serve
and HAProxy, `replica` the same application on uvicorn alone.

* streams: tokens/s and time to the first token with one stream and with 16, each asking again when it has its answer; beside
  them the offline generator with texts of one length, and its engine alone with those of the streams.
* transformers: `transformers serve` among them, where `accelerate` is installed.
* delay: 15 texts are being made when a prompt of 512 tokens comes; how much later than usual their next tokens are.
* load: requests come at random (Poisson) at a fixed rate whether or not earlier ones are done; the whole answer's time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import generation_servers as servers
from benchmarks.generation_client import LONG, PROMPT, STREAMS, asked_for, closed, delay, load, text
from seekray.settings import read_settings
from seekray_serve.lifecycle import deploy, instance
from seekray_serve.lifecycle.ready import ModelToServe

TARGETS = {"16 streams : 1": 4.0, "16 streams : offline": 0.85, "16 streams : FastAPI": 2.0}
FIRST_TOKEN, DELAY_STEPS = 3.0, 2.0
RATES = (0.1, 0.25, 0.5, 0.7, 0.85, 1.0, 1.2)  # of what the server can do


def offline(folder: Path, rounds: int) -> float:
    """Tokens/s of the generator in this process with 64 prompts, the median of the rounds."""
    import torch

    from seekray.generator import Generator

    torch.set_num_threads(1)
    generator = Generator.load(folder / "bundle")
    found = []
    for seed in range(rounds + 1):
        given = random.Random(seed)
        prompts, began = [text(given, PROMPT) for _ in range(64)], time.perf_counter()
        made = generator.generate(prompts, temperature=0, min_tokens=64, max_tokens=64)
        found.append(sum(made.column("tokens").to_pylist()) / (time.perf_counter() - began))
    return statistics.median(found[1:])


def engine_alone(folder: Path, requests: int, seed: int) -> float:
    """Tokens/s of the engine in this process, over the requests of `closed`: their lengths differ, `offline`'s do not."""
    import torch

    from seekray.generator import Generator

    torch.set_num_threads(1)
    generator, todo = Generator.load(folder / "bundle"), asked_for(requests, seed)
    engine, tokens = generator.engine(STREAMS), 0

    def begin() -> None:
        prompt, count = todo.pop()
        [job] = generator.jobs(prompts=[prompt], temperature=0, min_tokens=count, max_tokens=count)
        engine.submit(job)

    began = time.perf_counter()
    for _ in range(STREAMS):
        begin()
    while len(engine) == STREAMS:
        pieces = engine.step()
        tokens += len(pieces)
        for piece in pieces:
            if piece.finish and todo:
                begin()
    return tokens / (time.perf_counter() - began)


def measure(folder: Path, rounds: int, parts: list[str], seconds: float) -> dict[str, Any]:
    """All figures, as one document."""
    servers.write(folder)
    settings = read_settings({"SEEKRAY_HOME": str(folder)})
    ours: Callable[[int], dict[str, Any]] = lambda n: {"stream": True, "temperature": 0, "min_tokens": n}  # noqa: E731
    theirs: Callable[[int], dict[str, Any]] = lambda _: {}  # noqa: E731
    hf: Callable[[int], dict[str, Any]] = lambda _: {  # noqa: E731
        "stream": True, "temperature": 0, "model": str(folder / "llama"),
    }  # fmt: skip
    with ExitStack() as stack:
        stack.callback(deploy.down, settings)
        url = deploy.up([ModelToServe("bench", "1", folder / "bundle")], settings, port=instance.free_ports(1)[0])["url"]
        known = {
            "seekray": {"url": f"{url}/bench/v1/completions", "asked": ours},
            "FastAPI": {"url": stack.enter_context(servers.uvicorn("wrapper", folder)) + "/v1/completions", "asked": theirs},
        }  # fmt: skip
        if "streams" in parts:
            replica = stack.enter_context(servers.uvicorn("replica", folder))
            known["replica"] = {"url": f"{replica}/v1/completions", "asked": ours}
        try:
            if "transformers" in parts:
                theirs_url = stack.enter_context(servers.transformers_serve(folder))
                known["transformers serve"] = {"url": f"{theirs_url}/v1/completions", "asked": hf}
        except SystemExit as error:
            print(error, file=sys.stderr)
        for server in known.values():
            asyncio.run(closed(server, 2, 2, 99))  # first times are paid here
        result: dict[str, Any] = {}
        if "streams" in parts:
            result["streams"] = _streams(known, folder, rounds)
        if "delay" in parts:
            found = [asyncio.run(delay(known["seekray"], 6, seed)) for seed in range(rounds)]
            result["delay"] = {key: statistics.median(one[key] for one in found) for key in found[0]}
        if "load" in parts:
            result["load"] = _load(known, seconds)
    return result


def _streams(known: dict[str, dict[str, Any]], folder: Path, rounds: int) -> dict[str, Any]:
    """Medians of rounds in which the servers take turns."""
    found: dict[str, dict[int, list[dict[str, Any]]]] = {name: {1: [], STREAMS: []} for name in known}
    alone, engine = [], []
    for seed in range(rounds):
        alone.append(offline(folder, 1))
        engine.append(engine_alone(folder, 80, seed))
        for name, server in known.items():
            quick = name in ("seekray", "replica")
            found[name][1].append(asyncio.run(closed(server, 1, 8 if quick else 3, seed)))
            found[name][STREAMS].append(asyncio.run(closed(server, STREAMS, 80 if quick else 20, seed)))
    table = {
        name: {str(n): {key: statistics.median(one[key] for one in runs) for key in runs[0]} for n, runs in of.items()}
        for name, of in found.items()
    }
    # Ratios of what was measured one after the other, so that a busy machine hits both sides.
    rate = {name: {n: [one["tokens_s"] for one in runs] for n, runs in of.items()} for name, of in found.items()}
    first = {n: [one["first_ms"] for one in found["seekray"][n]] for n in (1, STREAMS)}

    def ratio(above: list[float], below: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(above, below, strict=True))

    many = rate["seekray"][STREAMS]
    ratios = {
        "16 streams : 1": ratio(many, rate["seekray"][1]),
        "16 streams : offline": ratio(many, alone),
        "16 streams : FastAPI": ratio(many, rate["FastAPI"][STREAMS]),
        "replica, 16 streams : offline": ratio(rate["replica"][STREAMS], alone),
        "16 streams : engine alone": ratio(many, engine),
        "replica, 16 streams : engine alone": ratio(rate["replica"][STREAMS], engine),
        "first token, 16 : 1": ratio(first[STREAMS], first[1]),
    }
    if "transformers serve" in rate:
        ratios["16 streams : transformers serve"] = ratio(many, rate["transformers serve"][STREAMS])
    medians = {"offline": statistics.median(alone), "engine_alone": statistics.median(engine)}
    return {"servers": table, **medians, "ratios": ratios}


def _load(known: dict[str, dict[str, Any]], seconds: float) -> dict[str, list[dict[str, float]]]:
    """Each server at parts of its own capacity, ours also at the wrapper's rates."""
    curves = {}
    for name in ("seekray", "FastAPI"):
        capacity = asyncio.run(closed(known[name], STREAMS, 64 if name == "seekray" else 16, 7))["tokens_s"] / 64
        curves[name] = [asyncio.run(load(known[name], part * capacity, seconds, 11)) for part in RATES]
    return curves


def plot(curves: dict[str, list[dict[str, float]]], file: Path) -> None:
    """Offered load against the time of the whole answer."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for colour, (name, points) in zip(("tab:blue", "tab:orange"), curves.items(), strict=True):
        rates = [64 * point["rate"] for point in points]
        for key, style in (("p50_s", "-o"), ("p99_s", "--s")):
            axes.plot(rates, [point[key] for point in points], style, color=colour, label=f"{name}, {key[:3]}")
    axes.set(xscale="log", yscale="log", xlabel="offered load, tokens/s (64 a request)", ylabel="seconds to the whole answer")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("" if axis is axes.xaxis else "{x:g}")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def report(result: dict[str, Any]) -> bool:
    """Print as Markdown; whether every target was met."""
    met = True
    if found := result.get("streams"):
        print("| server | tokens/s, 1 stream | 16 streams | first token ms, 1 stream | 16 streams | p99 | all at once |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for name, of in found["servers"].items():
            one, many = of["1"], of[str(STREAMS)]
            cells = [one["tokens_s"], many["tokens_s"], one["first_ms"], many["first_ms"], many["first_p99_ms"]]
            print(f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in [*cells, many["first_together_ms"]]) + " |")
        print(f"| offline | | {found['offline']:.0f} | | | | |")
        print(f"| engine alone | | {found['engine_alone']:.0f} | | | | |\n")
        for name, value in found["ratios"].items():
            target = TARGETS.get(name, FIRST_TOKEN if name.startswith("first") else None)
            good = target is None or (value <= target if name.startswith("first") else value >= target)
            met &= good
            print(f"* {name}: {value:.2f}" + (f", target {target}: {'met' if good else 'missed'}" if target else ""))
    if found := result.get("delay"):
        good = found["next_later_steps"] <= DELAY_STEPS and found["during_later_steps"] <= DELAY_STEPS
        met &= good
        print(f"\n* a prompt of {LONG} tokens: others' next token {found['next_later_steps']:.2f} steps later, ", end="")
        print(f"while it is read {found['during_later_steps']:.2f} (p99 {found['during_p99_later_steps']:.2f}; ", end="")
        print(
            f"without it p99 {found['usual_p99_later_steps']:.2f}), target {DELAY_STEPS}: {'met' if good else 'missed'}; ",
            end="",
        )
        print(f"a step is {found['step_ms']:.1f} ms, the prompt {found['reading_ms']:.0f} ms, {found['arrivals']:.0f} of them")
    if found := result.get("load"):
        print("\n| server | offered, requests/s | answered | p50 s | p99 s |\n|---|---:|---:|---:|---:|")
        for name, points in found.items():
            for p in points:
                print(f"| {name} | {p['rate']:.2f} | {p['requests']} | {p['p50_s']:.3f} | {p['p99_s']:.3f} |")
    return met


def main() -> int:
    """Exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="of each point of the load's curve")
    parts = ("streams", "transformers", "delay", "load")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--plot", type=Path, help="write the load's curve here")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end too
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), given.rounds, given.parts, given.seconds)
    if given.plot and "load" in result:
        plot(result["load"], given.plot)
    if given.json:
        print(json.dumps(result, indent=1))
        return 0
    return 0 if report(result) else 1


if __name__ == "__main__":
    sys.exit(main())
