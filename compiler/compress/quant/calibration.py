"""Checks of the quality of calibration data; each warning names its effect."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from compiler.compress.quant.observe import Observations
from compiler.model.numerics import Arrays

FEW = 32
"""Fewer samples than this give ranges that depend on chance."""

# from this share of repeated samples on, there are fewer of them than their number says
REPEATED_SHARE = 0.2
OUTSIDE_SHARE = 0.001
"""Share of the evaluation set's values outside the calibrated range from which a warning is due."""


@dataclass
class CalibrationStats:
    """Statistics of the samples in a stream; 16 bytes of memory per sample.

    Args:
        count: Samples.
        constant: Samples of which every element of every input is the same.
        digests: Digests of the distinct samples.
        inputs: Names of the inputs whose first axis counts samples; None: all that have an axis.
    """

    count: int = 0
    constant: int = 0
    digests: set[bytes] = field(default_factory=set)
    inputs: frozenset[str] | None = None

    def passing(self, batches: Iterable[Arrays]) -> Iterator[Arrays]:
        """The same batches, counted as they pass."""
        for batch in batches:
            self.look(batch)
            yield batch

    def look(self, batch: Arrays) -> None:
        """Counts one batch, whose first axis is the samples."""
        names = [name for name in sorted(batch) if batch[name].ndim and (self.inputs is None or name in self.inputs)]
        for row in range(min((len(batch[name]) for name in names), default=0)):
            parts = [np.ascontiguousarray(batch[name][row]) for name in names]
            digest = hashlib.sha256()
            for part in parts:
                digest.update(part.tobytes())
            # 16 bytes: no two of any realistic number of samples collide
            self.digests.add(digest.digest()[:16])
            self.count += 1
            self.constant += all(part.size > 1 and bool((part == part.flat[0]).all()) for part in parts)


def check_calibration(stats: CalibrationStats) -> tuple[str, ...]:
    """Warnings about the samples of a stream that has ended, each with its effect."""
    warnings = []
    if stats.count < FEW:
        warnings.append(
            f"{stats.count} calibration samples: values outside of their ranges are clipped; give {FEW} or more"
        )
    if stats.constant:
        warnings.append(
            f"{stats.constant} of {stats.count} calibration samples are constant: real inputs have other ranges"
        )
    repeated = stats.count - len(stats.digests)
    if repeated > REPEATED_SHARE * stats.count:
        warnings.append(
            f"{repeated} of {stats.count} calibration samples repeat another: the ranges are those of "
            f"{len(stats.digests)} samples"
        )
    return tuple(warnings)


def check_coverage(calibration: Observations, evaluation: Observations) -> tuple[str, ...]:
    """Warnings about values that the evaluation data reach and the calibration data do not, each with its effect.

    Args:
        calibration: Histograms of the calibration data.
        evaluation: Histograms of the same model on the evaluation data.
    """
    outside = {}
    for name, seen in calibration.tensors.items():
        other = evaluation.tensors.get(name)
        if other is None or other.exponent is None:
            continue
        beyond = (other.centers < seen.low) | (other.centers > seen.high)
        share = float(other.counts[beyond].sum()) / float(other.counts.sum() + other.zeros)
        if share > OUTSIDE_SHARE:
            outside[name] = share
    if not outside:
        return ()
    name, share = max(outside.items(), key=lambda item: item[1])
    return (
        f"the evaluation data leave the calibrated range of {len(outside)} of {len(calibration.tensors)} values, "
        f"'{name}' in {share:.2%} of its elements: these are clipped, which costs accuracy; use "
        "more typical calibration data",
    )
