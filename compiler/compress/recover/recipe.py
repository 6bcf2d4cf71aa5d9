"""The settings of a recovery and its result, as values without PyTorch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import onnx_ir as ir

from compiler.artifact.schema import Check

Stop: TypeAlias = Literal["budget", "steps", "enough", "no gain"]
"""Why it ended: time used up, steps used up, metric good enough, or metric no longer rising."""


@dataclass(frozen=True)
class Recipe:
    """The settings of a recovery.

    Args:
        seconds: Wall-clock limit, checks included; infinite where only steps count.
        steps: Most steps; None where only time counts.
        batch: Samples per step.
        rate: How much of its size a weight changes in a step of Adam, at most; it falls to zero along a cosine as time
            or steps are used up.
        echoes: Steps that each augmented sample is used in before new ones are made (data echoing, Choi et al., 2019):
            the teacher's outputs and the augmentation are then computed once in that many steps.
        checks: How often the metric is computed in all.
        patience: After how many checks without a new best it ends.
        tap_weight: Weight of the feature taps in the loss, all together, against the outputs'.
        seed: Of all random numbers.
        save_every_s: Seconds between two checkpoints.
        memory_bytes: What a step may use for activations stored for the backward pass; None: half of the free memory.
    """

    seconds: float = 600.0
    steps: int | None = None
    batch: int = 32
    rate: float = 3e-3
    echoes: int = 2
    checks: int = 10
    patience: int = 6
    tap_weight: float = 0.5
    seed: int = 0
    save_every_s: float = 30.0
    memory_bytes: int | None = None

    def progress(self, step: int, elapsed_s: float) -> float:
        """How much of the time or of the steps is used up, whichever is more: 0 to 1."""
        return min(1.0, max(elapsed_s / self.seconds, step / self.steps if self.steps else 0.0))


@dataclass(frozen=True)
class Recovered:
    """A recovered model, and how the training went.

    Args:
        model: The pruned model with the best weights that were seen; names, types and shapes as they were.
        steps: Steps in all, those before a kill included.
        seconds: Seconds in all.
        samples_per_s: Training samples per second of steps; checks and checkpoints are not counted.
        execution: How the steps were computed: precision, memory layout, segments of the graph.
        checks: The metric before the first step and at every check.
        stopped: Why it ended.
        resumed_at: Step of the checkpoint this run went on from; 0 if it began anew.
    """

    model: ir.Model
    steps: int
    seconds: float
    samples_per_s: float
    execution: str
    checks: tuple[Check, ...]
    stopped: Stop
    resumed_at: int

    @property
    def best(self) -> Check:
        """The check whose weights the model has."""
        return max(self.checks, key=lambda check: check.value)

    def to_dict(self) -> dict[str, Any]:
        """All but the model, JSON-ready."""
        rest = {key: value for key, value in vars(self).items() if key not in ("model", "checks")}
        return {**rest, "checks": [asdict(check) for check in self.checks], "best": asdict(self.best)}
