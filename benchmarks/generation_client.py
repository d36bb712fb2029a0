"""The client of `generation_serving`: streams that ask in turn or at random times, and what they see on their own clock."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson

PROMPT, LONG, STREAMS = 16, 512, 16  # tokens, tokens, texts at a time


@dataclass
class Answer:
    """Seconds on the client's clock. parts: when a part came and how many tokens it had."""

    began: float
    parts: list[tuple[float, int]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """All that came."""
        return sum(count for _, count in self.parts)

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.parts[0][0] - self.began

    @property
    def whole(self) -> float:
        """Seconds to the last."""
        return self.parts[-1][0] - self.began


def text(given: random.Random, length: int) -> str:
    """A random prompt."""
    return "".join(chr(0x4E00 + given.randrange(2000)) for _ in range(length))


async def ask(server: dict[str, Any], prompt: str, tokens: int) -> Answer:
    """A streamed answer over a connection of its own. Any answer but 200 ends the benchmark."""
    url = urlsplit(server["url"])
    body = orjson.dumps({"prompt": prompt, "max_tokens": tokens, **server["asked"](tokens)})
    answer = Answer(time.perf_counter())
    try:
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
    except OSError as error:
        raise SystemExit(f"{server['url']}: {error}") from error
    head = f"POST {url.path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"{server['url']}: {status.decode()} {(await reader.read(2000)).decode()}")
    while await reader.readline() != b"\r\n":
        pass
    rest = b""
    while size := int(await reader.readline(), 16):
        *lines, rest = (rest + (await reader.readexactly(size + 2))[:-2]).split(b"\n")
        texts = [orjson.loads(line[6:])["choices"] for line in lines if line.startswith(b"data: {")]
        if count := sum(len(choice["text"]) for choices in texts for choice in choices):
            answer.parts.append((time.perf_counter(), count))
    writer.close()
    return answer


def asked_for(requests: int, seed: int) -> list[tuple[str, int]]:
    """Prompts, and how many tokens each is given."""
    given = random.Random(seed)
    return [(text(given, PROMPT), given.randint(32, 96)) for _ in range(requests)]


async def closed(server: dict[str, Any], streams: int, requests: int, seed: int) -> dict[str, Any]:
    """`requests` answers over `streams`, each asking again when it has its answer.

    Tokens/s are of the time in which all streams ask: until the first of them has nothing left.
    """
    todo = asked_for(requests, seed)
    done: list[Answer] = []

    async def stream() -> float:
        while todo:
            done.append(await ask(server, *todo.pop()))
        return time.perf_counter()

    end = min(await asyncio.gather(*(stream() for _ in range(streams))))
    # Those that all began at once wait for each other's prompts; the rest are what a server sees in between.
    ordered = sorted(done, key=lambda a: a.began)
    later = ordered[streams if 1 < streams < requests else 0 :]
    tokens = sum(count for answer in done for at, count in answer.parts if at <= end)
    return {
        "tokens_s": tokens / (end - ordered[0].began),
        "first_ms": 1e3 * statistics.median(a.first for a in later),
        "first_p99_ms": 1e3 * quantile([a.first for a in later], 0.99),
        "first_together_ms": 1e3 * statistics.median(a.first for a in ordered[:streams]),
    }


def quantile(values: list[float], part: float) -> float:
    """The value that `part` of them do not exceed."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


async def delay(server: dict[str, Any], arrivals: int, seed: int) -> dict[str, float]:
    """Gaps between tokens of 15 streams, usually and while prompts of 512 tokens are read."""
    given = random.Random(seed)
    talks = [asyncio.ensure_future(ask(server, text(given, PROMPT), 400)) for _ in range(STREAMS - 1)]
    await asyncio.sleep(0.3)
    spans = []
    for _ in range(arrivals):
        if any(talk.done() for talk in talks):
            break
        long = await ask(server, text(given, LONG), 1)
        spans.append((long.began, long.parts[-1][0]))
        await asyncio.sleep(0.15)
    usual, during, next_ones = [], [], []
    for answer in await asyncio.gather(*talks):
        times = [at for at, _ in answer.parts]
        gaps = list(itertools.pairwise(times))
        usual += [b - a for a, b in gaps if not any(a < end and b > start for start, end in spans)]
        during += [b - a for a, b in gaps if any(a < end and b > start for start, end in spans)]
        next_ones += [b - a for a, b in gaps if any(a < start <= b for start, _ in spans)]
    step = statistics.median(usual)
    return {
        "step_ms": 1e3 * step, "arrivals": len(spans), "reading_ms": 1e3 * statistics.median(e - s for s, e in spans),
        "next_later_steps": (statistics.median(next_ones) - step) / step,
        "during_later_steps": (statistics.median(during) - step) / step,
        "during_p99_later_steps": (quantile(during, 0.99) - step) / step,
        "usual_p99_later_steps": (quantile(usual, 0.99) - step) / step,
    }  # fmt: skip


async def load(server: dict[str, Any], rate: float, seconds: float, seed: int) -> dict[str, float]:
    """Requests at random times, `rate` a second, whatever is still being answered."""
    given = random.Random(seed)
    tasks = []
    end = time.perf_counter() + seconds
    at = time.perf_counter()
    while (at := at + given.expovariate(rate)) < end:
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        tasks.append(asyncio.ensure_future(ask(server, text(given, PROMPT), given.randint(32, 96))))
    wholes = [answer.whole for answer in await asyncio.gather(*tasks)]
    return {"rate": rate, "requests": len(wholes), "p50_s": statistics.median(wholes), "p99_s": quantile(wholes, 0.99)}
