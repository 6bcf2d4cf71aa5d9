"""Threads of the compression stages: one pool over independent pieces of work, and BLAS on one thread inside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from threadpoolctl import threadpool_limits

from compiler.fleet.machine import available_cpus

T = TypeVar("T")
S = TypeVar("S")


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Context in which numpy's BLAS and LAPACK compute on the thread that calls them.

    Threads of OpenBLAS wait actively between two calls. Beside our own pool, or another process, they take cores from
    those that have work: the face network's compensated rounding took five times the CPU time with them.
    """
    with threadpool_limits(1, user_api="blas"):
        yield


def in_parallel(function: Callable[[S], T], items: Iterable[S], *, most: int | None = None) -> list[T]:
    """Results for all items in their order, computed by as many threads as there are cores.

    Args:
        function: Should spend its time in numpy or ONNX Runtime, which release the interpreter's lock.
        items: All are in memory, and so are the results.
        most: Largest number of threads, where each of them needs much memory.
    """
    work = list(items)
    threads = min(len(work), available_cpus(), most or len(work))
    if threads < 2:
        return [function(item) for item in work]
    with ThreadPoolExecutor(threads, thread_name_prefix="fleetc-compress") as pool:
        return list(pool.map(function, work))
