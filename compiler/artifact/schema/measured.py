"""What a build was measured by, beside its accuracy: memory, and speed against the float original."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from compiler.artifact.adapter import Number
from compiler.artifact.artifact import Evidence
from compiler.artifact.figures import ratio_figure, short_ratio, time_text


class SpeedUnit(StrEnum):
    """What the speed of a trial is measured in."""

    MS = "ms"
    PROCESSOR_MS = "ms of processor time"
    INSTRUCTIONS = "instructions"
    ROOFLINE_MS = "ms by roofline"
    NONE = ""


@dataclass(frozen=True)
class Footprint:
    """Memory of one artifact.

    Args:
        weights_bytes: Bytes of its payload.
        weights_evidence: `measured-host`, or `estimated` where nothing was built.
        run_bytes: What the model itself takes when it runs; None where nobody could measure it.
        run_evidence: Where that was measured.
        why: Why there is no such figure.
        process_bytes: What the whole process took at the largest sizes; None where no limit asks.
        process_evidence: Where that was measured.
    """

    weights_bytes: int
    weights_evidence: Evidence
    run_bytes: int | None
    run_evidence: Evidence
    why: str = ""
    process_bytes: int | None = None
    process_evidence: Evidence = Evidence.NONE


@dataclass(frozen=True)
class Speed:
    """A candidate's speed.

    Args:
        speedup: Inferences per second against the float original; None where nothing tells.
        value: One inference, in `unit`; of milliseconds the centre of the blocks' medians.
        original: The float original's, in the same unit, from the same measurement.
        unit: Unit of both; smaller is faster.
        evidence: Where it is from.
        note: What its reader should know.
        low: Lower end of the speed-up's 95 % interval; None where it was not measured in time.
        high: Upper end.
        disturbed: What else the machine did meanwhile, where that leaves the figure in doubt; empty otherwise.
        value_high: Upper end of the interval of `value`, or of the roofline's range: without overlap of memory and
            arithmetic; None where it has none.
    """

    speedup: Number
    value: Number
    original: Number
    unit: SpeedUnit
    evidence: Evidence
    note: str = ""
    low: Number = None
    high: Number = None
    disturbed: str = ""
    value_high: Number = None

    @property
    def ratio_figure(self) -> str:
        """The speed-up as a number with its interval; empty where nothing tells."""
        if self.speedup is None:
            return ""
        return ratio_figure(self.speedup, self.low, self.high, is_estimate=self.evidence == Evidence.ESTIMATED)

    @property
    def short_words(self) -> str:
        """The speed-up for a narrow column; empty where nothing tells."""
        if self.speedup is None:
            return ""
        ratio = short_ratio(self.speedup, self.low, self.high, is_estimate=self.evidence == Evidence.ESTIMATED)
        return f"{ratio} x{', disturbed' if self.disturbed else ''} ({self.evidence})"

    @property
    def ratio_words(self) -> str:
        """The speed-up over float32 in words; empty where nothing tells."""
        return f"{self.ratio_figure} × float32{', disturbed' if self.disturbed else ''}" if self.ratio_figure else ""

    @property
    def time_words(self) -> str:
        """The time of one inference in words; empty where there is none."""
        if self.value is None or self.unit not in (SpeedUnit.MS, SpeedUnit.ROOFLINE_MS):
            return ""
        return time_text(self.value, self.value_high, is_estimate=self.evidence == Evidence.ESTIMATED)
