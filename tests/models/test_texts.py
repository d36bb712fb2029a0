"""Texts: a batch equals each prompt alone, how tokens are chosen, when a text ends, whole characters."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from small_lm import Bytes, small

from seekray.errors import DataError
from seekray.models import sampling
from seekray.models.decoding import Run, Weights
from seekray.models.sampling import Sampling, choose, filtered, most_likely
from seekray.models.text_engine import Job, Piece, TextEngine
from seekray.models.text_stream import TextStream
from seekray.models.texts import TextRequest, jobs, stream, table
from seekray.models.transformer import Transformer

PROMPTS = ["a", "The quick brown fox", "Grüße", "x" * 40, "to be or not"]


@pytest.fixture(scope="module")
def net() -> Transformer:
    return small(vocab_size=257, context_length=96)


def made(net: Transformer, prompts: list[str], **asked: Any) -> list[dict[str, Any]]:
    request = TextRequest(prompts=tuple(prompts), **asked)
    rows: list[dict[str, Any]] = table(net, Bytes(), request, Bytes().encode(prompts)).to_pylist()
    return rows


def greedy(net: Transformer, prompt: list[int], tokens: int) -> list[int]:
    """The formula of it: the module again and again."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(net(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("asked", [{"temperature": 0}, {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2, "n": 3}])
def test_a_batch_is_each_prompt_alone(net: Transformer, asked: dict[str, Any]) -> None:
    asked = asked | {"max_tokens": 24, "logprobs": 0}
    together = made(net, PROMPTS * 4, **asked)  # more than the rows that run at once
    alone = [row for prompt in PROMPTS for row in made(net, [prompt], **asked)]
    assert [r["token_ids"] for r in together] == [r["token_ids"] for r in alone] * 4
    assert [r["text"] for r in together] == [r["text"] for r in alone] * 4


def test_greedy_is_the_modules_own_choice(net: Transformer) -> None:
    rows = made(net, PROMPTS, temperature=0, max_tokens=12, logprobs=0)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        expected = greedy(net, list(prompt.encode()), 12)
        assert row["token_ids"] == (expected[: expected.index(256) + 1] if 256 in expected else expected)


def test_rounding_decides_nothing(net: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two entries of the vocabulary that are equal up to rounding: the module over the sequence alone decides, each time."""
    twins = small(vocab_size=257, context_length=96)
    noise = 1e-7 * torch.randn(twins.embedding.weight[:128].shape, generator=torch.Generator().manual_seed(0))
    twins.embedding.weight[128:256] = twins.embedding.weight[:128] * (1 + noise)
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "logprobs": 0}
    alone = [made(twins, [p], **asked)[0]["token_ids"] for p in PROMPTS]
    assert [r["token_ids"] for r in made(twins, PROMPTS * 4, **asked)] == alone * 4
    monkeypatch.setitem(sampling.MARGIN, torch.float32, 0.0)
    assert [r["token_ids"] for r in made(twins, PROMPTS * 4, **asked)] != alone * 4  # without the margin it shows


def test_the_margin_is_wide_enough() -> None:
    """Logits of the decoder differ from the module's by less than a quarter of it, with weights ten times too large."""
    net = small(vocab_size=500, hidden_size=256, num_heads=8, num_kv_heads=8, num_layers=6, context_length=128)
    prompt = torch.randint(500, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    engine = TextEngine(Weights.of(net), Bytes(), rows=8)
    for number in range(8):
        engine.submit(Job(number, prompt[number:], Sampling(temperature=0, max_tokens=4)))
    with torch.inference_mode():
        engine.step()
        plan = [s for s, _ in engine._planned()]
        sequences = [s.ids for s in plan]
        logits = engine._decoder([Run(s.ids[-1:], s.computed, s.table) for s in plan])
        plainly = torch.stack([net(torch.tensor([ids]))[0, -1] for ids in sequences])
    error = (logits - plainly).abs().amax(1) / plainly.abs().amax(1)
    assert error.max() < sampling.MARGIN[torch.float32] / 4


def test_samples_are_drawn_from_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    for asked, allowed in (
        ({"temperature": 0.7}, [0, 1, 2, 3]),
        ({"top_k": 2}, [0, 1]),
        ({"top_p": 0.8}, [0, 1]),  # 0.64, 0.24: the second reaches 0.8
        ({"min_p": 0.1}, [0, 1, 2]),
    ):
        given = Sampling(**asked)
        drawn = Counter(
            choose(logits, given, [], None, torch.empty(4).exponential_(generator=generator))[0] for _ in range(4000)
        )
        assert sorted(drawn) == allowed
        expected = torch.zeros(4).index_copy(
            0, torch.tensor(allowed), (logits / given.temperature)[torch.tensor(allowed)].softmax(0)
        )
        for token in allowed:
            assert drawn[token] / 4000 == pytest.approx(float(expected[token]), abs=0.03)


def test_filters_follow_each_other() -> None:
    scores = torch.tensor([3.0, 2.9, 2.8, 0.0])
    assert filtered(scores, Sampling(top_k=3, top_p=0.5)).isfinite().tolist() == [True, True, False, False]
    assert filtered(scores, Sampling(top_p=1e-9)).isfinite().tolist() == [True, False, False, False]


def test_repetition_penalty_and_bans() -> None:
    logits = torch.tensor([2.0, 1.5, -0.5, -1.0])
    greedy = Sampling(temperature=0, repetition_penalty=2.0)
    assert choose(logits, greedy, [], None, None)[0] == 0
    assert choose(logits, greedy, [0], None, None)[0] == 1
    assert choose(torch.tensor([-1.0, -1.5]), greedy, [0], None, None)[0] == 1  # below zero it is multiplied
    assert choose(logits, greedy, [0], 1, None)[0] == 0


def test_a_small_lead_is_told() -> None:
    logits = torch.tensor([[1.0, 1.0 + 1e-5, -3.0], [1.0, 1.1, -3.0]])
    assert most_likely(logits) == ([1, 1], [True, False])
    assert choose(logits[0], Sampling(temperature=0, logprobs=1), [], None, None) == (1, True)


def test_logprobs_are_the_models(net: Transformer) -> None:
    request = TextRequest(prompts=("The",), temperature=0.5, max_tokens=5, logprobs=3, seed=4)
    pieces = list(stream(net, Bytes(), jobs(request, [list(b"The")], 96)))
    ids = list(b"The")
    for piece in pieces:
        expected = net(torch.tensor([ids]))[0, -1].log_softmax(0)
        assert piece.logprob == pytest.approx(float(expected[piece.token]), abs=1e-4)
        assert [t for t, _ in piece.others] == expected.topk(3).indices.tolist()
        ids.append(piece.token)


def test_seeds(net: Transformer) -> None:
    first, again = (made(net, ["Hello"], n=3, seed=5) for _ in range(2))
    assert first == again
    assert len({r["text"] for r in first}) == 3
    assert made(net, ["Hello"], seed=6)[0]["text"] != first[0]["text"]


def test_ends(net: Transformer) -> None:
    biased = small(vocab_size=257, context_length=96, tie_embeddings=False)
    biased.head.weight[256] = biased.head.weight[:256].mean(0)  # type: ignore[union-attr]
    free = made(net, ["Hello"], temperature=0, max_tokens=20)[0]
    assert (free["tokens"], free["finish_reason"]) == (20, "length")
    always = small(vocab_size=257, context_length=96)
    always.embedding.weight[256] = 0
    hidden = always.hidden(torch.tensor([list(b"Hello")]))[0, -1]
    always.embedding.weight[256] = 10 * hidden  # the end is what follows
    ended = made(always, ["Hello"], temperature=0, max_tokens=20)[0]
    assert (ended["tokens"], ended["text"], ended["finish_reason"]) == (1, "", "stop")
    longer = made(always, ["Hello"], temperature=0, max_tokens=20, min_tokens=6, logprobs=0)[0]
    assert longer["tokens"] >= 6
    assert 256 not in longer["token_ids"][:6]


def test_a_context_that_is_full(net: Transformer) -> None:
    row = made(net, ["x" * 90], temperature=0, max_tokens=20)[0]
    assert (row["tokens"], row["finish_reason"]) == (6, "length")
    with pytest.raises(DataError, match="a prompt of 96 tokens given, the model looks at 96"):
        made(net, ["x" * 96], max_tokens=1)
    cut = made(net, ["y" + "x" * 96], temperature=0, max_tokens=20, truncate=True)[0]
    assert (cut["prompt_tokens"], cut["tokens"]) == (76, 20)
    assert cut["text"] == made(net, ["x" * 76], temperature=0, max_tokens=20)[0]["text"]


def test_jobs_come_and_go(net: Transformer) -> None:
    engine = TextEngine(Weights.of(net), Bytes(), rows=2, streams=True)
    asked = Sampling(temperature=0, max_tokens=8)
    for number, prompt in enumerate(PROMPTS):
        engine.submit(Job(number, list(prompt.encode()), asked))
    texts: dict[Any, str] = {}
    steps = 0
    while len(engine):
        if steps == 3:
            engine.cancel(1)
        for piece in engine.step():
            texts[piece.job.key] = texts.get(piece.job.key, "") + piece.text
        steps += 1
    alone = [made(net, [p], temperature=0, max_tokens=8)[0]["text"] for p in PROMPTS]
    assert {k: v for k, v in texts.items() if k != 1} == {k: v for k, v in enumerate(alone) if k != 1}
    assert len(texts[1]) < len(alone[1])


def test_weights_are_packed_again_after_learning(net: Transformer) -> None:
    trained = small(vocab_size=257, context_length=96)
    before = Weights.of(trained)
    assert Weights.of(trained) is before
    with torch.no_grad():
        trained.embedding.weight.add_(0.1)
    assert Weights.of(trained) is not before


def pushed(text: TextStream, ids: list[int]) -> list[str]:
    out = []
    for token in ids:
        out.append(text.push(token))
        if text.stopped:
            return out
    return [*out, text.finish()]


def test_characters_are_whole() -> None:
    given = "Grüße 👋 ok"
    parts = pushed(TextStream(Bytes().decode, list(b"x")), list(given.encode()))
    assert "".join(parts) == given
    assert all("\ufffd" not in p for p in parts)
    torn = pushed(TextStream(Bytes().decode, []), [*b"ab", 0xF0, 0x9F])
    assert "".join(torn) == "ab\ufffd"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [(("END",), "one "), (("zzz", " EN"), "one"), (("two",), "one END "), (("twofold",), "one END two"), (("E",), "one ")],
)
def test_stop_strings(stop: tuple[str, ...], expected: str) -> None:
    text = TextStream(Bytes().decode, [], stop)
    parts = pushed(text, list(b"one END two"))
    assert "".join(parts) == expected
    assert text.stopped == (expected != "one END two")


def test_stop_strings_through_the_engine(net: Transformer) -> None:
    free = made(net, ["Hello"], temperature=0, max_tokens=30)[0]
    mark = free["text"][8:10]
    cut = made(net, ["Hello"], temperature=0, max_tokens=30, stop=(mark,))[0]
    assert cut["text"] == free["text"][: free["text"].index(mark)]
    assert cut["finish_reason"] == "stop"
    assert cut["tokens"] < 30


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"min_tokens": 9, "max_tokens": 8}, "more than max_tokens"),
        ({"stop": ("",)}, "an empty text"),
        ({"temperature": -1}, "greater than or equal to 0"),
        ({"top_p": 0}, "greater than 0"),
        ({"best_of": 2}, "Extra inputs"),
    ],
)
def test_requests_that_cannot_be(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TextRequest(**asked)


def test_pieces_count(net: Transformer) -> None:
    pieces: list[Piece] = list(stream(net, Bytes(), jobs(TextRequest(max_tokens=4, temperature=0), [[1, 2]], 96)))
    assert [p.tokens for p in pieces] == [1, 2, 3, 4]
    assert [p.finish for p in pieces] == [None, None, None, "length"]
    assert math.isfinite(sum(p.token for p in pieces))
