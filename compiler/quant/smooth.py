"""Outliers of activations moved into weights, so that one scale for a whole activation is not set by a few channels.

With a the largest absolute value of a channel on calibration data and r′ the largest absolute weight that reads it,
s = √(a / r′) (α = ½ of G. Xiao et al., SmoothQuant, 2022) makes the channel's activation and its weights equally hard
to quantize. Where LayerNormalization or a linear layer makes the activation, its constants take 1/s; see migrate.py
for where that is possible. The float model computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from compiler.numerics import Array, Arrays
from compiler.passes.values import Names
from compiler.quant.equalize import balance
from compiler.quant.migrate import Floats, Site, apply_factors, find_sites, reader_ranges
from compiler.quant.observe import watch
from compiler.unoptimized import Unoptimized


def smooth(model: ir.Model, batches: Sequence[Arrays]) -> ir.Model:
    """A copy of the model with outliers of its activations moved into weights where that is possible.

    Args:
        model: The float model; left as it is.
        batches: Calibration inputs; one is computed at a time.
    """
    copy = model.clone()
    sites = find_sites(copy)
    if not sites or not batches:
        return copy
    names = Names(copy)
    for site, reach in _reaches(copy, sites, batches):
        apply_factors(copy, site, balance(reach, reader_ranges(site)), names)
    return copy


def _reaches(model: ir.Model, sites: Sequence[Site], batches: Sequence[Arrays]) -> Iterator[tuple[Site, Floats]]:
    """Each site with the largest absolute values of its channels (C,)."""
    session = Unoptimized(watch(model, {str(site.value.name) for site in sites}))
    found: dict[str, Floats] = {}
    for batch in batches:
        outputs = session.run(batch)
        for site in sites:
            name = str(site.value.name)
            reach = _reach(outputs[name], site.axis)
            found[name] = np.maximum(found[name], reach) if name in found else reach
    yield from ((site, found[str(site.value.name)]) for site in sites)


def _reach(array: Array, axis: int) -> Floats:
    channels = np.moveaxis(np.abs(array.astype(np.float32)), axis, -1)
    return np.asarray(channels.reshape(-1, channels.shape[-1]).max(axis=0))
