"""A language model on held-out texts, and on prompts whose responses are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from seekray.data.columns import check_columns
from seekray.data.options import Data
from seekray.data.sources import open_source
from seekray.data.text.passages import IGNORED
from seekray.data.text.source import pieces, text_files
from seekray.errors import DataError
from seekray.evaluation.result import Asked, Evaluation
from seekray.models.lm import text_metrics, token_losses

if TYPE_CHECKING:
    from seekray.data.text.schema import TextSchema
    from seekray.generator import Generator

BATCH_TOKENS = 16_384
ANSWERED = 1000  # prompts that are answered, the first
ANSWER_TOKENS = 128
SHOWN = 10


def read(model: Generator, data: Data) -> pa.Table:
    """Texts of .txt files, or the columns of anything else. Raises DataError."""
    texts, held = [], []
    if text_files(data.source) is None:
        return open_source(data).table()
    for piece in pieces(data):
        held.append(piece.text)
        if piece.ends:
            texts.append("".join(held))
            held = []
    return pa.table({model.schema.column: texts})  # type: ignore[attr-defined]


def evaluate(model: Generator, table: pa.Table, asked: Asked) -> Evaluation:
    """Texts: loss in nats a token, perplexity and bits per byte, each token with at least half a context before it.

    Prompts with responses: loss and perplexity of the responses, and of the greedy answers to the first ANSWERED
    prompts exact match (white space at the ends aside) and chrF (sacreBLEU's, 0 to 100). Rows without a text are
    rejected. Intervals resample rows. Raises DataError.
    """
    schema: TextSchema = model.schema  # type: ignore[assignment]
    response = schema.response if schema.response in table.column_names else None
    names = [schema.column] if response is None else [schema.column, response]
    check_columns(names, table.column_names)
    columns = [table.column(name).to_pylist() for name in names]
    good = [row for row, values in enumerate(zip(*columns, strict=True)) if all(isinstance(v, str) and v for v in values)]
    if not good:
        raise DataError(f"no row has a text in {' and '.join(map(repr, names))}")
    kept = [[column[row] for row in good] for column in columns]
    if response is None:
        first = [] if schema.first_id is None else [schema.first_id]
        encoded = [([*first, *ids, schema.tokenizer.end], 1) for ids in schema.tokenizer.encode(kept[0])]
        sizes = np.array([len(text.encode()) for text in kept[0]])
    else:
        prompts = schema.encode_prompts(kept[0])
        answers = schema.tokenizer.encode(kept[1])
        encoded = [([*p, *a, schema.tokenizer.end], len(p)) for p, a in zip(prompts, answers, strict=True)]
        sizes = np.zeros(len(good))
    losses = _losses(model, encoded)
    counts = np.array([len(ids) - first for ids, first in encoded])
    figures = np.stack([losses, counts, sizes], axis=1)  # (N, 3)
    metrics = _metrics(figures.sum(0))
    rng = np.random.default_rng(asked.seed)
    draws = [_metrics(figures[rng.integers(0, len(good), len(good))].sum(0)) for _ in range(asked.resamples)]
    details: dict[str, Any] = {}
    if response is not None:
        scores, details = _answers(model, kept[0], kept[1])
        metrics |= {name: float(values.mean()) for name, values in scores.items()}
        picks = rng.integers(0, len(scores["exact_match"]), (asked.resamples, len(scores["exact_match"])))
        for name, values in scores.items():
            for draw, mean in zip(draws, values[picks].mean(1), strict=True):
                draw[name] = float(mean)
    intervals = {}
    for name in metrics if draws else ():
        low, high = np.quantile([d[name] for d in draws], [0.025, 0.975])
        intervals[name] = (float(low), float(high))
    missing = sorted(set(range(len(table))) - set(good))
    return Evaluation(
        task=model.task, rows=len(good), rejected=len(missing), metrics=metrics, intervals=intervals, notes={},
        rejections=[{"row": row, "reason": "there is no text"} for row in missing[:20]], groups={}, details=details,
    )  # fmt: skip


def _metrics(sums: np.ndarray[Any, Any]) -> dict[str, float]:
    loss, tokens, size = (float(v) for v in sums)
    return text_metrics(loss, int(tokens), size)


def _losses(model: Generator, texts: Sequence[tuple[list[int], int]]) -> np.ndarray[Any, Any]:
    """(N,) summed loss of each text's tokens from place `first` on."""
    network, context = model.modules["lm"], model.schema.dense_size
    out = np.zeros(len(texts))
    batch: list[tuple[int, list[int], int]] = []
    windows = sorted(_windows(texts, context), key=lambda w: len(w[1]))
    for number, window in enumerate(windows):
        batch.append(window)
        if (len(batch) + 1) * len(window[1]) <= BATCH_TOKENS and number + 1 < len(windows):
            continue
        tokens = torch.zeros(len(batch), len(window[1]) - 1, dtype=torch.int64)
        targets = torch.full_like(tokens, IGNORED)
        for row, (_, ids, first) in enumerate(batch):
            tokens[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            targets[row, first - 1 : len(ids) - 1] = torch.tensor(ids[first:])
        with torch.inference_mode():
            found = token_losses(network, tokens.to(model.device), targets.to(model.device))  # type: ignore[arg-type]
        for (text, _, _), loss in zip(batch, found.double().sum(1).tolist(), strict=True):
            out[text] += loss
        batch = []
    return out


def _windows(texts: Sequence[tuple[list[int], int]], context: int) -> Iterator[tuple[int, list[int], int]]:
    """Number of the text, up to context + 1 of its tokens, and the place in them of the first one that counts."""
    for number, (ids, first) in enumerate(texts):
        done = first
        while done < len(ids):
            stop = min(len(ids), max(done + context // 2, context + 1) if done > first else max(context + 1, done + 1))
            start = max(0, stop - context - 1)
            yield number, ids[start:stop], max(1, done - start)
            done = stop


def _answers(
    model: Generator, prompts: list[str], responses: list[str]
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """exact_match and chrf of each answer, and what a report shows of them."""
    from sacrebleu.metrics.chrf import CHRF

    prompts, responses = prompts[:ANSWERED], responses[:ANSWERED]
    longest = max(len(ids) for ids in model.schema.tokenizer.encode(responses))  # type: ignore[attr-defined]
    limit = min(ANSWER_TOKENS, longest + 1 + longest // 4)
    made = model.generate(prompts, max_tokens=limit, temperature=0.0, truncate=True)
    answers = made.column("text").to_pylist()
    chrf = CHRF()
    pairs = list(zip(answers, responses, strict=True))
    scores = {
        "exact_match": np.array([float(a.strip() == r.strip()) for a, r in pairs]),
        "chrf": np.array([chrf.sentence_score(a, [r]).score for a, r in pairs]),
    }
    shown = [{"prompt": p, "answer": a, "response": r} for p, (a, r) in zip(prompts[:SHOWN], pairs, strict=False)]
    details = {"answers": shown, "answered": len(prompts), "corpus_chrf": chrf.corpus_score(answers, [responses]).score}
    return scores, details
