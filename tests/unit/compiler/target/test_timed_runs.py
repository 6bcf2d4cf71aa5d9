"""How often a run is timed: as often as was asked for, and less often where that would take too long."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from compiler.artifact import Evidence
from compiler.model.numerics import write_arrays
from compiler.target import Array
from compiler.target.worker import LEAST_TIMED, _run_once


class Slow:
    """Takes ten milliseconds."""

    evidence = Evidence.HOST

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        time.sleep(0.01)
        return inputs

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("repeat", "budget_s", "least", "most"),
    [
        (20, None, 20, 20),
        (20, 60.0, 20, 20),
        (20, 0.1, LEAST_TIMED, 10),
        (20, 0.001, LEAST_TIMED, LEAST_TIMED),
        (2, 0.001, 2, 2),
    ],
    ids=["no budget", "within it", "as many as fit", "enough in any case", "never more than were asked for"],
)
def test_timed_runs_have_a_budget(tmp_path: Path, repeat: int, budget_s: float | None, least: int, most: int) -> None:
    write_arrays(tmp_path / "in.npz", {"x": np.zeros(1, np.float32)})
    times = _run_once(Slow(), tmp_path / "in.npz", tmp_path / "out.npz", repeat=repeat, budget_s=budget_s)
    assert least <= len(times) <= most and all(ms >= 10 for ms in times)
