"""How close two results are: error statistics, and the named tolerances that judge them."""

from __future__ import annotations

import hashlib
import math
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class ErrorStats:
    """How far an actual tensor is from the expected one.

    Args:
        sqnr_db: Signal-to-quantization-noise ratio, 10·log10(Σ expected² / Σ (expected − actual)²), in dB; inf: equal.
        cosine: Cosine similarity of the flattened tensors, −1 to 1.
        worst_abs: Largest absolute difference of one element.
        worst_index: Where that element stands.
        elements: How many elements were compared.
        shapes: The expected shape and the actual one, where they differ; None where they are the same.
        is_missing: Whether there is no actual tensor.
    """

    sqnr_db: float
    cosine: float
    worst_abs: float
    worst_index: tuple[int, ...]
    elements: int
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    is_missing: bool = False

    def __str__(self) -> str:
        """The difference in words, for messages."""
        if self.is_missing:
            return "it is missing"
        if self.shapes:
            return f"it has the shape {self.shapes[1]} instead of {self.shapes[0]}"
        if not math.isfinite(self.worst_abs) and self.worst_index:
            return f"NaN or an infinity on one side alone, first at {list(self.worst_index)}"
        return (
            f"SQNR {self.sqnr_db:.1f} dB, cosine {self.cosine:.6f}, "
            f"worst element {list(self.worst_index)} off by {self.worst_abs:.4g}"
        )


@dataclass(frozen=True)
class Tolerance:
    """A named level of agreement.

    The cosine is no bound of its own: noise of r < 1 times the signal leaves a cosine of √(1 − r²) at least, which is
    0.9999995 at 60 dB. It is reported, since a low one with a low ratio tells a wrong result from a wrong scale.

    Args:
        name: The name that stands in plans and manifests.
        sqnr_db_min: Lowest signal-to-quantization-noise ratio that passes, in dB.
        why: What the level weighs.
    """

    name: str
    sqnr_db_min: float
    why: str

    def accepts(self, stats: ErrorStats) -> bool:
        """Whether the difference is inside the level; a NaN or an infinity on one side alone never is."""
        return stats.sqnr_db >= self.sqnr_db_min


TOLERANCES: Mapping[str, Tolerance] = {
    level.name: level
    for level in (
        Tolerance("exact", math.inf, "integers, booleans and data movement: equal to the bit"),
        Tolerance("fp32", 60.0, "float32 with another order of summation: 24-bit mantissas, hundreds of layers"),
        Tolerance("fp16", 35.0, "11-bit mantissas through a deep network"),
        Tolerance("bf16", 20.0, "8-bit mantissas through a deep network"),
        Tolerance("int8", 20.0, "a quantized graph in another order: some values round to the next step"),
        Tolerance("quantized", 3.0, "a quantized model against the float model: zeros would be at 0 dB"),
        Tolerance("pruned", -100.0, "a pruned model against the whole one: another function, but of finite numbers"),
    )
}


def is_floating(array: Array) -> bool:
    """Whether its elements are floating-point numbers; NumPy itself does not know bfloat16 and narrower ones."""
    return array.dtype.kind in "fc" or array.dtype.name.startswith(("bfloat", "float"))


def coarser(first: Tolerance, second: Tolerance) -> Tolerance:
    """The level of two that allows more."""
    return min(first, second, key=lambda level: level.sqnr_db_min)


def compare(expected: Array, actual: Array) -> ErrorStats:
    """Error statistics of one tensor.

    Args:
        expected: What the reference computed, any shape.
        actual: What is judged.

    Returns:
        The statistics; NaN, infinities that differ, another shape or another kind of dtype give −inf dB and cosine 0.
    """
    if expected.shape != actual.shape:
        shapes = (expected.shape, actual.shape)
        return ErrorStats(-math.inf, 0.0, math.inf, (), expected.size, shapes)
    if expected.dtype.kind in "OSU" or actual.dtype.kind in "OSU":
        return _equal(expected.size) if np.array_equal(expected, actual) else _unequal_texts(expected, actual)
    want, got = expected.astype(np.float64), actual.astype(np.float64)
    same = (want == got) | (np.isnan(want) & np.isnan(got))
    if same.all():
        return _equal(expected.size)
    if (bad := ~same & ~(np.isfinite(want) & np.isfinite(got))).any():
        return ErrorStats(-math.inf, 0.0, math.inf, _place(bad), want.size)
    # equal infinities and NaN have no distance and no angle: the other elements decide
    finite = np.isfinite(want)
    return _differing(np.where(finite, want, 0.0), np.where(finite, got, 0.0))


def compare_all(expected: Arrays, actual: Arrays) -> dict[str, ErrorStats]:
    """Error statistics by output name; a missing output counts as wholly wrong."""
    return {
        name: compare(want, actual[name])
        if name in actual
        else ErrorStats(-math.inf, 0.0, math.inf, (), 0, is_missing=True)
        for name, want in expected.items()
    }


def arrays_digest(arrays: Arrays) -> str:
    """SHA-256 (64 hex digits) of named arrays: names, dtypes, shapes and bytes, in name order."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write_arrays(file: Path | BinaryIO, arrays: Arrays) -> None:
    """Writes a `.npz` file; names may be any text, also those that `numpy.savez` keeps for its own arguments."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def load_arrays(file: Path | BinaryIO) -> dict[str, Array]:
    """Every array that `write_arrays` wrote; pickles run code, and are refused."""
    with np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _equal(elements: int) -> ErrorStats:
    return ErrorStats(math.inf, 1.0, 0.0, (), elements)


def _unequal_texts(expected: Array, actual: Array) -> ErrorStats:
    return ErrorStats(-math.inf, 0.0, math.inf, _place(expected != actual), expected.size)


def _place(marks: NDArray[np.bool_]) -> tuple[int, ...]:
    """Where the first mark stands."""
    return tuple(map(int, np.unravel_index(int(np.argmax(marks)), marks.shape)))


def _differing(want: NDArray[np.float64], got: NDArray[np.float64]) -> ErrorStats:
    """Statistics of finite tensors; all sums are of numbers up to 1, or squares of float64 would leave its range."""
    scale = float(max(np.abs(want).max(), np.abs(got).max()))
    left, right = want / scale, got / scale
    difference = np.abs(left - right)
    worst = np.unravel_index(int(np.argmax(difference)), difference.shape)
    signal, noise = _norm(left), _norm(difference)
    # a difference may be too small to be told from 0 beside the largest element, and is still none of equal tensors
    sqnr_db = 20.0 * (math.log10(signal) - math.log10(max(noise, sys.float_info.min))) if signal > 0.0 else -math.inf
    worst_abs = float(np.abs(want[worst] - got[worst]))
    return ErrorStats(sqnr_db, _cosine(left, right), worst_abs, tuple(map(int, worst)), want.size)


def _norm(values: NDArray[np.float64]) -> float:
    largest = float(np.abs(values).max(initial=0.0))
    return largest * float(np.linalg.norm(values / largest)) if largest > 0.0 else 0.0


def _cosine(want: NDArray[np.float64], got: NDArray[np.float64]) -> float:
    """The angle's cosine; 0 where one side is zero, and has no direction."""
    lengths = (_norm(want), _norm(got))
    return float(np.dot((want / lengths[0]).ravel(), (got / lengths[1]).ravel())) if all(lengths) else 0.0
