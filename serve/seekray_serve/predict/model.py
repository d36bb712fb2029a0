"""A batch of jobs through a predictor: features, one forward pass, and each job's own answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from seekray.errors import SeekrayError
from seekray_serve.predict.rows import Answer, Job, Key, RowReader

if TYPE_CHECKING:
    from torch import Tensor

    from seekray.predictor import Predictor

Inputs = dict[str, "Tensor"]


class BatchModel:
    """Runs batches so that no job's error or values reach another job."""

    def __init__(self, predictor: Predictor, reader: RowReader) -> None:
        self._predictor = predictor
        self._reader = reader

    def run(self, jobs: Sequence[Job]) -> list[Answer | Exception]:
        """An answer, or the job's own error, for each job."""
        answers: list[Answer | Exception] = [RuntimeError("not run")] * len(jobs)
        parts: list[tuple[list[int], Inputs]] = []
        groups: dict[Key, list[int]] = {}
        for index, job in enumerate(jobs):
            if job.key is None:
                self._prepare(jobs, [index], parts, answers)
            else:
                groups.setdefault(job.key, []).append(index)
        for members in groups.values():
            self._prepare(jobs, members, parts, answers)
        if parts:
            self._forward(jobs, parts, answers)
        return answers

    def _prepare(
        self,
        jobs: Sequence[Job],
        members: list[int],
        parts: list[tuple[list[int], Inputs]],
        answers: list[Answer | Exception],
    ) -> None:
        columns = jobs[members[0]].columns
        if columns is None:
            columns = self._reader.columns([row for i in members for row in jobs[i].rows or ()])
        try:
            parts.append((members, self._predictor.prepare(columns)))
        except Exception as error:
            if len(members) == 1:
                answers[members[0]] = error
                return
            # One of them is bad; alone, each gets its own answer and its own row numbers.
            for index in members:
                self._prepare(jobs, [index], parts, answers)

    def _forward(
        self,
        jobs: Sequence[Job],
        parts: list[tuple[list[int], Inputs]],
        answers: list[Answer | Exception],
    ) -> None:
        try:
            inputs = parts[0][1] if len(parts) == 1 else _concatenate([part for _, part in parts])
            result = self._predictor.decode(self._predictor.forward(inputs))
        except Exception as error:
            if len(parts) == 1 and len(parts[0][0]) == 1:
                answers[parts[0][0][0]] = error
            elif len(parts) == 1:
                for index in parts[0][0]:
                    answers[index] = self.run([jobs[index]])[0]
            else:
                for part in parts:
                    self._forward(jobs, [part], answers)
            return
        start = 0
        for members, _ in parts:
            for index in members:
                stop = start + jobs[index].count
                answers[index] = Answer(result.predictions, result.probabilities, start, stop, result.quantiles)
                start = stop
        if start != len(result.predictions):
            wrong = SeekrayError(f"the model gave {len(result.predictions)} predictions for {start} rows")
            for members, _ in parts:
                for index in members:
                    answers[index] = wrong


def _concatenate(parts: Sequence[Inputs]) -> Inputs:
    from seekray.data.sequences.ragged import joined

    return {name: joined([part[name] for part in parts]) for name in parts[0]}
