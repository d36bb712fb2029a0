"""What is counted, as Prometheus reads it: by its own parser here, by a real Prometheus from a real endpoint below."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import time
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from small_lm import write_bundle
from tests.serve.conftest import Client, FakePredictor
from tests.serving import Load, call, free_port, sample, until

from seekray_serve import generation, metrics, prediction
from seekray_serve.front import FrontApp
from seekray_serve.options import Limits
from seekray_serve.versions import Versions

ROW = {"alcohol": 13.0, "ash": 2.5, "colour": "red"}
DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana-dashboard.json"


def read(body: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """(name, labels) → value."""
    found = {}
    for family in text_string_to_metric_families(body.decode()):
        assert family.documentation
        assert family.type != "unknown", family.name
        for one in family.samples:
            key = (one.name, frozenset(one.labels.items()))
            assert key not in found
            found[key] = one.value
    return found


def total(found: dict[Any, float], name: str, **labels: str) -> float:
    """The sum of the samples that have these labels."""
    return sum(value for (key, own), value in found.items() if key == name and labels.items() <= own)


def test_answers_batches_and_versions_are_counted_and_counts_survive_a_flip() -> None:
    def version(number: str) -> Any:
        made = FakePredictor()
        made.version = number
        return prediction.PredictionApp(made, Limits(max_rows=5))

    async def main() -> Any:
        versions = Versions(version("1"), replica="r1")
        await versions.startup()
        client = Client(versions, "/wine")
        before = read((await client("GET", "/metrics")).body)
        for _ in range(3):
            await client("POST", "/v1/predict", {"rows": [ROW, ROW]})
        await client("POST", "/v1/predict", {"rows": [ROW] * 6})
        await client("POST", "/v1/predict", b"{")
        await client("GET", "/nothing/at/all")
        await versions.replace(version("2"))
        await client("POST", "/v1/predict", {"rows": [ROW]})
        await versions.replace(version("1"))
        await client("POST", "/v1/predict", {"rows": [ROW]})
        await asyncio.sleep(0.05)
        answer = await client("GET", "/metrics")
        for number in range(3, 30):
            await versions.replace(version(str(number)))
        last = read((await client("GET", "/metrics")).body)
        await versions.shutdown()
        return before, answer, last

    before, answer, last = asyncio.run(main())
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = read(answer.body)
    requests = "seekray_requests_total"
    assert total(found, requests, path="/v1/predict", status="200", version="1") == 4
    assert total(found, requests, path="/v1/predict", status="200", version="2", model="wine", replica="r1") == 1
    assert total(found, requests, path="/v1/predict", status="413") == 1
    assert total(found, requests, path="/v1/predict", status="400") == 1
    assert total(found, requests, path="other", status="404") == 1
    assert total(found, "seekray_request_duration_seconds_count", path="/v1/predict", version="1") == 6
    assert total(found, "seekray_request_duration_seconds_bucket", path="/v1/predict", version="1", le="+Inf") == 6
    grown = total(found, "seekray_rows_total", version="1") - total(before, "seekray_rows_total", version="1")
    assert grown == 3 * 2 + 1 + 5  # the warm-up of the second application of version 1 too
    assert total(found, "seekray_batch_size_bucket", version="1", le="1") < total(
        found, "seekray_batch_size_count", version="1"
    )
    assert total(found, "seekray_version_info", version="1") == 1
    assert total(found, "seekray_version_info") == 1
    assert total(found, "process_resident_memory_bytes") > 2**20
    assert len({dict(labels)["version"] for name, labels in last if name == requests}) <= 8  # no series without an end


def test_texts_are_counted_and_an_engines_cache(tmp_path: Path) -> None:
    app = generation.load(str(write_bundle(tmp_path)), Limits(), name="chat", version="1")

    async def main() -> bytes:
        versions = Versions(app)
        await versions.startup()
        client = Client(versions)
        for stream in (False, True):
            body = {"prompt": "abc", "max_tokens": 10, "min_tokens": 10, "stream": stream}
            assert (await client("POST", "/v1/completions", body)).status == 200
        answer = await client("GET", "/metrics")
        await versions.shutdown()
        return answer.body

    found = read(asyncio.run(main()))
    assert total(found, "seekray_generated_tokens_total") == 24  # 4 of the warm-up
    assert total(found, "seekray_prompt_tokens_total") == 8  # each with the one that begins a text
    assert total(found, "seekray_time_to_first_token_seconds_count") == 2
    assert {"seekray_kv_cache_blocks", "seekray_prefix_cache_hit_tokens_total"} <= {name for name, _ in found}
    assert total(found, "seekray_kv_cache_blocks_used") == 0
    assert total(found, "seekray_engine_failures_total") == 0
    assert "seekray_preemptions_total" in {name for name, _ in found}
    assert total(found, "seekray_preemptions_total") == 0


def test_the_front_door_tells_of_all_replicas() -> None:
    class Board:
        def read(self) -> dict[str, Any]:
            return {}

        def measured(self) -> list[metrics.Families]:
            found = []
            for replica in "ab":
                meter = metrics.Meter()
                meter.request('/v1/"odd"\\path', 200, 0.1)
                found.append(meter.families({"model": "wine", "replica": replica}, metrics.Measures({"rows": 2.5})))
            return found

    front = FrontApp("http://127.0.0.1:1", board=Board())

    async def main() -> bytes:
        await Client(front)("GET", "/healthz")
        return (await Client(front)("GET", "/metrics")).body

    found = read(asyncio.run(main()))
    assert total(found, "seekray_requests_total", model="wine") == 2
    assert total(found, "seekray_rows_total") == 5
    assert total(found, "seekray_requests_total", model="front", path="/healthz") == 1
    assert total(found, "seekray_requests_total", path='/v1/"odd"\\path') == 2


def expressions() -> list[str]:
    """What the dashboard asks."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


@pytest.mark.ray
@pytest.mark.e2e
def test_a_real_prometheus_scrapes_a_real_endpoint_and_answers_the_dashboard(served, bundles, tmp_path: Path) -> None:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus on this machine (Debian: apt-get install prometheus)")
    url = served[1]["url"]
    targets = [("front", "/metrics"), ("digits", "/digits/metrics"), ("chat", "/chat/metrics")]
    host = url.removeprefix("http://")
    jobs = [
        {"job_name": name, "scrape_interval": "500ms", "metrics_path": path, "static_configs": [{"targets": [host]}]}
        for name, path in targets
    ]
    (tmp_path / "prometheus.yml").write_text(json.dumps({"global": {"scrape_timeout": "500ms"}, "scrape_configs": jobs}))
    port = free_port()
    command = [program, f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    process = subprocess.Popen(
        [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=(tmp_path / "log").open("wb")
    )

    def query(text: str) -> list[dict[str, Any]]:
        try:
            path = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(text)}"
            status, answer = call(path)
        except OSError:
            return []
        assert status in (200, 503), answer
        return answer["data"]["result"] if status == 200 else []

    try:
        body = {"rows": sample(bundles["digits1"])[:2]}
        call(f"{url}/chat/v1/completions", {"prompt": "abc", "max_tokens": 5})
        with Load(f"{url}/digits/v1/predict", body, clients=2):
            until(lambda: {r["metric"]["job"]: r["value"][1] for r in query("up")}, dict.fromkeys(dict(targets), "1"), 60)
            time.sleep(6)  # replicas tell the front door every 5 s
            call(f"{url}/chat/v1/completions", {"prompt": "abc", "max_tokens": 5})
            time.sleep(1.5)
        [rate] = query('sum(rate(seekray_requests_total{job="digits", path="/v1/predict", status="200"}[4s]))')
        assert float(rate["value"][1]) > 10
        for job in ("front", "digits"):
            [info] = query(f'seekray_version_info{{job="{job}", model="digits"}}')
            assert info["metric"]["version"] == "1"
        for text in expressions():
            asked = text.replace("$model", ".*").replace("$__rate_interval", "8s")
            assert query(asked), text
            assert re.search(r"(seekray|process)_", text)
    finally:
        process.terminate()
        process.wait()
