"""Two artifacts timed in turn in one process, until the ratio of their times is known well enough or time is up.

A pair is a short block of runs of each, one after the other, the first one changing from pair to pair: what else the
machine does falls on both, and what changes slowly cancels. Of a block the fastest run counts, which other work delays
least.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compiler.artifact import artifact_from_dict
from compiler.evaluate.paired import ratio_of
from compiler.model.numerics import Arrays
from compiler.target.disturbance import conditions, disturbances
from compiler.target.target import find_target

BLOCK_MS = 60.0
"""How long one artifact runs before it is the other's turn: long against a cache's warming, short against a machine's
changes of load."""

BLOCK_RUNS = (3, 200)
"""Fewest and most runs of a block."""

Block = tuple[float, float]
"""The fastest run of a block and its median, in milliseconds."""


def race(request: Mapping[str, Any]) -> dict[str, Any]:
    """Runs two artifacts in turn.

    Args:
        request: `artifacts`, `inputs`; `least_pairs`, `most_pairs`, `budget_s` and `half_width`: when it ends;
            `threads`: how many threads the artifacts run on.

    Returns:
        Per artifact the fastest run and the median of every block, in milliseconds; and what disturbed the measurement.
    """
    runners = [find_target(one["target"]).load(artifact_from_dict(one)) for one in request["artifacts"]]
    try:
        feeds = [read_npz(Path(path)) for path in request["inputs"]]
        sizes = [_block_size(runner, inputs) for runner, inputs in zip(runners, feeds, strict=True)]
        blocks: tuple[list[Block], list[Block]] = ([], [])
        before = conditions()
        while not _is_enough(blocks, time.monotonic() - before.time_s, request):
            first = len(blocks[0]) % 2
            for index in (first, 1 - first):
                blocks[index].append(_block(runners[index], feeds[index], sizes[index]))
        return {
            "fastest_ms": [[fastest for fastest, _ in mine] for mine in blocks],
            "medians_ms": [[median for _, median in mine] for mine in blocks],
            "disturbed": disturbances(before, conditions(), threads=int(request["threads"])),
        }
    finally:
        for runner in runners:
            runner.close()


def read_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every array of a file that the parent wrote."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _is_enough(blocks: tuple[list[Block], list[Block]], elapsed_s: float, request: Mapping[str, Any]) -> bool:
    if len(blocks[0]) < request["least_pairs"]:
        return False
    own, other = ([fastest for fastest, _ in mine] for mine in blocks)
    ratio = ratio_of(other, own)
    is_narrow = ratio.half_width <= float(request["half_width"]) * ratio.value
    return is_narrow or elapsed_s > float(request["budget_s"]) or len(blocks[0]) >= request["most_pairs"]


def _block_size(runner: Any, inputs: Arrays) -> int:
    """Runs that fill a block, by the fastest of a few: one alone may have been interrupted."""
    runner.run(inputs)
    fewest, most = BLOCK_RUNS
    fastest = min(_times_ms(runner, inputs, fewest))
    return max(fewest, min(most, round(BLOCK_MS / max(fastest, 1e-3))))


def _block(runner: Any, inputs: Arrays, runs: int) -> Block:
    times = _times_ms(runner, inputs, runs)
    return min(times), float(np.median(times))


def _times_ms(runner: Any, inputs: Arrays, runs: int) -> list[float]:
    timed = getattr(runner, "latencies_ms", None)  # a runner that starts a program times inside of it
    if timed is not None:
        return list(timed(inputs, runs))
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        runner.run(inputs)
        times.append((time.perf_counter() - started) * 1e3)
    return times
