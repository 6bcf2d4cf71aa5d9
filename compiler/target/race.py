"""Two artifacts timed in turn in one process, until the ratio of their times is known well enough or time is up.

A pair is a short block of runs of each, one after the other, the first one changing from pair to pair: what else the
machine does falls on both, and what changes slowly cancels. Of a block the fastest run counts, which other work delays
least.
"""

from __future__ import annotations

import time

import numpy as np

from compiler.evaluate.paired import ratio_of
from compiler.model.numerics import Arrays, load_arrays
from compiler.target.disturbance import conditions, disturbances
from compiler.target.request import RaceAnswer, RaceTask, RaceUntil
from compiler.target.runner import Runner
from compiler.target.target import find_target
from compiler.target.worker_measure import times_ms

BLOCK_MS = 60.0
"""How long one artifact runs before it is the other's turn: long against a cache's warming, short against a machine's
changes of load."""

BLOCK_RUNS = (3, 200)
"""Fewest and most runs of a block."""

Block = tuple[float, float]
"""The fastest run of a block and its median, in milliseconds."""


def race(task: RaceTask) -> RaceAnswer:
    """Runs two artifacts in turn, until the ratio is known well enough or time is up."""
    runners = [find_target(artifact.target).load(artifact) for artifact in task.artifacts]
    try:
        feeds = [load_arrays(path) for path in task.inputs]
        sizes = [_block_size(runner, inputs) for runner, inputs in zip(runners, feeds, strict=True)]
        blocks: tuple[list[Block], list[Block]] = ([], [])
        # behind the loading, whose own work would count as a disturbance
        before = conditions()
        while not _is_enough(blocks, time.monotonic() - before.time_s, task.until):
            # in turn: the second of a pair finds warmer caches and a warmer processor
            first = len(blocks[0]) % 2
            for index in (first, 1 - first):
                blocks[index].append(_block(runners[index], feeds[index], sizes[index]))
        return RaceAnswer(
            medians_ms=tuple(tuple(median for _, median in own) for own in blocks),
            fastest_ms=tuple(tuple(fastest for fastest, _ in own) for own in blocks),
            disturbed=disturbances(before, conditions(), threads=task.threads),
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


def _block_size(runner: Runner, inputs: Arrays) -> int:
    """Runs that fill a block, by the fastest of a few: one alone may have been interrupted."""
    # the first run is no measure: memory is allocated, code is read from the disk
    runner.run(inputs)
    fewest, most = BLOCK_RUNS
    fastest = min(times_ms(runner, inputs, fewest))
    return max(fewest, min(most, round(BLOCK_MS / max(fastest, 1e-3))))


def _block(runner: Runner, inputs: Arrays, runs: int) -> Block:
    times = times_ms(runner, inputs, runs)
    return min(times), float(np.median(times))
