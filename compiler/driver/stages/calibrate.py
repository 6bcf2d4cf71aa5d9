"""What the float model computes on calibration and evaluation data, observed once for all variants of a candidate.

Nothing in the keys names a device or how ranges are chosen: alternatives that differ there cost no second observation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import onnx_ir as ir

from compiler.artifact.manifest import BORDER
from compiler.compress.quant import Calibrated, QuantOptions, calibrate, check_coverage, observations_from_bytes
from compiler.errors import DataError
from compiler.evaluate import Dataset
from compiler.model.numerics import Arrays
from compiler.store import Entry, Stage, Store, canonical_json
from compiler.store.digests import code_digest, portable_tools
from compiler.target.scheme import QuantScheme

BATCH = 8
COVERAGE_BATCHES = 32
"""Batches of evaluation data whose ranges are compared with those of calibration: a gap of 0.1 % shows long before."""


class Batches(Iterable[Arrays]):
    """A data set's batches, from the first each time they are asked for.

    Args:
        dataset: The samples.
        most: Batches at most; 0 means all.
    """

    def __init__(self, dataset: Dataset, most: int = 0) -> None:
        self._dataset, self._most = dataset, most

    def __iter__(self) -> Iterator[Arrays]:
        found = self._dataset.batches(_fixed_batch(self._dataset) or BATCH)
        return islice(found, self._most) if self._most else found


def observed(
    store: Store, rewritten: Entry, scheme: QuantScheme, data: Dataset, options: QuantOptions, *, most: int = 0
) -> Calibrated:
    """What a rewritten model computes on data, from the store where it was observed before.

    Args:
        store: Where finished stages are.
        rewritten: The float model.
        scheme: Which values need a range.
        data: What it is run on.
        options: Those that change the model before it is observed count.
        most: Batches at most; 0 means all.
    """
    parts = (
        ("rewrite", rewritten.digest),
        ("scheme", canonical_json(asdict(scheme))),
        ("data", f"{data.digest} {data.count}"),
        ("batches", str(most)),
        ("options", canonical_json(options.before_observing)),
        ("compiler", code_digest("compiler.compress.quant")),
        *portable_tools(),
    )

    def make(folder: Path) -> None:
        found = calibrate(ir.load(rewritten.files / BORDER), Batches(data, most), scheme, options)
        (folder / "observations.npz").write_bytes(found.observations.to_bytes())
        (folder / "warnings.json").write_text(json.dumps(found.warnings), encoding="utf-8")

    entry = store.obtain(Stage("observe", parts), make)
    warnings = json.loads((entry.files / "warnings.json").read_text(encoding="utf-8"))
    return Calibrated(observations_from_bytes((entry.files / "observations.npz").read_bytes()), tuple(warnings))


def coverage(
    store: Store, rewritten: Entry, scheme: QuantScheme, calibration: Dataset, evaluation: Dataset
) -> tuple[str, ...]:
    """A warning, with its effect, where evaluation data leave the ranges that calibration data show."""
    options = QuantOptions()
    seen = observed(store, rewritten, scheme, calibration, options)
    try:
        other = observed(store, rewritten, scheme, evaluation, options, most=COVERAGE_BATCHES)
    except DataError as error:
        return (f"whether calibration covers the evaluation data is unknown: {error.what}",)
    return check_coverage(seen.observations, other.observations)


def _fixed_batch(data: Dataset) -> int | None:
    sizes = [spec.shape[0] for spec in data.inputs if spec.shape]
    return next((size for size in sizes if isinstance(size, int)), None)
