"""The judge of each pass: what it changed in the outputs on the probe, and whether it must be undone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import onnx_ir as ir

from compiler.errors import UnsupportedModel
from compiler.model.graph import Lossy, Pass
from compiler.model.numerics import TOLERANCES, Array, Arrays, ErrorStats, Tolerance, compare_all
from compiler.passes.probe import Probe, least_db, own_noise_db, tolerance_of, worst_of
from compiler.passes.quantized import count_quantized_steps

UNCHANGED = "the pass changed nothing"
NO_PROBE = "no probe was asked for"


@dataclass(frozen=True)
class Finding:
    """What one pass did to the outputs.

    Args:
        worst: The output that differs most from the model before the first pass; None where that is not known.
        not_measured: Why it is None.
        fault: Why the pass must be undone; empty where its result stands.
    """

    worst: ErrorStats | None
    not_measured: str = ""
    fault: str = ""


class Judge:
    """Compares the outputs after each pass with those before it.

    Each pass is held to the tolerance of the arithmetic in the model before and after it. A pass that is `Lossy` is not
    judged: the user asked for its precision, and gates judge what it costs. A pass that writes a recurrent layer in
    floats which quantizes at each step is held to the noise of the model itself, where that is more.

    Args:
        probe: Inputs, and the outputs before the first pass; None judges nothing.
        model: The model before the first pass.
        undo: Whether a pass that changes the outputs must be undone; otherwise the change is only measured.
        strict: Whether a pass must be undone too after which the reference no longer runs the model. Portable passes
            make ONNX only; those of a target may make operators that the reference does not have.
    """

    def __init__(self, probe: Probe | None, model: ir.Model, *, undo: bool, strict: bool) -> None:
        self._probe, self._undo, self._strict = probe, undo, undo and strict
        self._outputs = None if probe is None else probe.expected
        self._copy: ir.Model | None = None
        self._tolerance = tolerance_of(model)
        self._steps = count_quantized_steps(model)
        self._noise_db = math.inf
        if self._steps and probe is not None and probe.expected is not None:
            self._noise_db = min(own_noise_db(model, probe.inputs, probe.expected).values(), default=math.inf)

    def copy_of(self, model: ir.Model) -> ir.Model | None:
        """The model as it is now; None where no pass may have to be undone. Copied again after a pass changed it."""
        if not self._undo or self._outputs is None:
            return None
        self._copy = self._copy or model.clone()
        return self._copy

    def look(self, step: Pass, model: ir.Model) -> Finding:
        """The finding on a pass that changed the model; an accepted result is what the next pass is compared with."""
        self._copy = None
        if self._probe is None or self._probe.expected is None or self._outputs is None:
            return Finding(None, NO_PROBE if self._probe is None else self._probe.why)
        try:
            outputs = self._probe.run(model)
        except UnsupportedModel as error:
            fault = f"the model does not run any more: {error.what}" if self._strict else ""
            return Finding(None, error.what, fault)
        tolerance = min(self._tolerance, tolerance_of(model), key=lambda level: level.sqnr_db_min)
        steps = count_quantized_steps(model) if self._steps else 0
        if steps < self._steps:
            tolerance = replace(
                TOLERANCES["quantized"], sqnr_db_min=least_db(tolerance, self._noise_db, is_quantized=True)
            )
        is_judged = self._undo and not isinstance(step, Lossy)
        fault = "" if not is_judged else _fault(self._outputs, outputs, tolerance)
        if not fault:
            self._outputs, self._tolerance, self._steps = outputs, tolerance_of(model), steps
        return Finding(worst_of(compare_all(self._probe.expected, outputs)), "", fault)


def _fault(before: Arrays, after: Arrays, tolerance: Tolerance) -> str:
    """The first output that differs by more than is allowed; empty where none does."""
    for name, stats in compare_all(before, after).items():
        level = _level(before[name], tolerance)
        if not level.accepts(stats):
            return (
                f"it changed output '{name}' by up to {stats.worst_abs:.3g} (SQNR {stats.sqnr_db:.1f} dB, "
                f"'{level.name}' needs {level.sqnr_db_min:g} dB)"
            )
    return ""


def _level(output: Array, tolerance: Tolerance) -> Tolerance:
    """Integers and booleans must be equal, as in the parity gate, unless the arithmetic before them is coarser."""
    return TOLERANCES["exact"] if output.dtype.kind in "iub" and tolerance.name == "fp32" else tolerance
