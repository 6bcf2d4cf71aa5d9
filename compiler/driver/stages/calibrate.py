"""What the float model computes on calibration and evaluation data, observed once for all variants of a candidate.

Nothing in the keys names a device, or how ranges are chosen: alternatives that differ there cost no second observation.
Nor do schemes of different targets whose operators read the same values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from compiler.compress.quant import (
    Calibrated,
    QuantOptions,
    calibrate,
    check_coverage,
    observations_from_bytes,
    observed_values,
    prepare,
)
from compiler.driver.stages.files import load_stage
from compiler.driver.stages.run import Stages
from compiler.errors import DataError
from compiler.evaluate import Dataset
from compiler.model.numerics import Arrays
from compiler.store import Entry, StageName, read_result, write_result
from compiler.target.scheme import QuantScheme

_OBSERVATIONS, _WARNINGS = "observations.npz", "warnings.json"

# a few pictures at a time: activations of all layers are in memory at once
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
        batches = self._dataset.full_batches(BATCH)
        return islice(batches, self._most) if self._most else batches


def observed(
    stages: Stages, rewritten: Entry, scheme: QuantScheme, data: Dataset, options: QuantOptions, *, most: int = 0
) -> Calibrated:
    """What a rewritten model computes on data, from the store where it was observed before.

    Args:
        stages: Where it is run.
        rewritten: The float model.
        scheme: Which values need a range.
        data: What it is run on.
        options: Those that change the model before it is observed count.
        most: Batches at most; 0 means all.
    """

    def make(folder: Path) -> None:
        calibrated = calibrate(load_stage(rewritten), Batches(data, most), scheme, options)
        (folder / _OBSERVATIONS).write_bytes(calibrated.observations.to_bytes())
        write_result(folder, _WARNINGS, calibrated.warnings)

    entry = stages.run(
        StageName.CALIBRATE,
        make,
        model=rewritten.digest,
        observed=_what_is_observed(rewritten, scheme, options),
        data=[data.digest, data.count],
        batches=most,
        options=options.before_observing,
    )
    warnings = tuple(read_result(entry, _WARNINGS))
    return Calibrated(observations_from_bytes((entry.files / _OBSERVATIONS).read_bytes()), warnings)


def _what_is_observed(rewritten: Entry, scheme: QuantScheme, options: QuantOptions) -> object:
    """The values of a model that a scheme needs a range of; the scheme, where the model is changed before."""
    if options.balance != "none":
        return asdict(scheme)
    return sorted(observed_values(prepare(load_stage(rewritten)), scheme))


def coverage(
    stages: Stages, rewritten: Entry, scheme: QuantScheme, calibration: Dataset, evaluation: Dataset
) -> tuple[str, ...]:
    """A warning, with its effect, where evaluation data leave the ranges that calibration data show."""
    options = QuantOptions()
    seen = observed(stages, rewritten, scheme, calibration, options)
    try:
        other = observed(stages, rewritten, scheme, evaluation, options, most=COVERAGE_BATCHES)
    except DataError as error:
        return (f"whether calibration covers the evaluation data is unknown: {error.what}",)
    return check_coverage(seen.observations, other.observations)
