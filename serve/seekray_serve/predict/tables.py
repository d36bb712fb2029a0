"""Tables as Arrow IPC streams: many rows in one call, computed a batch at a time so that others' requests go between."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from seekray.errors import DataError, TooLargeError
from seekray_serve.batching import Batcher
from seekray_serve.http import Headers, RequestError, Response
from seekray_serve.options import Limits
from seekray_serve.predict.packed import unpacked_size
from seekray_serve.predict.rows import Answer, Job, RowReader

if TYPE_CHECKING:
    import pyarrow as pa

    from seekray.predictor import Predictor

ARROW = b"application/vnd.apache.arrow.stream"


class Tables:
    """Reads and answers such bodies for one model."""

    def __init__(self, predictor: Predictor, reader: RowReader, batcher: Batcher[Job, Answer], limits: Limits) -> None:
        self._predictor, self._reader, self._batcher, self._limits = predictor, reader, batcher, limits

    def read(self, body: bytes) -> list[Job]:
        """The rows of a stream, cut into jobs of at most a batch. Raises DataError, TooLargeError."""
        import pyarrow as pa

        rows = size = 0
        jobs: list[Job] = []
        try:
            for batch in self._batches(body):
                batch.validate(full=True)  # offsets that point elsewhere would be read all the same
                rows, size = rows + batch.num_rows, size + batch.nbytes
                if rows > self._limits.max_table_rows:
                    most = self._limits.max_table_rows
                    raise TooLargeError(f"over {most:,} rows in one call; send them in parts", field="rows")
                if size > self._limits.max_table_bytes:
                    raise self._too_large()
                columns = self._columns(batch)
                for start in range(0, batch.num_rows, self._limits.max_batch_rows):
                    part = columns.slice(start, self._limits.max_batch_rows)
                    jobs.append(Job(part.num_rows, columns=part))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, pa.ArrowKeyError, OSError, EOFError) as error:
            raise RequestError(400, "bad_arrow", f"the body is no Arrow IPC stream: {str(error).splitlines()[0]}") from error
        if not jobs:
            raise DataError("the table has no rows", field="rows")
        return jobs

    def _batches(self, body: bytes) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        if unpacked_size(body) > self._limits.max_table_bytes:
            raise self._too_large()
        with pa.ipc.open_stream(pa.py_buffer(body)) as stream:
            yield from stream

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"the table is over the limit of {self._limits.max_table_bytes:,} bytes; send it in parts")

    def _columns(self, batch: pa.RecordBatch) -> pa.Table:
        import pyarrow as pa

        names = batch.schema.names
        if len(set(names)) < len(names):
            raise DataError("the table has two columns of the same name", field="columns")
        if set(names) != set(self._reader.names):
            self._reader.check_names(dict.fromkeys(names), "the table")
        return pa.Table.from_batches([batch]).select(list(self._reader.names))

    async def answer(self, jobs: list[Job]) -> list[Answer]:
        """An answer a job, one job after another."""
        return [await self._batcher.submit(job, job.count) for job in jobs]

    def write(self, answers: list[Answer]) -> Response:
        """The columns of a prediction's file, as a stream; model and version are headers."""
        import pyarrow as pa

        buffer = io.BytesIO()
        batches = [pa.table(answer.columns()) for answer in answers]
        with pa.ipc.new_stream(buffer, (schema := batches[0].schema)) as writer:
            for batch in batches:
                writer.write_table(batch if batch.schema == schema else batch.cast(schema))
        about: Headers = [
            (b"seekray-model", self._predictor.name.encode()),
            (b"seekray-version", str(self._predictor.version).encode()),
        ]
        return Response(buffer.getvalue(), content_type=ARROW, headers=about)


def joined(answers: list[Answer]) -> dict[str, Any]:
    """Answers as one, in the form of `predict`'s JSON without the model."""
    found: dict[str, Any] = {"predictions": [p for answer in answers for p in answer.predictions], "probabilities": None}
    for name in ("probabilities", "quantiles"):
        parts = [part for answer in answers if (part := getattr(answer, name)) is not None]
        if parts:
            found[name] = [row for part in parts for row in part]
    return found
