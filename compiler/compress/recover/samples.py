"""Unlabelled samples on disk, and augmented batches of them, made in the background."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compiler.compress.recover.operators import Tensor
from compiler.errors import DataError
from compiler.model.numerics import Arrays
from compiler.store.disk import output_errors

SHIFT = 0.06
"""Largest shift of an image, as a share of its size."""
LIGHT = 0.3
"""Largest change of its contrast, as a share."""
MIXED = 0.5
"""Share of samples that are mixed with another (mixup)."""
_AHEAD = 2
"""Batches that are prepared in advance."""


@dataclass(frozen=True)
class Samples:
    """Samples in memory-mapped files: any number of them, in bounded memory.

    Args:
        arrays: Input → (N, …), mapped from a file.
        bounds: Input of floating point → its least and greatest element.
        digest: SHA-256 of all of it.
    """

    arrays: dict[str, np.memmap[Any, Any]]
    bounds: dict[str, tuple[float, float]]
    digest: str

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.arrays.values())))

    def take(self, places: Iterable[int]) -> dict[str, Tensor]:
        """Some of the samples as they are."""
        rows = np.fromiter(places, np.int64)
        return {name: torch.from_numpy(np.array(array[rows])) for name, array in self.arrays.items()}


def gather(batches: Iterable[Arrays], folder: Path) -> Samples:
    """Writes the samples to `folder`, batch by batch.

    Raises:
        DataError: There is none, or their shapes differ.
        OutputError: The folder cannot be written.
    """
    digest, bounds = hashlib.sha256(), dict[str, tuple[float, float]]()
    kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    files: dict[str, Any] = {}
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for batch in batches:
                for index, (name, array) in enumerate(sorted(batch.items())):
                    kind = (array.dtype, array.shape[1:])
                    if kinds.setdefault(name, kind) != kind:
                        raise DataError(f"samples of '{name}' have shapes {kinds[name][1]} and {kind[1]}")
                    if name not in files:
                        files[name] = (folder / f"samples-{index}.bin").open("wb")
                    data = np.ascontiguousarray(array).tobytes()
                    files[name].write(data)
                    digest.update(data)
                    if array.dtype.kind == "f":
                        low, high = bounds.get(name, (np.inf, -np.inf))
                        bounds[name] = min(low, float(array.min())), max(high, float(array.max()))
        finally:
            for file in files.values():
                file.close()
    if not files:
        raise DataError("there are no samples to recover with", remedy="Give calibration data.")
    arrays = {
        name: np.memmap(folder / f"samples-{index}.bin", dtype=kind, mode="r").reshape(-1, *shape)
        for index, (name, (kind, shape)) in enumerate(sorted(kinds.items()))
    }
    return Samples(arrays, bounds, digest.hexdigest())  # type: ignore[arg-type]  # reshape keeps a map a map


def varied(samples: Samples, size: int, *, seed: tuple[int, ...]) -> dict[str, Tensor]:
    """An augmented batch: samples drawn, shifted, mirrored, relit and mixed (mixup); the same for the same seed.

    Teacher and student see the same input, so no augmentation needs a label. Integer inputs are only drawn.
    """
    random = np.random.default_rng(seed)
    order = np.concatenate([random.permutation(samples.count) for _ in range(-(-size // samples.count))])[:size]
    batch = samples.take(order)
    weights = np.where(random.random(size) < MIXED, random.random(size), 1.0).astype(np.float32)
    partner = torch.from_numpy(random.permutation(size))
    for name, (low, high) in samples.bounds.items():
        x = batch[name]
        if x.dim() == 4:
            x = torch.stack([_moved(picture, random) for picture in x])
            x = (x - x.mean()) * _column(1 + LIGHT * random.uniform(-1, 1, size), x) + x.mean()
            x = (x + _column(LIGHT / 2 * (high - low) * random.uniform(-1, 1, size), x)).clamp(low, high)
        share = _column(weights, x)
        batch[name] = share * x + (1 - share) * x[partner]
    return batch


def _moved(picture: Tensor, random: np.random.Generator) -> Tensor:
    """An image (C, H, W), shifted with its border repeated, and mirrored with probability 1/2."""
    for axis in (1, 2):
        size = picture.shape[axis]
        reach = int(SHIFT * size)
        places = (torch.arange(size) + int(random.integers(-reach, reach + 1))).clamp(0, size - 1)
        picture = picture.index_select(axis, places)
    return picture.flip(2) if random.random() < 0.5 else picture


def _column(numbers: np.ndarray[Any, Any], like: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(numbers, np.float32)).reshape(-1, *[1] * (like.dim() - 1)).to(like.dtype)


def varied_batches(samples: Samples, size: int, *, seed: int, start: int) -> Iterator[dict[str, Tensor]]:
    """Augmented batches number `start`, `start + 1`, …, prepared in advance by a thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="samples") as thread:
        waiting: deque[Future[dict[str, Tensor]]] = deque()
        number = start
        try:
            while True:
                while len(waiting) <= _AHEAD:
                    waiting.append(thread.submit(varied, samples, size, seed=(seed, number)))
                    number += 1
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
