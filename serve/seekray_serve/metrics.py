"""What is counted of requests, batches and tokens, and how Prometheus reads it (text format 0.0.4). Knows no Ray.

Counting is a dictionary look-up and an addition; everything else is done when somebody asks. Families are plain values, so that
one replica's can be put beside another's: `{name: {"type", "help", "samples": [[suffix, labels, value], …]}}`.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Families = dict[str, dict[str, Any]]
Labels = dict[str, str]

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
# Seconds: from a small model alone to a text of minutes.
DURATIONS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0)
# An engine's own names, and those that are told.
ENGINE_COUNTERS = {"prefix_tokens": "prefix_cache_hit_tokens", "preemptions": "preemptions", "failures": "engine_failures"}
ENGINE_GAUGES = {
    "blocks": "kv_cache_blocks", "blocks_used": "kv_cache_blocks_used", "blocks_kept": "kv_cache_blocks_kept",
}  # fmt: skip
_STARTED = time.time()
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Histogram:
    """Counts of values up to each of `bounds`."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def take(self, other: Histogram) -> None:
        """Add another's counts."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def samples(self, labels: Labels) -> list[list[Any]]:
        """As Prometheus has it: cumulative buckets, their sum and count."""
        found: list[list[Any]] = []
        total = 0
        for bound, count in zip((*map(_number, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            found.append(["_bucket", {**labels, "le": bound}, total])
        return [*found, ["_sum", labels, self.sum], ["_count", labels, total]]


@dataclass
class Measures:
    """What an application counts beside its answers. counters only grow; gauges are what is now."""

    counters: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)

    def take(self, other: Measures) -> None:
        """Add another's."""
        for mine, theirs in ((self.counters, other.counters), (self.gauges, other.gauges)):
            for name, value in theirs.items():
                mine[name] = mine.get(name, 0) + value
        for name, histogram in other.histograms.items():
            self.histograms.setdefault(name, Histogram(histogram.bounds)).take(histogram)


class TextCounts:
    """What is counted of texts beside what their engine counts."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.first_token = Histogram(DURATIONS)

    def measures(self, load: Mapping[str, float], engine: Mapping[str, float]) -> Measures:
        """load: `{queued, running, tokens}`. engine: its own numbers by name; one that is not known here is left out."""
        counters: dict[str, float] = {"prompt_tokens": self.prompt_tokens, "generated_tokens": load["tokens"]}
        gauges: dict[str, float] = {"queue_size": load["queued"], "texts_running": load["running"]}
        counters |= {ENGINE_COUNTERS[name]: value for name, value in engine.items() if name in ENGINE_COUNTERS}
        gauges |= {ENGINE_GAUGES[name]: value for name, value in engine.items() if name in ENGINE_GAUGES}
        return Measures(counters, gauges, {"time_to_first_token_seconds": self.first_token})


class Meter:
    """Answers of one application, and of those before it that had the same version: `past` has what else they counted."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], int] = {}
        self.durations: dict[str, Histogram] = {}
        self.past = Measures()

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an answer. path: a route's, so that there are few."""
        key = (path, status)
        self.requests[key] = self.requests.get(key, 0) + 1
        histogram = self.durations.get(path)
        if histogram is None:
            histogram = self.durations[path] = Histogram(DURATIONS)
        histogram.observe(seconds)

    def families(self, labels: Labels, now: Measures) -> Families:
        """Everything, under these labels. now: of the applications that run."""
        found: Families = {}
        for (path, status), count in self.requests.items():
            add(found, "seekray_requests", [["_total", {**labels, "path": path, "status": str(status)}, count]])
        for path, histogram in self.durations.items():
            add(found, "seekray_request_duration_seconds", histogram.samples({**labels, "path": path}))
        whole = Measures()
        whole.take(Measures(self.past.counters, {}, self.past.histograms))
        whole.take(now)
        for name, histogram in whole.histograms.items():
            add(found, f"seekray_{name}", histogram.samples(labels))
        for name, value in whole.counters.items():
            add(found, f"seekray_{name}", [["_total", labels, value]])
        for name, value in whole.gauges.items():
            add(found, f"seekray_{name}", [["", labels, value]])
        return found


# Name → type and help.
KNOWN = {
    "seekray_requests": ("counter", "Answers by path and status."),
    "seekray_request_duration_seconds": ("histogram", "Seconds from a request's arrival in the application to its last byte."),
    "seekray_batch_size": ("histogram", "Rows of each forward pass."),
    "seekray_time_to_first_token_seconds": ("histogram", "Seconds from a text's request to its first token."),
    "seekray_rows": ("counter", "Rows computed."),
    "seekray_prompt_tokens": ("counter", "Tokens of prompts."),
    "seekray_generated_tokens": ("counter", "Tokens made."),
    "seekray_requests_running": ("gauge", "Requests in flight."),
    "seekray_queue_size": ("gauge", "What waits behind the running batch: requests, or texts."),
    "seekray_texts_running": ("gauge", "Texts being made."),
    "seekray_prefix_cache_hit_tokens": ("counter", "Tokens of prompts that were found in the cache."),
    "seekray_preemptions": ("counter", "Texts put back because the cache had no room."),
    "seekray_engine_failures": ("counter", "Steps that failed, for all texts in them."),
    "seekray_kv_cache_blocks": ("gauge", "Blocks of the cache of keys and values."),
    "seekray_kv_cache_blocks_used": ("gauge", "Blocks that texts use now."),
    "seekray_kv_cache_blocks_kept": ("gauge", "Free blocks whose content may be found again."),
    "seekray_version_info": ("gauge", "1 for the version that answers."),
    "process_resident_memory_bytes": ("gauge", "Resident memory of the replica."),
    "process_cpu_seconds": ("counter", "Processor time of the replica."),
    "process_start_time_seconds": ("gauge", "When the replica started, in Unix time."),
}


def add(families: Families, name: str, samples: Iterable[Sequence[Any]]) -> None:
    """Put samples into their family, one of `KNOWN`."""
    kind, text = KNOWN[name]
    families.setdefault(name, {"type": kind, "help": text, "samples": []})["samples"] += [list(sample) for sample in samples]


def process(labels: Labels) -> Families:
    """What every exporter says of its process."""
    found: Families = {}
    with open("/proc/self/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    add(found, "process_cpu_seconds", [["_total", labels, (int(fields[11]) + int(fields[12])) / _TICKS]])
    add(found, "process_resident_memory_bytes", [["", labels, int(fields[21]) * _PAGE]])
    add(found, "process_start_time_seconds", [["", labels, _STARTED]])
    return found


def joined(parts: Iterable[Families]) -> Families:
    """Families of several replicas as one."""
    found: Families = {}
    for part in parts:
        for name, family in part.items():
            mine = found.setdefault(name, {"type": family["type"], "help": family["help"], "samples": []})
            mine["samples"] += family["samples"]
    return found


def text(families: Families) -> bytes:
    """The exposition."""
    lines = []
    for name, family in sorted(families.items()):
        # In this format a counter's family has the name of its samples.
        whole = f"{name}_total" if family["type"] == "counter" else name
        lines += [f"# HELP {whole} {family['help']}", f"# TYPE {whole} {family['type']}"]
        for suffix, labels, value in family["samples"]:
            inside = ",".join(f'{key}="{_escaped(str(label))}"' for key, label in labels.items())
            lines.append(f"{name}{suffix}{{{inside}}} {_number(value)}")
    return ("\n".join(lines) + "\n").encode()


class Board(Protocol):
    """Where replicas say what they serve, and what they have counted: the module `board`, where there is a Ray."""

    def read(self) -> dict[str, dict[str, Any]]:
        """What they serve."""

    def measured(self) -> list[Families]:
        """What they have counted."""


def with_own(measured: Iterable[Families], meter: Meter, name: str) -> bytes:
    """The exposition of replicas, and of the process here, whose answers `meter` counts."""
    own = {"model": name, "replica": name}
    return text(joined([*measured, meter.families(own, Measures()), process(own)]))


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
