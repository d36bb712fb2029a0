"""The batcher alone: when a batch starts, what it holds, where it runs."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from seekray_serve.batching import Batcher


def run(main):
    return asyncio.run(asyncio.wait_for(main(), 20))


def test_a_batch_fills_while_the_previous_one_runs():
    gate, sizes = threading.Event(), []

    def work(jobs):
        sizes.append(len(jobs))
        if len(sizes) == 1:
            assert gate.wait(10)
        return [job * 2 for job in jobs]

    async def main():
        batcher = Batcher(work)
        first = asyncio.create_task(batcher.submit(1, 1))
        await asyncio.sleep(0.05)
        rest = [asyncio.create_task(batcher.submit(i, 1)) for i in range(2, 12)]
        await asyncio.sleep(0.05)
        gate.set()
        return await asyncio.gather(first, *rest)

    assert run(main) == [i * 2 for i in range(1, 12)]
    assert sizes == [1, 10]


def test_a_lone_request_waits_for_nothing():
    async def main():
        batcher = Batcher(lambda jobs: list(jobs))
        for _ in range(20):
            await batcher.submit(0, 1)
        start = time.perf_counter()
        for _ in range(100):
            await batcher.submit(0, 1)
        return (time.perf_counter() - start) / 100

    assert run(main) < 0.002  # a timer of even a few milliseconds would show


@pytest.mark.parametrize(("seconds", "inline"), [(0.0, True), (0.01, False)])
def test_short_batches_run_on_the_loop_and_long_ones_beside_it(seconds, inline):
    threads = []

    def work(jobs):
        threads.append(threading.current_thread() is threading.main_thread())
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
        return list(jobs)

    async def main():
        batcher = Batcher(work)
        for _ in range(5):
            await batcher.submit(0, 1)

    run(main)
    assert threads == [False, *[inline] * 4]


def test_a_batch_has_at_most_max_rows_but_one_job_may_be_larger():
    gate, sizes = threading.Event(), []

    def work(jobs):
        gate.wait(10)
        sizes.append(sum(jobs))
        return list(jobs)

    async def main():
        batcher = Batcher(work, max_rows=10)
        tasks = [asyncio.create_task(batcher.submit(rows, rows)) for rows in (25, 4, 4, 4, 4)]
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(*tasks)

    run(main)
    assert sizes == [25, 8, 8]


def test_a_job_gets_its_own_exception():
    async def main():
        batcher = Batcher(lambda jobs: [ValueError(job) if job % 2 else job for job in jobs])
        return await asyncio.gather(*(batcher.submit(i, 1) for i in range(4)), return_exceptions=True)

    found = run(main)
    assert [type(value) for value in found] == [int, ValueError, int, ValueError]


def test_a_broken_run_does_not_stop_the_queue():
    calls = []

    def work(jobs):
        calls.append(len(jobs))
        if len(calls) == 1:
            raise RuntimeError("broken")
        return list(jobs)

    async def main():
        batcher = Batcher(work)
        with pytest.raises(RuntimeError):
            await batcher.submit(1, 1)
        return await batcher.submit(2, 1)

    assert run(main) == 2
