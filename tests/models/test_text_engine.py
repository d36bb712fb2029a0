"""The engine of texts: what is made of a prompt is what is made of it alone, whatever the company; everyone has a turn."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from small_lm import Bytes, small

from seekray.models.blocks import BLOCK
from seekray.models.decoding import Run, Weights
from seekray.models.sampling import Sampling
from seekray.models.text_engine import Job, TextEngine
from seekray.models.transformer import Transformer

CONTEXT = 96


@pytest.fixture(scope="module")
def net() -> Transformer:
    return small(vocab_size=257, context_length=CONTEXT)


def engine(net: Transformer, **given: Any) -> TextEngine:
    return TextEngine(Weights.of(net), Bytes(), **{"rows": 8, "streams": True} | given)


def finish(made: TextEngine, arrivals: Mapping[int, Sequence[Job]] | None = None) -> dict[Any, list[int]]:
    """The tokens of each text, jobs being submitted before the step that `arrivals` says."""
    arrivals, tokens, step = dict(arrivals or {}), {}, 0
    while arrivals or len(made):
        for job in arrivals.pop(step, ()):
            made.submit(job)
            tokens[job.key] = []
        for piece in made.step():
            tokens.setdefault(piece.job.key, []).append(piece.token)
        step += 1
        assert step < 5000
    return tokens


def crowd(given: random.Random, sampling: Mapping[str, Any]) -> list[Job]:
    """A hundred random prompts; half of them begin like others, some are the same."""
    beginnings = [[given.randrange(256) for _ in range(length)] for length in (16, 33, 50)]
    jobs = []
    for number in range(100):
        prompt = [given.randrange(256) for _ in range(given.randint(1, 40))]
        if number % 2:
            prompt = given.choice(beginnings) + prompt[: given.randint(0, 12)]
        if number % 10 == 9:
            prompt = list(jobs[-given.randint(1, 9)].prompt)
        asked = Sampling(
            max_tokens=given.randint(1, 24), **dict(sampling, **({"seed": number} if sampling["temperature"] else {}))
        )
        jobs.append(Job(number, prompt, asked))
    return jobs


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.1}], ids=["greedy", "seeded"]
)
def test_a_text_is_what_it_is_alone(net: Transformer, sampling: dict[str, Any]) -> None:
    given = random.Random(7)
    jobs = crowd(given, sampling)
    arrivals: dict[int, list[Job]] = {}
    for job in jobs:
        arrivals.setdefault(given.randrange(150), []).append(job)
    # Eight texts of up to six blocks each in twelve blocks, prompts in parts of at most ten tokens.
    crowded = engine(net, blocks=12, prompt_tokens=24, beside=10)
    together = finish(crowded, arrivals)
    counters = crowded.counters()
    assert counters["preemptions"] > 8
    assert counters["prefix_tokens"] > 200
    assert (counters["running"], counters["waiting"], counters["blocks_used"]) == (0, 0, 0)
    for job in jobs:
        assert together[job.key] == finish(engine(net, rows=1), {0: [job]})[job.key], job.key


def test_prompts_are_read_in_parts_beside_the_others(net: Transformer) -> None:
    made = engine(net, prompt_tokens=40, beside=8)
    runs: list[list[Run]] = []
    decoder = made._decoder
    made._decoder = lambda given: (runs.append(list(given)), decoder(given))[1]  # type: ignore[assignment]
    talk, long = Job("talk", [1, 2, 3], Sampling(temperature=0, max_tokens=30)), list(range(85))
    made.submit(talk)
    made.step()
    made.submit(Job("long", long, Sampling(temperature=0, max_tokens=1)))
    steps = [made.step() for _ in range(11)]
    assert [[p.job.key for p in step] for step in steps] == [["talk"]] * 10 + [["talk", "long"]]
    assert [sum(len(r.tokens) for r in run) for run in runs[1:]] == [9] * 10 + [6]
    made.cancel("talk")
    made.submit(Job("next", [9] * 85, Sampling(temperature=0, max_tokens=1)))
    finish(made)
    assert [len(r.tokens) for run in runs[12:] for r in run] == [40, 40, 5]  # alone it is quicker


def test_who_comes_first_begins_first(net: Transformer) -> None:
    """A long prompt that there is no room for yet is not passed by short ones; the short ones run when it does."""
    made = engine(net, blocks=8)
    asked = Sampling(temperature=0, max_tokens=20)
    for key, length in (("first", 60), ("long", 70), ("short", 3), ("shorter", 2)):
        made.submit(Job(key, [ord(key[0])] * length, asked))
    begun = []
    while len(made):
        begun += [p.job.key for p in made.step() if p.tokens == 1]
    assert begun == ["first", "long", "short", "shorter"]


def test_the_oldest_is_never_put_back(net: Transformer) -> None:
    """However many come after it, a text that runs gets a token in each step."""
    made = engine(net, blocks=6)
    made.submit(Job("old", [1] * 10, Sampling(temperature=0, min_tokens=80, max_tokens=80)))
    for step in range(80):
        made.submit(Job(step, [2] * 10 + [step], Sampling(temperature=0, max_tokens=40)))
        assert "old" in [p.job.key for p in made.step()]
    assert made.counters()["preemptions"] > 0
    assert len({tuple(t) for t in finish(made).values()}) > 1  # and the others' turns come


def test_who_was_put_back_goes_on_before_those_that_came_later(net: Transformer) -> None:
    made = engine(net, blocks=6)
    for key, length in (("a", 30), ("b", 31), ("c", 40)):
        made.submit(Job(key, [ord(key)] * length, Sampling(temperature=0, min_tokens=40, max_tokens=40)))
    seen: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    step = 0
    while len(made):
        for piece in made.step():
            seen[piece.job.key].append(step)
        step += 1
    assert seen["a"] == list(range(40))
    gap = next(i for i, (x, y) in enumerate(zip(seen["b"], seen["b"][1:], strict=False)) if y > x + 1)
    assert seen["b"][gap + 1] <= seen["c"][0]


def test_beginnings_are_shared(net: Transformer) -> None:
    made = engine(net)
    start = list(range(2 * BLOCK))
    for number in range(4):
        made.submit(Job(number, [*start, number], Sampling(temperature=0, max_tokens=2)))
    made.step()
    counters = made.counters()
    assert counters["blocks_used"] == 2 + 4
    assert counters["prefix_tokens"] == 3 * len(start)
    finish(made)
    assert made.counters()["blocks_kept"] == 2
    made.submit(Job("again", start, Sampling(temperature=0, max_tokens=2)))
    finish(made)
    assert made.counters()["prefix_tokens"] == 3 * len(start) + BLOCK  # the last token is computed in any case


def test_blocks_of_who_leaves_are_free_at_once(net: Transformer) -> None:
    made = engine(net)
    for key in ("a", "a", "b"):
        made.submit(Job(key, [1, 2, 3] * 10, Sampling(temperature=0, max_tokens=40)))
    made.step()
    before = made.counters()["blocks_used"]
    made.cancel("a")
    after = made.counters()
    assert (after["running"], after["blocks_used"]) == (1, 2)
    assert before > 2
    made.cancel("b")
    assert made.counters()["blocks_used"] == 0
    assert made.step() == []
