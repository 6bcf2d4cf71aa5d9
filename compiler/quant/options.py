"""How a model is quantized where the scheme leaves it open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Observer: TypeAlias = Literal["min-max", "percentile", "mse", "entropy"]


@dataclass(frozen=True)
class QuantOptions:
    """The quantizer's choices; the defaults are those that `docs/adr/0016` measured to be best.

    Args:
        observer: How the range of an activation follows from its histogram.
        percentile: Share of values inside the range, in percent, for `percentile`.
        correct: Whether biases make up for what quantization shifts, measured on calibration data.
        compensate: Whether weights are rounded so that their errors make up for each other on calibration data.
        fit_samples: Samples kept in memory to fit on.
    """

    observer: Observer = "mse"
    percentile: float = 99.99
    correct: bool = True
    compensate: bool = False
    fit_samples: int = 32

    @property
    def before_observing(self) -> dict[str, bool]:
        """What changes the model before it is observed: two variants equal in it can share one observation."""
        return {}
