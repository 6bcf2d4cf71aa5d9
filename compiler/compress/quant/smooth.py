"""SmoothQuant: outliers of activations moved into weights, so that a few channels do not set an activation's scale.

With a the largest absolute value of a channel on calibration data and r′ the largest absolute weight that reads it,
s = a^α / r′^(1 − α) shares out how hard both are to quantize (G. Xiao et al., SmoothQuant, 2022). Weights have a scale
per output channel and an activation has one for all of it, so more than half goes to the weights: α > ½. Where
LayerNormalization or a linear layer computes the activation for these readers alone, its constants take 1/s; elsewhere
a Mul does, see migrate.py. The float model computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from compiler.compress.quant.migrate import Floats, Site, apply_factors, find_sites, reader_ranges
from compiler.compress.quant.observe import watch
from compiler.model.numerics import Array, Arrays
from compiler.model.reference import Unoptimized
from compiler.passes.values import Names

ALPHA = 0.95
"""Share of an activation's outliers that goes into weights, 0..1; best in the measurements of `docs/adr/0018`."""


def smooth(model: ir.Model, batches: Sequence[Arrays]) -> ir.Model:
    """A copy of the model with outliers of its activations moved into weights where that is possible.

    Args:
        model: The float model; left as it is.
        batches: Calibration inputs; one is computed at a time.
    """
    copy = model.clone()
    sites = find_sites(copy, inserts=True)
    if not sites or not batches:
        return copy
    names = Names(copy)
    for site, reach in _reaches(copy, sites, batches):
        apply_factors(copy, site, _factors(reach, reader_ranges(site)), names)
    return copy


def _factors(reach: Floats, weights: Floats) -> Floats:
    """The factors (C,) for the largest activations and weights (C,); 1 where a channel is all zeros."""
    good = (reach > 0) & (weights > 0)
    a, r = np.where(good, reach, 1.0), np.where(good, weights, 1.0)
    return np.asarray(a**ALPHA / r ** (1 - ALPHA), np.float32)


def _reaches(model: ir.Model, sites: Sequence[Site], batches: Sequence[Arrays]) -> Iterator[tuple[Site, Floats]]:
    """Each site with the largest absolute values of its channels (C,)."""
    session = Unoptimized(watch(model, {str(site.value.name) for site in sites}))
    reaches: dict[str, Floats] = {}
    for batch in batches:
        outputs = session.run(batch)
        for site in sites:
            name = str(site.value.name)
            reach = _reach(outputs[name], site.axis)
            reaches[name] = np.maximum(reaches[name], reach) if name in reaches else reach
    yield from ((site, reaches[str(site.value.name)]) for site in sites)


def _reach(array: Array, axis: int) -> Floats:
    channels = np.moveaxis(np.abs(array.astype(np.float32)), axis, -1)
    return np.asarray(channels.reshape(-1, channels.shape[-1]).max(axis=0))
