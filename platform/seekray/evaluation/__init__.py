"""How good a model is on data: the task says how it is measured."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from seekray.data.options import Data
from seekray.data.parse import shown
from seekray.data.sequences.framing import framed_rows
from seekray.data.sources import open_source
from seekray.errors import UserError
from seekray.evaluation.result import Asked, Evaluation, as_text
from seekray.evaluation.rows import SHOWN_REJECTIONS, compare

if TYPE_CHECKING:
    import pyarrow as pa

    from seekray.generator import Generator
    from seekray.predictor import Predictor

# Task -> module of this package whose `evaluate` measures it; a family of the user's has rows unless its task is here.
EVALUATORS = {
    "rows": "synthesis", "images": "synthesis_media", "texts": "synthesis_media", "pretrain": "texts", "finetune": "texts",
    "labelling": "labelling", "forecast": "forecast",
}  # fmt: skip
GROUPED = ("rows", "labelling", "forecast")  # those that measure row by row, and so groups of rows

__all__ = ["EVALUATORS", "Evaluation", "as_text", "compare", "evaluate", "read"]


def read(model: Predictor | Generator, data: Data) -> pa.Table:
    """Held-out data as the task's `evaluate` takes it: all columns of a source, or text files as texts. Raises DataError."""
    own: Callable[[Any, Data], pa.Table] | None = getattr(_evaluator(model), "read", None)
    return own(model, data) if own else open_source(data).table()


def evaluate(
    model: Predictor | Generator,
    table: pa.Table,
    *,
    by: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
    training: pa.Table | None = None,
) -> Evaluation:
    """Measure a model on a table of held-out data.

    by: columns whose values get a line of metrics each. resamples: bootstrap draws of the 95 % intervals, 0
    for none. training: the training rows, where what is made is compared with them. What cannot be used is
    counted in `rejected`. Raises DataError, UserError.
    """
    if by and EVALUATORS.get(model.task, "rows") not in GROUPED:
        raise UserError(
            f"--by {', '.join(by)}: model {model.name!r} (task {model.task}) is measured over all data at once, not in groups; "
            "leave it out, or evaluate a file of each group"
        )
    table, unread = framed_rows(table, getattr(model.schema, "frame", None))
    found: Evaluation = _evaluator(model).evaluate(model, table, Asked(by, resamples, seed, training))
    if not unread:
        return found
    steps = [
        {"row": r["row"], "reason": f"column {r['column']!r}, no step: {r['reason']}, got {shown(r['value'])}"} for r in unread
    ]
    rejections = [*steps, *found.rejections][:SHOWN_REJECTIONS]
    return replace(found, rejected=found.rejected + len(unread), rejections=rejections)


def _evaluator(model: Predictor | Generator) -> Any:
    return importlib.import_module(f"{__name__}.{EVALUATORS.get(model.task, 'rows')}")
