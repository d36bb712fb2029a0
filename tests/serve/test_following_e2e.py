"""An endpoint that follows an alias, with a real registry: flips under load, refusals, a registry that is away."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("ray.serve")

from small_lm import write_bundle
from tests.serving import Load, call, processes, remove, rewritten, sample, until

from seekray.settings import Settings
from seekray.tracking import registry
from seekray.tracking.client import client
from seekray.tracking.versions import log_model
from seekray_serve.lifecycle import deploy
from seekray_serve.lifecycle.models_file import to_serve
from seekray_serve.lifecycle.ready import ModelToServe

pytestmark = [pytest.mark.ray, pytest.mark.e2e]


def register(name: str, bundle: Path, where: Settings) -> str:
    """A version of a model from a bundle folder."""
    from seekray.storage import Storage

    server = client(where)
    experiment = server.get_experiment_by_name("tests") or server.get_experiment(
        server.create_experiment("tests", where.artifacts_uri)
    )
    run = server.create_run(experiment.experiment_id)
    version = log_model(server, run.info.run_id, Storage(str(bundle.parent)), bundle.name, name)
    assert version is not None
    return version


def following(name: str, where: Settings, alias: str = "champion") -> ModelToServe:
    return to_serve(f"{name}@{alias}", where)


def move(name: str, version: str, where: Settings) -> float:
    """Move the alias; when it had moved."""
    registry.set_alias(name, "champion", version, "promote", None, where)
    return time.monotonic()


@pytest.fixture(scope="module")
def flipping(served, bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, str]]:
    """`numbers`, which follows `champion` and has three versions, the third of which answers otherwise than it should."""
    where, result = served
    folder = tmp_path_factory.mktemp("flip")
    wrong = rewritten(bundles["digits2"], folder / "wrong", lambda s: s["answers"]["prediction"].reverse())
    assert [register("numbers", bundle, where) for bundle in (bundles["digits1"], bundles["digits2"], wrong)] == ["1", "2", "3"]
    move("numbers", "1", where)
    deploy.up([following("numbers", where)], where)
    yield where, result["url"]
    remove(where, "numbers")


@pytest.fixture(scope="module")
def chatting(served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, str]]:
    """`talk`, a model of texts of two versions."""
    where, result = served
    folder = tmp_path_factory.mktemp("talk")
    for layers in (2, 1):
        register("talk", write_bundle(folder / str(layers), context_length=1024, num_layers=layers), where)
    move("talk", "1", where)
    deploy.up([following("talk", where)], where)
    yield where, result["url"]
    remove(where, "talk")


def status(where: Settings, name: str) -> dict[str, Any]:
    return {model["name"]: model for model in deploy.status(where)["models"]}[name]


def test_the_new_version_answers_within_seconds_and_a_bad_one_never(flipping, bundles) -> None:
    where, url = flipping
    body = {"rows": sample(bundles["digits1"])}
    expected = {str(n): json.loads((bundles[f"digits{n}"] / "sample.json").read_text())["answers"] for n in (1, 2)}

    def version() -> str:
        code, answer = call(f"{url}/numbers/v1/predict", body)
        assert code == 200
        kept = expected[answer["version"]]
        for number, row in enumerate(answer["probabilities"]):
            for name, value in row.items():
                assert abs(value - kept[f"probability_{name}"][number]) < 1e-6
        return str(answer["version"])

    assert version() == "1"
    with Load(f"{url}/numbers/v1/predict", body) as seen:
        for target in ("2", "1", "2"):
            move("numbers", target, where)
            until(version, target, timeout_s=30)  # of a busy machine; the slow test holds it to 5 s
        move("numbers", "3", where)
        until(lambda: bool(status(where, "numbers")["problem"]), expected=True, timeout_s=30)
        time.sleep(1.5)
    assert seen.keys() == {"1", "2"}  # no failure, and never the third
    found = status(where, "numbers")
    assert (found["version"], found["alias"]) == ("2", "champion")
    assert "version 3 does not take over: its answers are not those kept" in found["problem"]
    move("numbers", "2", where)
    until(lambda: status(where, "numbers")["problem"], None, timeout_s=30)


@pytest.mark.slow
def test_a_replica_that_starts_later_has_the_version_of_now(flipping, bundles) -> None:
    where, url = flipping
    move("numbers", "2", where)
    until(lambda: status(where, "numbers")["version"], "2")
    pids = replicas(where, "numbers")
    again = deploy.up([following("numbers", where)], where)  # the alias's version is there: nothing is deployed anew
    assert replicas(where, "numbers") == pids
    assert {m["name"]: m["version"] for m in again["models"]}["numbers"] == "2"
    for pid in pids:
        psutil.Process(pid).kill()
    until(lambda: replicas(where, "numbers") not in (pids, []), expected=True, timeout_s=30)
    answers = []
    deadline = time.monotonic() + 30
    while len(answers) < 20 and time.monotonic() < deadline:
        code, answer = call(f"{url}/numbers/v1/predict", {"rows": sample(bundles["digits1"])})
        answers += [answer["version"]] if code == 200 else []
    assert set(answers) == {"2"}  # and not the first, with which it was deployed


@pytest.mark.slow
def test_a_stream_ends_on_its_version_and_a_dead_question_is_asked_again(chatting) -> None:
    openai = pytest.importorskip("openai")
    where, url = chatting
    ask = openai.OpenAI(base_url=f"{url}/talk/v1", api_key="none", max_retries=0).completions.create
    request = {"model": "talk", "prompt": "abc", "seed": 3, "max_tokens": 900, "extra_body": {"min_tokens": 900}}

    def version() -> str:
        return str(ask(model="talk", prompt="a", max_tokens=1).version)

    events = iter(ask(**request, stream=True))
    first = next(events)
    move("talk", "2", where)
    until(version, "2")
    rest = list(events)
    assert {e.version for e in (first, *rest)} == {"1"}
    assert rest[-1].choices[0].finish_reason == "length"
    (registry_process,) = processes(where, "Registry")
    psutil.Process(registry_process).kill()
    move("talk", "1", where)
    until(version, "1", timeout_s=20)
    until(lambda: status(where, "talk")["problem"], None)


def replicas(where: Settings, name: str) -> list[int]:
    """Process ids of a model's replicas."""
    return processes(where, f"ServeReplica:{name}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["numbers", "talk"])
def test_a_hundred_flips_under_load_without_an_error_or_more_memory(flipping, chatting, bundles, name: str) -> None:
    where, url = flipping
    path = f"{url}/{name}/v1/" + ("predict" if name == "numbers" else "completions")
    body = {"rows": sample(bundles["digits1"])[:1]} if name == "numbers" else {"prompt": "abc", "max_tokens": 20}
    move(name, "1", where)
    until(lambda: call(path, body)[1]["version"], "1")
    (pid,) = replicas(where, name)
    memory: list[float] = []
    slowest = 0.0
    with Load(path, body) as seen:
        for flip, target in zip(range(100), itertools.cycle("21")):
            move(name, target, where)
            slowest = max(slowest, until(lambda: call(path, body)[1]["version"], target))
            if flip % 10 == 9:
                memory.append(psutil.Process(pid).memory_info().rss / 2**20)
    print(f"{name}: {sum(seen.values())} answers, slowest flip {slowest:.2f} s, memory {memory}")
    assert seen.keys() == {"1", "2"}
    assert replicas(where, name) == [pid]
    assert memory[-1] < memory[2] * 1.03
