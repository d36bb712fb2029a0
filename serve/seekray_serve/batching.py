"""Dynamic batching: requests that wait together share one forward pass.

A batch is filled while the previous one runs; there is no timer, so a lone request waits for
nothing. A batch of a size that was seen to be short runs on the event loop itself, since two
thread switches cost more than a small model's forward pass; a long one runs in a worker thread,
so that the loop goes on reading requests meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from seekray.errors import TooBusyError
from seekray_serve.metrics import SIZES, Histogram, Measures

Job = TypeVar("Job")
Answer = TypeVar("Answer")

# Under this, a batch holds up the event loop for less than a round of socket reads does.
SHORT_S = 0.002


class _Waiting(Generic[Job, Answer]):
    __slots__ = ("future", "job", "rows")

    def __init__(self, job: Job, rows: int, future: asyncio.Future[Answer]) -> None:
        self.job = job
        self.rows = rows
        self.future = future


class Batcher(Generic[Job, Answer]):
    """Runs `run(jobs) -> answers` on as many waiting jobs as fit into `max_rows`.

    `run` gives, for each job, an answer or the exception that this job alone deserves.
    `max_queued` jobs may wait behind the running batch; one more is refused with 429.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Job]], Sequence[Answer | Exception]],
        *,
        max_rows: int = 1024,
        max_queued: int = -1,
        retry_after_s: int = 1,
        short_s: float = SHORT_S,
    ) -> None:
        self._run = run
        self._max_rows = max_rows
        self._max_queued = max_queued
        self._retry_after_s = retry_after_s
        self._short_s = short_s
        self._waiting: deque[_Waiting[Job, Answer]] = deque()
        self._busy = False
        # Seconds that a batch took, by the bit length of its rows (1, 2-3, 4-7, ...): a batch's
        # fixed cost is larger than its rows' on a small model, so seconds a row would mislead.
        self._seconds: dict[int, float] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self.batches = 0
        self.rows = 0
        self.largest = 0
        self.sizes = Histogram(SIZES)

    @property
    def queued(self) -> int:
        """How many jobs wait behind the running batch."""
        return len(self._waiting)

    def measures(self) -> Measures:
        """What it has done, and what waits."""
        return Measures({"rows": self.rows}, {"queue_size": self.queued}, {"batch_size": self.sizes})

    async def submit(self, job: Job, rows: int) -> Answer:
        """The answer to `job`. Raises its own exception, or TooBusyError when too many wait.

        A caller that is cancelled (its client hung up) leaves the queue; its job is not run.
        """
        if 0 <= self._max_queued <= len(self._waiting) and self._busy:
            raise TooBusyError.of(len(self._waiting), retry_after_s=self._retry_after_s)
        loop = asyncio.get_running_loop()
        waiting = _Waiting[Job, Answer](job, rows, loop.create_future())
        self._waiting.append(waiting)
        if not self._busy:
            self._busy = True
            # Not at once, but after the requests that the loop has already read.
            loop.call_soon(self._start)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            # Removed at once and not only skipped, so that it does not count as waiting.
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            raise

    def close(self) -> None:
        """Let the worker thread go."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        batch, rows = self._take()
        if not batch:
            self._busy = False
            return
        self.batches += 1
        self.rows += rows
        self.largest = max(self.largest, rows)
        self.sizes.observe(rows)
        jobs = [waiting.job for waiting in batch]
        # A size not seen yet goes to the thread, where it cannot hold anyone up.
        if self._seconds.get(rows.bit_length(), self._short_s) < self._short_s:
            self._finish(batch, rows, *self._timed(jobs))
            return
        loop = asyncio.get_running_loop()
        future = self._thread.submit(self._timed, jobs)
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(self._finish, batch, rows, *done.result()))

    def _take(self) -> tuple[list[_Waiting[Job, Answer]], int]:
        batch: list[_Waiting[Job, Answer]] = []
        rows = 0
        while self._waiting:
            head = self._waiting[0]
            if head.future.done():
                self._waiting.popleft()
                continue
            if batch and rows + head.rows > self._max_rows:
                break
            batch.append(self._waiting.popleft())
            rows += head.rows
        return batch, rows

    def _timed(self, jobs: Sequence[Job]) -> tuple[Sequence[Answer | Exception], float]:
        # This thread's CPU time: the wall would count the event loop's work in between.
        start = time.thread_time()
        try:
            answers = self._run(jobs)
        except Exception as error:  # a bug in `run`: each caller hears of it, the queue goes on
            answers = [error] * len(jobs)
        return answers, time.thread_time() - start

    def _finish(
        self,
        batch: list[_Waiting[Job, Answer]],
        rows: int,
        answers: Sequence[Answer | Exception],
        seconds: float,
    ) -> None:
        size = rows.bit_length()
        seen = self._seconds.get(size, seconds)
        self._seconds[size] = seen + 0.2 * (seconds - seen)  # follows a change in some ten batches
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.future.done():
                continue
            if isinstance(answer, Exception):
                waiting.future.set_exception(answer)
            else:
                waiting.future.set_result(answer)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._start)
        else:
            self._busy = False
