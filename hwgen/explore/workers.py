"""Evaluations in parallel: here, in processes of this machine, or on a Dask cluster. The results do not depend on which."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager

from .. import processes
from ..boards import Board
from ..errors import UserError
from .points import Job, Point, evaluate
from .work import Graphs

Progress = Callable[[int, int], None]  # evaluations done and asked for so far
Results = list[Point | UserError]
Crew = Callable[[list[Job]], Results]
WORTH_SECONDS = 2.0  # of work left, for which processes are started
CONNECT_SECONDS = 10


def default_workers() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def crew(graphs: Graphs, board: Board, workers: int, cluster: str | None, progress: Progress) -> Iterator[Crew]:
    """A function that evaluates jobs and returns the results in their order.

    cluster: address of a Dask scheduler. Raises UserError where it does not answer or has no workers.
    """
    count = [0, 0]

    def told(jobs: int = 0, done: int = 0) -> None:
        count[0] += done
        count[1] += jobs
        if done:
            progress(*count)

    if cluster is not None:
        with _dask(graphs, board, cluster, told) as run:
            yield run
        return
    pool: list[ProcessPoolExecutor] = []

    def run(jobs: list[Job]) -> Results:
        told(jobs=len(jobs))
        results: Results = []
        start = time.monotonic()
        while len(results) < len(jobs) and not pool:
            results.append(evaluate(graphs, board, jobs[len(results)]))
            told(done=1)
            left = (time.monotonic() - start) / len(results) * (len(jobs) - len(results))
            if workers > 1 and left > WORTH_SECONDS:
                # Processes that inherit nothing: a fork of a process with threads may hang.
                context = multiprocessing.get_context("spawn")
                pool.append(ProcessPoolExecutor(workers, context, _start, (graphs, board)))
        with processes.uninterrupted():  # submitting starts the processes
            futures = [pool[0].submit(_evaluate, job) for job in jobs[len(results) :]] if pool else []
        for _ in as_completed(futures):
            told(done=1)
        return results + [future.result() for future in futures]

    try:
        yield run
    except BaseException:  # a signal: what they compute is of no use any more, and may take long
        for each in pool:
            for worker in list((each._processes or {}).values()):  # a method of the pool since Python 3.14
                worker.terminate()
        raise
    finally:
        for each in pool:
            each.shutdown(cancel_futures=True)


_given: list = []  # a worker process: the network and the board


def _start(graphs: Graphs, board: Board) -> None:
    _given[:] = graphs, board


def _evaluate(job: Job) -> Point | UserError:
    return evaluate(*_given, job)


@contextmanager
def _dask(graphs: Graphs, board: Board, address: str, told) -> Iterator[Crew]:
    try:
        import distributed
    except ImportError:
        raise UserError("--cluster: distributed is not installed: pip install 'hwgen[cluster]'") from None
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"--cluster {address}: no Dask scheduler answers there ({error})") from None
    try:
        if not client.scheduler_info()["workers"]:
            raise UserError(f"--cluster {address}: the scheduler has no workers")
        # In a list: a bare dict would be taken for several values with their keys.
        (network,) = client.scatter([graphs], broadcast=True, hash=False)

        def run(jobs: list[Job]) -> Results:
            if not jobs:
                return []
            told(jobs=len(jobs))
            futures = [client.submit(evaluate, network, board, job, pure=False) for job in jobs]
            for _ in distributed.as_completed(futures):
                told(done=1)
            return client.gather(futures)

        try:
            yield run
        except (ImportError, AttributeError, distributed.KilledWorker) as error:
            raise UserError(f"--cluster {address}: its workers cannot run this hwgen ({error})") from None
    finally:
        client.close()
