"""Two artifacts timed in turn in one process, until the ratio of their times is known well enough or time is up.

A pair is a short block of runs of each, one after the other, the first one changing from pair to pair: what else the
machine does falls on both, and what changes slowly cancels. Of a block the fastest run counts, which other work delays
least. Where other work disturbs even that, the processor time of the runs is compared, on one processor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np

from compiler.evaluate.paired import ratio_of
from compiler.model.numerics import Arrays, load_arrays
from compiler.target.disturbance import conditions, disturbances, let_threads_rest
from compiler.target.request import RaceAnswer, RaceClock, RaceTask, RaceUntil
from compiler.target.runner import Runner
from compiler.target.target import find_target
from compiler.target.worker_measure import processor_ms, times_ms

BLOCK_MS = 60.0
"""How long one artifact runs before it is the other's turn: long against a cache's warming, short against a machine's
changes of load."""

BLOCK_RUNS = (3, 200)
"""Fewest and most runs of a block."""

Times = Callable[[Runner, Arrays, int], list[float]]
"""Milliseconds of each of some runs."""

Block = tuple[float, float]
"""The fastest run of a block and its median, in milliseconds."""


def race(task: RaceTask) -> RaceAnswer:
    """Runs two artifacts in turn, until the ratio is known well enough or time is up."""
    if task.clock == RaceClock.PROCESSOR:
        _keep_to_one_processor()  # before anything is loaded: runtimes take as many threads as they may use processors
    runners = [find_target(artifact.target).load(artifact) for artifact in task.artifacts]
    try:
        feeds = [load_arrays(path) for path in task.inputs]
        times = times_ms if task.clock == RaceClock.WALL else processor_ms
        sizes = [_block_size(times, runner, inputs) for runner, inputs in zip(runners, feeds, strict=True)]
        blocks: tuple[list[Block], list[Block]] = ([], [])
        let_threads_rest()
        # behind the loading, whose own work would count as a disturbance
        before = conditions()
        while not _is_enough(blocks, time.monotonic() - before.time_s, task.until):
            # in turn: the second of a pair finds warmer caches and a warmer processor
            first = len(blocks[0]) % 2
            for index in (first, 1 - first):
                if index != first:
                    let_threads_rest()
                blocks[index].append(_block(times, runners[index], feeds[index], sizes[index]))
        return RaceAnswer(
            medians_ms=tuple(tuple(median for _, median in own) for own in blocks),
            fastest_ms=tuple(tuple(fastest for fastest, _ in own) for own in blocks),
            # what waits for a processor uses none: the width of the interval tells what other work does to caches
            disturbed=disturbances(before, conditions(), threads=task.threads) if task.clock == RaceClock.WALL else "",
        )
    finally:
        for runner in runners:
            runner.close()


def _is_enough(blocks: tuple[list[Block], list[Block]], elapsed_s: float, until: RaceUntil) -> bool:
    if len(blocks[0]) < until.least_pairs:
        return False
    own, other = ([fastest for fastest, _ in mine] for mine in blocks)
    ratio = ratio_of(other, own)
    is_narrow = ratio.half_width <= until.half_width * ratio.value
    return is_narrow or elapsed_s > until.budget_s or len(blocks[0]) >= until.most_pairs


def _keep_to_one_processor() -> None:
    """Threads that wait for others that do not run would spend processor time on nothing but waiting."""
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _block_size(times: Times, runner: Runner, inputs: Arrays) -> int:
    """Runs that fill a block, by the fastest of a few: one alone may have been interrupted."""
    # the first run is no measure: memory is allocated, code is read from the disk
    runner.run(inputs)
    fewest, most = BLOCK_RUNS
    fastest = min(times(runner, inputs, fewest))
    return max(fewest, min(most, round(BLOCK_MS / max(fastest, 1e-3))))


def _block(times: Times, runner: Runner, inputs: Arrays, runs: int) -> Block:
    block = times(runner, inputs, runs)
    return min(block), float(np.median(block))
