"""Options of the quantizer that the target's scheme leaves open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Observer: TypeAlias = Literal["min-max", "percentile", "mse", "entropy"]
Balance: TypeAlias = Literal["none", "weights", "activations"]


@dataclass(frozen=True)
class QuantOptions:
    """The quantizer's choices; the defaults are those that `docs/adr/0016` measured to be best.

    Args:
        observer: How the range of an activation follows from its histogram.
        percentile: Share of values inside the range, in percent, for `percentile`.
        balance: Which ranges are equalized before calibration: `weights`, on both sides of an activation (equalize.py),
            or `activations` and the weights that read them (smooth.py).
        correct: Whether biases compensate the mean error of quantization, measured on calibration data.
        compensate: Whether weights are rounded so that their errors compensate each other on calibration data (GPTQ).
        fit_samples: Samples held in memory for `correct` and `compensate`.
    """

    observer: Observer = "mse"
    percentile: float = 99.99
    balance: Balance = "none"
    correct: bool = True
    compensate: bool = True
    fit_samples: int = 32

    @property
    def before_observing(self) -> dict[str, str | int]:
        """The options that change the model before calibration: variants that agree in these share one calibration."""
        return {"balance": self.balance, "samples": self.fit_samples if self.balance == "activations" else 0}
