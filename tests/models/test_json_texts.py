"""Texts held to a JSON schema: whatever the weights, the answer parses; penalties and biases."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import torch
from small_lm import small, write_bundle

from seekray.data.text.grammar import JsonGrammar
from seekray.data.text.tokenizer import Tokenizer, train
from seekray.errors import DataError, UserError
from seekray.generator import Generator
from seekray.models.decoding import Weights
from seekray.models.sampling import Sampling, choose
from seekray.models.text_engine import Job, Piece, TextEngine

WINE = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Größe", "漢"]},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2030},
        "dry": {"type": "boolean"},
        "marks": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "year", "dry", "marks"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return Generator.load(write_bundle(tmp_path_factory.mktemp("lm"), context_length=200))


@pytest.mark.parametrize(
    "asked", [{"temperature": 0}, {"temperature": 1.5, "n": 4}, {"temperature": 1.0, "top_p": 0.5, "logprobs": 1}]
)
def test_a_model_that_knows_nothing_writes_json(generator: Generator, asked: dict[str, Any]) -> None:
    prompts = ["a", "wine: ", "{"]
    free = generator.generate(prompts, max_tokens=20, **asked)["text"].to_pylist()
    assert not any(text.startswith("{") for text in free)
    made = generator.generate(prompts, json_schema=WINE, max_tokens=180, **asked).to_pylist()
    for row in made:
        jsonschema.validate(json.loads(row["text"]), WINE)
        assert row["finish_reason"] == "stop"
    beside = generator.generate([*prompts, "free"], max_tokens=180, json_schema=WINE, **asked).to_pylist()
    assert [row["text"] for row in beside[: len(made)]] == [row["text"] for row in made]


def test_too_few_tokens_are_told(generator: Generator) -> None:
    (row,) = generator.generate("a", json_schema=WINE, max_tokens=5).to_pylist()
    assert row["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("schema", "message"), [({"type": "strange"}, "Invalid type"), ({"type": "string", "pattern": "("}, "cannot be followed")]
)
def test_schemas_that_cannot_be(generator: Generator, schema: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        generator.generate("a", json_schema=schema)
    assert raised.value.field == "json_schema"


def test_what_ends_by_itself_has_no_least_length(generator: Generator) -> None:
    with pytest.raises(UserError, match="min_tokens"):
        generator.generate("a", json_schema=WINE, min_tokens=3)


def written(tokenizer: Tokenizer, size: int, schema: dict[str, Any], text: str) -> bool:
    """Whether each token of a text may come where it stands, and the text is complete then."""
    guide = JsonGrammar(tokenizer, size).guide(schema)
    complete = False
    for token in tokenizer.encode([text])[0]:
        if complete or not guide.allowed()[token]:
            return False
        complete = guide.push(token)
    return complete or bool(guide.allowed()[tokenizer.end])


@pytest.mark.parametrize("kind", ["byte", "bpe", "char"])
def test_every_kind_of_vocabulary(kind: str) -> None:
    text = '{"name": "漢", "year": 1999, "dry": true, "marks": [1, 2]}'
    tokenizer = train(kind, [text * 3, "Größe false{}"], 400, "<|end|>")
    size = tokenizer.size + 7  # a model may have more entries than the tokenizer
    assert written(tokenizer, size, WINE, text)
    assert written(tokenizer, size, WINE, text.replace(" ", ""))
    assert written(tokenizer, size, {"type": "object"}, text)
    assert not written(tokenizer, size, WINE, text.replace("1999", "999"))
    assert not written(tokenizer, size, WINE, text.replace("true", '"t"'))
    allowed = JsonGrammar(tokenizer, size).guide(WINE).allowed()
    assert not allowed[tokenizer.size :].any()
    assert not allowed[tokenizer.end]


def test_a_vocabulary_that_cannot_write_it_says_so() -> None:
    tokenizer = train("char", ["abc123"], 100, "<|end|>")
    with pytest.raises(DataError, match="cannot be followed"):
        JsonGrammar(tokenizer, tokenizer.size).guide(WINE)


def test_a_text_that_cannot_go_on_ends_alone() -> None:
    """A vocabulary with all that the first part needs, and without the digit of the second."""
    tokenizer = train("char", ['{"a": x}'], 100, "<|end|>")
    net = small(vocab_size=tokenizer.size, context_length=40)
    guide = JsonGrammar(tokenizer, tokenizer.size).guide(
        {"type": "object", "properties": {"a": {"const": 5}}, "required": ["a"]}
    )
    engine = TextEngine(Weights.of(net), tokenizer, rows=2)
    engine.submit(Job("held", [3, 4], Sampling(json_schema={}), guide=guide))
    engine.submit(Job("free", [3, 4], Sampling(max_tokens=30, min_tokens=30)))
    pieces: list[Piece] = []
    while len(engine):
        pieces += engine.step()
    assert isinstance([p for p in pieces if p.job.key == "held"][-1].error, DataError)
    assert [p for p in pieces if p.job.key == "free"][-1].tokens == 30
    assert engine.counters()["blocks_used"] == 0


def test_penalties_and_biases() -> None:
    logits = torch.tensor([2.0, 1.5, -0.5, -1.0])
    assert choose(logits, Sampling(temperature=0, presence_penalty=1.0), made={0: 1})[0] == 1
    assert Sampling(temperature=1e-300).plain
    assert choose(logits, Sampling(temperature=1e-6), noise=torch.ones(4))[0] == 0
    assert choose(logits, Sampling(temperature=0, frequency_penalty=0.3), made={0: 1})[0] == 0
    assert choose(logits, Sampling(temperature=0, frequency_penalty=0.3), made={0: 2})[0] == 1
    assert choose(logits, Sampling(temperature=0, presence_penalty=-2.0), made={1: 1})[0] == 1
    assert choose(logits, Sampling(temperature=0, logit_bias={3: 4.0}))[0] == 3
    assert choose(logits, Sampling(temperature=0), allowed=torch.tensor([False, False, True, True]))[0] == 2


def test_penalties_are_for_the_text_and_not_for_the_prompt(generator: Generator) -> None:
    free = generator.generate("ab", temperature=0, max_tokens=30, logprobs=0)["token_ids"].to_pylist()[0]
    held = generator.generate("ab", temperature=0, max_tokens=30, logprobs=0, frequency_penalty=2.0)["token_ids"].to_pylist()[0]
    assert held[0] == free[0]
    assert max(map(held.count, held)) <= max(map(free.count, free))
    banned = generator.generate("ab", temperature=0, max_tokens=8, logprobs=0, logit_bias={free[0]: -100.0})
    assert free[0] not in banned["token_ids"].to_pylist()[0]
    with pytest.raises(DataError, match="token 9999 given") as raised:
        generator.generate("ab", logit_bias={9999: 1.0})
    assert raised.value.field == "logit_bias"
