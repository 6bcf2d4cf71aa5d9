"""Runs models with the same value names segment by segment; values for later segments are stored on disk.

A layer to be solved reads outputs of layers solved before it. Recomputing those from the inputs for each layer is
quadratic in the depth of the model; a segment begins where the one before it ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.compress.prune.moments import Batches
from compiler.compress.prune.tap import cut_between
from compiler.fleet.machine import available_cpus
from compiler.model.background import run_ahead
from compiler.model.numerics import Array, Arrays
from compiler.model.reference import Unoptimized
from compiler.store.disk import output_errors


class Segments:
    """Models that are run segment by segment on all data.

    Args:
        models: The models; between two segments, layers behind the last one may be changed in place.
        batches: The data, read once.
        folder: Storage for values between segments; only those still needed.

    Raises:
        StorageError: The disk is full.
    """

    def __init__(self, models: Sequence[ir.Model], batches: Batches, folder: Path) -> None:
        self._models, self._folder, self._count = models, folder, 0
        self._held = [str(value.name) for value in models[0].graph.inputs]
        for batch in batches():
            for place in range(len(models)):
                self._save(self._count, place, {name: batch[name] for name in self._held})
            self._count += 1

    def advance(self, wanted: Sequence[Sequence[str]], carried: Sequence[str]) -> Iterator[tuple[Arrays, ...]]:
        """Values of every batch for each model; the next segment begins with the values in `carried`.

        Args:
            wanted: For each model the names of the values to return.
            carried: Names of values to store for the next segment, of all models.
        """
        sessions = [self._session(model, [*names, *carried]) for model, names in zip(self._models, wanted, strict=True)]
        steps = (partial(self._step, index, sessions, wanted, carried) for index in range(self._count))
        workers = available_cpus()
        yield from run_ahead(steps, workers=workers, ahead=workers)
        self._held = [*carried]

    def _session(self, model: ir.Model, names: Sequence[str]) -> tuple[Unoptimized, tuple[str, ...]]:
        """A session for the values that are not stored, and the names of its inputs."""
        cut = cut_between(model, self._held, [name for name in dict.fromkeys(names) if name not in self._held])
        return Unoptimized(cut), tuple(str(value.name) for value in cut.graph.inputs)

    def _step(
        self,
        index: int,
        sessions: Sequence[tuple[Unoptimized, tuple[str, ...]]],
        wanted: Sequence[Sequence[str]],
        carried: Sequence[str],
    ) -> tuple[Arrays, ...]:
        segments = []
        for place, (session, reads) in enumerate(sessions):
            there = self._load(index, place)
            values = {**there, **session.run({name: there[name] for name in reads})}
            self._save(index, place, {name: values[name] for name in carried})
            segments.append({name: values[name] for name in wanted[place]})
        return tuple(segments)

    def _save(self, index: int, place: int, values: Arrays) -> None:
        with output_errors(self._folder):
            # by number: names of values are not names of files
            np.savez(self._file(index, place), *values.values())

    def _load(self, index: int, place: int) -> dict[str, Array]:
        with np.load(self._file(index, place), allow_pickle=False) as file:
            return {name: file[f"arr_{number}"] for number, name in enumerate(self._held)}

    def _file(self, index: int, place: int) -> Path:
        return self._folder / f"{index}-{place}.npz"
