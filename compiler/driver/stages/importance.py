"""In which order every group's channels go; the same for every ratio and every device class."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from compiler.compress.prune import find_order
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.files import load_stage
from compiler.errors import InternalError
from compiler.evaluate import Dataset
from compiler.model.numerics import Arrays
from compiler.store import Entry, StageName, read_result, write_result

BATCH = 8
"""Samples that go by at a time, where the model leaves that open."""

_ORDER = "order.json"


def order_entry(context: BuildContext, rewritten: Entry) -> Entry:
    """What the channels of a rewritten model are worth, as the order in which they go."""
    data = calibration_of(context)

    def make(folder: Path) -> None:
        write_result(folder, _ORDER, find_order(load_stage(rewritten), batches_of(data)))

    return context.stages.run(StageName.IMPORTANCE, make, model=rewritten.digest, data=[data.digest, data.count])


def read_order(entry: Entry) -> Any:
    """The order, as `compiler.compress.prune` takes it."""
    return read_result(entry, _ORDER)


def batches_of(data: Dataset) -> Callable[[], Iterable[Arrays]]:
    """The data from the start, as often as it is called; in two batches at least, since one half judges the other."""
    size = max(1, min(BATCH, data.count // 2))
    return lambda: data.full_batches(size)


def calibration_of(context: BuildContext) -> Dataset:
    """The data that pruning and recovery work on; a plan without them prunes nothing."""
    if context.data.calibration is None:
        raise InternalError("a plan prunes, and there are no calibration data")
    return context.data.calibration
