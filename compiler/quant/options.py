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
        equalize: Whether depthwise and pointwise convolutions hand scale to each other, so that channels are alike.
        smooth: How much of an activation's outliers moves into the weights behind a LayerNormalization, 0 to 1; 0: none.
        correct: Whether rounding and biases of layers are fitted to the float model's results on calibration data.
        fit_samples: Samples kept in memory to fit on.
    """

    observer: Observer = "mse"
    percentile: float = 99.99
    equalize: bool = True
    smooth: float = 0.5
    correct: bool = True
    fit_samples: int = 32
