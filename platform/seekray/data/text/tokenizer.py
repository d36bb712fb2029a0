"""Tokenizers: trained here, or any `tokenizer.json`; always one object of the `tokenizers` library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from seekray.errors import DataError

if TYPE_CHECKING:
    from seekray.data.text.grammar import JsonGrammar, JsonGuide

UNKNOWN = "<|unknown|>"
# Characters that training looks at; more change a vocabulary of this kind no longer.
TRAINED_ON = 200_000_000


class Tokenizer:
    """Text to token ids and back.

    end: id of the token between documents. size: entries of the vocabulary. Special tokens that stand in a text are
    text: only `encode(..., special=True)`, for templates, gives their ids.
    """

    def __init__(self, file: bytes, end_token: str) -> None:
        try:
            self._library = Library.from_str(file.decode())
        except Exception as error:  # the library raises Exception itself
            raise DataError(f"tokenizer.json cannot be read: {error}", field="data.text.tokenizer") from error
        self._library.no_padding()
        self._library.no_truncation()
        if self._library.token_to_id(end_token) is None:
            self._library.add_special_tokens([end_token])
        self.end_token = end_token
        self.end = self.id_of(end_token) or 0
        self.size = int(self._library.get_vocab_size())
        self._grammar: JsonGrammar | None = None

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes, str]]:
        return (Tokenizer, (self.to_bytes(), self.end_token))

    def to_bytes(self) -> bytes:
        """As `tokenizer.json`."""
        return str(self._library.to_str(pretty=False)).encode()

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Ids of each text, nothing added to them."""
        self._library.encode_special_tokens = not special
        return [e.ids for e in self._library.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; the end token and other special ones are left out."""
        return str(self._library.decode(list(ids), skip_special_tokens=True))

    def token_of(self, number: int) -> str:
        """The token of an id."""
        return str(self._library.id_to_token(number))

    def first_token(self) -> str:
        """What a `tokenizer.json` from elsewhere puts before a text; "" where it is nothing."""
        ids = self._library.encode("").ids
        return self.token_of(ids[0]) if ids and ids[0] != self.end else ""

    def json_guide(self, schema: Mapping[str, Any], size: int) -> JsonGuide:
        """Which tokens may make a text of a JSON schema; size: entries of the model's vocabulary. Raises DataError."""
        if self._grammar is None or self._grammar.size != size:
            from seekray.data.text.grammar import JsonGrammar

            self._grammar = JsonGrammar(self, size)
        return self._grammar.guide(schema)

    def id_of(self, token: str) -> int | None:
        """The id of one token, None where there is no such token."""
        found = self._library.token_to_id(token)
        return None if found is None else int(found)


def from_file(path: str, end_token: str, special: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`. Raises DataError."""
    try:
        given = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise DataError(
            f"data.text.tokenizer: {path!r} given, expected bpe, char, byte or the path of a tokenizer.json: {error.strerror}",
            field="data.text.tokenizer",
        ) from error
    tokenizer = Tokenizer(given, end_token)
    if missing := [t for t in special if tokenizer.id_of(t) is None]:
        tokenizer._library.add_special_tokens(missing)
        tokenizer = Tokenizer(tokenizer.to_bytes(), end_token)
    return tokenizer


def train(kind: str, texts: Iterable[str], vocab_size: int, end_token: str, special: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer of bpe, char or byte; the same texts give the same one. Raises DataError.

    vocab_size: of bpe and, at most, of char. BPE is byte-level (as GPT-2's), so that every text has ids.
    """
    special = [end_token, *special]
    if kind == "char":
        return _characters(texts, vocab_size, special)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(alphabet) + len(special)
    if kind == "bpe" and vocab_size < least:
        raise DataError(
            f"model.vocab_size: {vocab_size} given, bpe has {least} entries before the first merge", field="model.vocab_size"
        )
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size if kind == "bpe" else least,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    library.train_from_iterator(_enough(texts) if kind == "bpe" else [], trainer)
    return Tokenizer(str(library.to_str()).encode(), end_token)


def _characters(texts: Iterable[str], vocab_size: int, special: Sequence[str]) -> Tokenizer:
    counts: Counter[str] = Counter()
    for text in _enough(texts):
        counts.update(text)
    kept = sorted(counts, key=lambda c: (-counts[c], c))[: max(0, vocab_size - len(special) - 1)]
    vocabulary = {token: i for i, token in enumerate([*special, UNKNOWN, *sorted(kept)])}
    library = Library(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    library.decoder = decoders.Fuse()
    library.add_special_tokens([*special, UNKNOWN])
    return Tokenizer(str(library.to_str()).encode(), special[0])


def _enough(texts: Iterable[str]) -> Iterator[str]:
    seen = 0
    for text in texts:
        yield text
        seen += len(text)
        if seen > TRAINED_ON:
            return
