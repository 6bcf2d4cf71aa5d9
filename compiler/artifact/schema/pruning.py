"""What was cut out of a pruned model, and how it was trained afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import FiniteFloat

from compiler.artifact.adapter import Number


@dataclass(frozen=True)
class Group:
    """A group of channels that can only be cut together.

    Args:
        name: The group's name.
        channels: Channels it has.
        kept: Channels that remain.
        error: Expected squared error of the model's outputs, as a share of their energy.
        reason: Why this number.
    """

    name: str
    channels: int
    kept: int
    error: FiniteFloat
    reason: str


@dataclass(frozen=True)
class Repaired:
    """The repair of one layer behind a cut.

    Args:
        layer: Name of its output.
        before: Squared error of its output against the original's, as a share of its energy, before the repair.
        after: The same after it, by cross-validation.
        ridge: Ridge parameter; infinite if only the bias was corrected, which is written as null.
        rows: Number of equations.
        unknowns: Number of weights per output.
        samples: Samples the equations are from, mirror images included.
    """

    layer: str
    before: FiniteFloat
    after: FiniteFloat
    ridge: Number = None
    rows: int = 0
    unknowns: int = 0
    samples: int = 0

    @property
    def is_thin(self) -> bool:
        """Whether there were fewer equations than unknowns, so that the ridge determines the solution."""
        return self.rows < self.unknowns


@dataclass(frozen=True)
class Check:
    """The metric at one time of a recovery.

    Args:
        step: Steps that were done.
        elapsed_s: Seconds that were used.
        value: What the metric gave; higher is better.
    """

    step: int
    elapsed_s: FiniteFloat
    value: FiniteFloat


@dataclass(frozen=True)
class Recovered:
    """How a pruned model was trained.

    Args:
        metric: The task's metric; empty where the error of the outputs was judged.
        steps: Steps in all.
        seconds: Seconds in all.
        stopped: Why it ended.
        checks: The metric before the first step and at every check.
        best: The check whose weights the model has.
        execution: How the steps were computed: precision, memory layout, segments of the graph.
        samples_per_s: Samples that were learnt from, per second of steps.
        resumed_at: Step of the checkpoint that the last run went on from; 0 if it began anew.
    """

    metric: str
    steps: int
    seconds: FiniteFloat
    stopped: str
    checks: tuple[Check, ...]
    best: Check
    execution: str = ""
    samples_per_s: Number = None
    resumed_at: int = 0

    @property
    def text(self) -> str:
        """What it came to, in one line."""
        before, after = -self.checks[0].value, -self.best.value
        lost = (
            f"{before:.2f} -> {after:.2f} points of {self.metric} lost"
            if self.metric
            else f"error of the outputs {100 * before:.2f} % -> {100 * after:.2f} %"
        )
        return f"recovered in {self.steps} steps ({self.seconds:.0f} s, ended by: {self.stopped}): {lost}"


@dataclass(frozen=True)
class Pruning:
    """What was cut out of the model.

    Args:
        ratio: Share of the multiply-accumulates that is gone, 0 to 1.
        multiple: Widths are multiples of this.
        macs_before: Multiply-accumulates of the model as it was.
        macs_after: Those that are left.
        parameters_before: Elements of its constants.
        parameters_after: Those that are left.
        groups: What became of every group of channels.
        repaired: What became of the layers behind the cuts.
        kept: Layer → why its channels stayed.
        warnings: What its reader should know.
        recovered: How it was trained; None where it was not.
    """

    ratio: FiniteFloat
    multiple: int
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    groups: tuple[Group, ...]
    repaired: tuple[Repaired, ...]
    kept: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    recovered: Recovered | None = None

    @property
    def cut(self) -> tuple[Group, ...]:
        """The groups that lost channels."""
        return tuple(group for group in self.groups if group.kept < group.channels)
