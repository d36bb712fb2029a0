"""Texts that are JSON of a schema: which tokens may come next, by `llguidance`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from seekray.data.parse import Array
from seekray.errors import DataError

if TYPE_CHECKING:
    from seekray.data.text.tokenizer import Tokenizer

# Between parts of a JSON text: nothing, a blank, or a line break with its indentation. Without an end to it, a model that
# knows little may go on with blanks for ever.
BLANKS = r"( |\n {0,16})?"


class JsonGrammar:
    """JSON schemas over a tokenizer's vocabulary; size: entries of the model's, which may be larger."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.size, self._end = size, tokenizer.end
        self._special: list[int] = []
        try:
            self._library = LLTokenizer(tokenizer.to_bytes().decode(), n_vocab=size, eos_token=tokenizer.end)
        except ValueError:  # not of bytes: a token is what it reads
            plain = _Plain(tokenizer, size)
            self._special = [i for i in plain.special_token_ids if i != tokenizer.end]
            self._library = LLTokenizer(TokenizerWrapper(plain), n_vocab=size, eos_token=tokenizer.end)

    def guide(self, schema: Mapping[str, Any]) -> JsonGuide:
        """What a text of this schema may be. Raises DataError for a schema that cannot be followed."""
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_pattern": BLANKS})
        except ValueError as error:
            raise _refused(str(error)) from error
        matcher = LLMatcher(self._library, grammar, log_level=0)
        if matcher.is_error():
            raise _refused(matcher.get_error())
        found = JsonGuide(matcher, self.size, self._end, self._special)
        found.allowed()  # a vocabulary without braces is told at once
        return found


class JsonGuide:
    """One text, token by token."""

    def __init__(self, matcher: LLMatcher, size: int, end: int, special: list[int]) -> None:
        self._matcher, self._size, self._end, self._special = matcher, size, end, special

    def copy(self) -> JsonGuide:
        """The same for another text."""
        return JsonGuide(self._matcher.deep_copy(), self._size, self._end, self._special)

    def allowed(self) -> Array:
        """Which tokens may come next, bool (V,); the end token where the text may end. Raises DataError where none may."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        found: Array = np.unpackbits(bits, bitorder="little")[: self._size].astype(bool)
        # Where nothing goes on, the library lets the text end, complete or not, or become unknown.
        found[self._special] = False
        if found.sum() <= found[self._end] and not self._matcher.is_accepting():
            raise _refused(self._matcher.get_error() or "no token of the vocabulary goes on")
        return found

    def push(self, token: int) -> bool:
        """Take a token; whether the text is complete, nothing but the end may follow."""
        self._matcher.consume_token(token)
        return self._matcher.is_stopped() and not self._matcher.is_error()


class _Plain:
    """A vocabulary of characters, as the library wants it."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer, self.eos_token_id = tokenizer, tokenizer.end
        words = [tokenizer.token_of(i) if i < tokenizer.size else "" for i in range(size)]
        self.special_token_ids = [i for i, word in enumerate(words) if tokenizer.decode([i]) != word or not word]
        special = set(self.special_token_ids)
        self.tokens = [b"\xff" + str(i).encode() if i in special else word.encode() for i, word in enumerate(words)]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode([text])[0]


def _refused(message: str) -> DataError:
    return DataError(f"the JSON schema cannot be followed: {message.strip()}", field="json_schema")
