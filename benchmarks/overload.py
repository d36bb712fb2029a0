"""Three times as many requests as an endpoint can answer, for a minute: what becomes of those it takes, and of the others.

    python -m benchmarks.overload [BUNDLE] [--seconds 60] [--queue 64] [--limit 0.5] [--json]

An open loop: requests leave at a fixed rate, whatever comes back, each on a free one of many kept connections; latency
counts from the moment at which a request was due. Capacity is the highest rate at which the same generator has 99 % of its
requests answered within the limit. Without BUNDLE the MLP 64-256-256-10 is trained on the digits. Targets: goodput over 0.9
of the capacity, accepted requests' p99 under the limit, refusals (429 with Retry-After) within 50 ms, memory flat, and the
median back 5 s after the end.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks.serving import train_bundle
from seekray.settings import read_settings
from seekray_serve.lifecycle import deploy, instance
from seekray_serve.lifecycle.ready import ModelToServe


@dataclass
class Seen:
    """What came back. latencies: seconds of each answer by its status; late: requests that left over 10 ms after their time."""

    latencies: dict[int, list[float]] = field(default_factory=dict)
    failed: int = 0
    late: int = 0
    no_retry_after: int = 0

    def of(self, status: int) -> list[float]:
        """Sorted latencies."""
        return sorted(self.latencies.get(status, []))


class Connection(asyncio.Protocol):
    """A kept connection: one request, one answer, again."""

    def __init__(self, pool: deque[Connection], seen: Seen) -> None:
        self.pool, self.seen = pool, seen
        self.transport: Any = None
        self.due, self.buffer = 0.0, b""

    def connection_made(self, transport: Any) -> None:
        """It may be used."""
        self.transport = transport
        self.pool.append(self)

    def ask(self, request: bytes, due: float) -> None:
        """Send a request that was due at a time."""
        self.due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """An answer, or a part of one."""
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        status = int(head[9:12])
        self.seen.latencies.setdefault(status, []).append(time.perf_counter() - self.due)
        self.seen.no_retry_after += status == 429 and b"retry-after:" not in lower
        self.buffer, self.due = b"", 0.0
        if b"connection: close" in lower:
            self.transport.close()
        else:
            self.pool.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        """In the middle of an answer it is a failure."""
        self.seen.failed += self.due > 0


async def offer(host: str, port: int, request: bytes, rate: float, seconds: float, connections: int = 256) -> Seen:
    """Requests at a rate for some seconds, and what came back."""
    loop, seen, pool = asyncio.get_running_loop(), Seen(), deque[Connection]()
    for _ in range(connections):
        await loop.create_connection(lambda: Connection(pool, seen), host, port)
    opened, start = connections, time.perf_counter()
    for number in itertools.count():
        due = start + number / rate
        if max(due, time.perf_counter()) > start + seconds:  # also where this process cannot keep up: it is told then
            break
        while (now := time.perf_counter()) < due:
            await asyncio.sleep(due - now if due - now > 0.001 else 0)
        while pool and pool[0].transport.is_closing():
            pool.popleft()
        if not pool and opened < 4000:  # all are waiting for answers
            opened += 1
            await loop.create_connection(lambda: Connection(pool, seen), host, port)
        while not pool:
            await asyncio.sleep(0.0005)
        seen.late += time.perf_counter() - due > 0.01
        pool.popleft().ask(request, due)
        if number % 16 == 0:
            await asyncio.sleep(0)
    end = time.perf_counter() + 10
    while len(pool) + seen.failed < opened and time.perf_counter() < end:
        await asyncio.sleep(0.01)
    for connection in pool:
        connection.due = 0.0
        connection.transport.close()
    return seen


def percentile(values: list[float], part: float) -> float:
    """Of sorted values, in milliseconds."""
    return 1000 * values[min(len(values) - 1, int(part * len(values)))] if values else float("nan")


def capacity(ask: Any, limit: float, seconds: float) -> float:
    """The highest rate at which 99 % of what was asked is answered within the limit."""

    def holds(rate: float) -> bool:
        answered = ask(rate, seconds).of(200)
        return sum(latency < limit for latency in answered) > 0.99 * rate * seconds

    low, high = 50.0, 100.0
    while holds(high):
        low, high = high, 2 * high
    for _ in range(5):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def measure(bundle: Path, seconds: float, queue: int, limit: float, rows: int) -> dict[str, Any]:
    """All of it, on an instance of its own."""
    with tempfile.TemporaryDirectory(prefix="sk-overload-") as home:
        settings = read_settings({"SEEKRAY_HOME": home})
        port = instance.free_ports(1)[0]
        try:
            deploy.up([ModelToServe("bench", "1", bundle, {"max_queued_requests": queue})], settings, port=port)
            running = instance.load(settings.home / "serve.json")
            assert running
            replica = next(
                p for p in map(psutil.Process, instance.pids(running.name)) if "ServeReplica:bench" in " ".join(p.cmdline())
            )
            sample = json.loads((bundle / "sample.json").read_text())["rows"]
            body = json.dumps({"rows": list(itertools.islice(itertools.cycle(sample), rows))}).encode()
            head = (
                f"POST /bench/v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            )
            head += "\r\n\r\n"
            request = head.encode() + body

            def ask(rate: float, duration: float) -> Seen:
                return uvloop.run(offer("127.0.0.1", port, request, rate, duration))

            ask(100, 2)
            most = capacity(ask, limit, 4)
            calm = ask(0.5 * most, 5)
            memory, cpu = [replica.memory_info().rss / 2**20], psutil.Process().cpu_times()

            async def under_load() -> Seen:
                async def watch() -> None:
                    while True:
                        await asyncio.sleep(seconds / 6)
                        memory.append(replica.memory_info().rss / 2**20)

                watching = asyncio.create_task(watch())
                found = await offer("127.0.0.1", port, request, 3 * most, seconds)
                watching.cancel()
                return found

            seen = uvloop.run(under_load())
            used = psutil.Process().cpu_times()
            time.sleep(5)
            after = ask(0.5 * most, 5)
            memory.append(replica.memory_info().rss / 2**20)
        finally:
            deploy.down(settings)
    accepted, refused = seen.of(200), seen.of(429)
    return {
        "capacity": most,
        "offered": 3 * most,
        "sent": sum(map(len, seen.latencies.values())) / seconds,
        "goodput": sum(latency < limit for latency in accepted) / seconds / most,
        "accepted_p50_ms": percentile(accepted, 0.5),
        "accepted_p99_ms": percentile(accepted, 0.99),
        "refused": len(refused),
        "refused_p50_ms": percentile(refused, 0.5),
        "refused_p99_ms": percentile(refused, 0.99),
        "without_retry_after": seen.no_retry_after,
        "other": {str(status): len(found) for status, found in seen.latencies.items() if status not in (200, 429)},
        "failed": seen.failed,
        "late": seen.late,
        "generator_cores": (used.user + used.system - cpu.user - cpu.system) / seconds,
        "memory_mb": memory,
        "calm_p50_ms": percentile(calm.of(200), 0.5),
        "after_p50_ms": percentile(after.of(200), 0.5),
        "limit_ms": 1000 * limit,
        "queue": queue,
        "rows": rows,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--queue", type=int, default=64, help="max_queued_requests")
    parser.add_argument("--limit", type=float, default=0.5, help="seconds that an answer may take")
    parser.add_argument("--rows", type=int, default=1, help="of a request")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            given.bundle or train_bundle(Path(folder), (256, 256)), given.seconds, given.queue, given.limit, given.rows
        )
    if given.json:
        print(json.dumps(found, indent=1))
        return
    at = {name: f"{found[name]:.1f} ms" for name in found if name.endswith("_ms")}
    print(f"capacity {found['capacity']:.0f} requests/s")
    print(f"offered {found['offered']:.0f} for {given.seconds:g} s, sent {found['sent']:.0f}")
    print(f"goodput {found['goodput']:.3f} of the capacity (target 0.9)")
    print(f"accepted: p50 {at['accepted_p50_ms']}, p99 {at['accepted_p99_ms']} (limit {at['limit_ms']})")
    print(f"refused {found['refused']}: p50 {at['refused_p50_ms']}, p99 {at['refused_p99_ms']} (target 50 ms)")
    print(f"other answers {found['other']}, failed {found['failed']}, without Retry-After {found['without_retry_after']}")
    print(f"memory MB {', '.join(f'{m:.0f}' for m in found['memory_mb'])}")
    print(f"p50 at half the capacity: {at['calm_p50_ms']} before, {at['after_p50_ms']} 5 s after")
    print(f"the generator used {found['generator_cores']:.2f} cores; {found['late']} requests left over 10 ms late")


if __name__ == "__main__":
    main(sys.argv[1:])
