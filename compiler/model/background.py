"""Prefetching: steps run in threads ahead of their consumer, in order, and at most a bounded number of steps ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from compiler.store.parsing import parse_one_at_a_time

T = TypeVar("T")


def run_ahead(steps: Iterable[Callable[[], T]], *, workers: int, ahead: int) -> Iterator[T]:
    """Results of the steps in their order, computed while the consumer is busy with earlier ones.

    Args:
        steps: Taken one by one as there is room; each may run in any of the threads.
        workers: Threads, ≥ 1. With one, steps run strictly one after another.
        ahead: Most results that may wait, ≥ 1: what bounds memory.

    Raises:
        Exception: Whatever a step raises, at its place in the order. Steps that wait are then not run.
    """
    parse_one_at_a_time()
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="fleetc-data")
    try:
        for step in steps:
            waiting.append(pool.submit(step))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
