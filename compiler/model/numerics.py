"""How close two results are: error statistics, and the named tolerances that judge them."""

from __future__ import annotations

import hashlib
import math
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
    """

    sqnr_db: float
    cosine: float
    worst_abs: float
    worst_index: tuple[int, ...]
    elements: int


@dataclass(frozen=True)
class Tolerance:
    """A named level of agreement; both bounds must hold.

    Args:
        name: The name that stands in plans and manifests.
        sqnr_db_min: Lowest signal-to-quantization-noise ratio that passes, in dB.
        cosine_min: Lowest cosine similarity that passes.
        why: What the level weighs.
    """

    name: str
    sqnr_db_min: float
    cosine_min: float
    why: str

    def accepts(self, stats: ErrorStats) -> bool:
        """Whether the difference is inside the level; NaN never is."""
        return stats.sqnr_db >= self.sqnr_db_min and stats.cosine >= self.cosine_min


TOLERANCES: Mapping[str, Tolerance] = {
    level.name: level
    for level in (
        Tolerance("exact", math.inf, 1.0, "integers, booleans and data movement: equal to the bit"),
        Tolerance(
            "fp32", 60.0, 0.99999, "float32 with another order of summation: 24-bit mantissas, hundreds of layers"
        ),
        Tolerance("fp16", 35.0, 0.999, "11-bit mantissas through a deep network"),
        Tolerance("bf16", 20.0, 0.99, "8-bit mantissas through a deep network"),
        Tolerance("int8", 20.0, 0.99, "a quantized graph in another order: some values round to the next step"),
    )
}


def compare(expected: Array, actual: Array) -> ErrorStats:
    """Error statistics of one tensor.

    Args:
        expected: What the reference computed, any shape.
        actual: What is judged.

    Returns:
        The statistics; NaN, infinities that differ, another shape or another kind of dtype give −inf dB and cosine 0.
    """
    if expected.shape != actual.shape or (expected.dtype.kind in "OSU") or (actual.dtype.kind in "OSU"):
        equal = expected.shape == actual.shape and bool(np.array_equal(expected, actual))
        return _equal(expected.size) if equal else ErrorStats(-math.inf, 0.0, math.inf, (), expected.size)
    want, got = expected.astype(np.float64), actual.astype(np.float64)
    same = (want == got) | (np.isnan(want) & np.isnan(got))
    if same.all():
        return _equal(expected.size)
    infinite = same & ~np.isfinite(want)  # equal, but no vector with infinities or NaN has an angle
    return _differing(
        np.where(same, 0.0, want),
        np.where(same, 0.0, got),
        float(np.square(want, where=np.isfinite(want), out=np.zeros_like(want)).sum()),
        _cosine(np.where(infinite, 0.0, want), np.where(infinite, 0.0, got)),
    )


def compare_all(expected: Arrays, actual: Arrays) -> dict[str, ErrorStats]:
    """Error statistics by output name; a missing output counts as wholly wrong."""
    empty = np.zeros((0,), dtype=np.float32)
    return {
        name: compare(want, actual[name]) if name in actual else ErrorStats(-math.inf, 0.0, math.inf, (), empty.size)
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


def _equal(elements: int) -> ErrorStats:
    return ErrorStats(math.inf, 1.0, 0.0, (), elements)


def _differing(want: NDArray[np.float64], got: NDArray[np.float64], signal: float, cosine: float) -> ErrorStats:
    difference = np.abs(want - got)
    if not np.isfinite(difference).all():
        bad = np.unravel_index(int(np.argmax(~np.isfinite(difference))), difference.shape)
        return ErrorStats(-math.inf, 0.0, math.inf, tuple(map(int, bad)), want.size)
    worst = np.unravel_index(int(np.argmax(difference)), difference.shape)
    noise = float(np.square(difference).sum())
    sqnr_db = (
        10.0 * math.log10(signal / noise) if signal > 0.0 and noise > 0.0 else (math.inf if noise == 0.0 else -math.inf)
    )
    return ErrorStats(sqnr_db, cosine, float(difference[worst]), tuple(map(int, worst)), want.size)


def _cosine(want: NDArray[np.float64], got: NDArray[np.float64]) -> float:
    norms = float(np.linalg.norm(want) * np.linalg.norm(got))
    return float(np.dot(want.ravel(), got.ravel()) / norms) if norms > 0.0 and math.isfinite(norms) else 0.0
