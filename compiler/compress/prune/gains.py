"""Error gains: relative squared error of the model's outputs per relative squared error of a layer's output.

    gain = |f(y + d) − f(y)|² / |f(y)|²  ÷  |d|² / |y|²

The trial error d is a tenth of the layer's output for the next sample: unlike white noise it lies in the subspace of
the layer's outputs, as real errors do. Each layer takes one run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import onnx_ir as ir

from compiler.compress.prune.rows import Layer, squares
from compiler.compress.prune.tap import watch
from compiler.model.numerics import Arrays
from compiler.model.reference import Unoptimized
from compiler.passes.values import Names

SHARE = 0.1
"""Size of the trial error against the layer's outputs: small enough that the following layers respond linearly."""


def error_gains(model: ir.Model, layers: Sequence[Layer], batches: Iterable[Arrays]) -> dict[str, float]:
    """Name of a layer's output → its gain; 1 for one that is an output of the model.

    Args:
        model: The model the layers are of; left as it is.
        layers: The layers.
        batches: Calibration data; the first batch is used.
    """
    names = list(dict.fromkeys(layer.node for layer in layers))
    (inputs,) = islice(batches, 1)
    outputs = dict(zip(names, next(iter(watch(model, names, [inputs]))), strict=True)) if names else {}
    copy, places = _disturbed(model, names)
    session = Unoptimized(copy)
    no_errors = {place: np.zeros((1,) * outputs[name].ndim, np.float32) for name, place in places.items()}
    expected = session.run({**inputs, **no_errors})
    energy = sum(squares(array) for array in expected.values())
    gains = {}
    for name in names:
        # axis 0 is the samples; with one sample the last axis stands in
        error = SHARE * np.roll(np.asarray(outputs[name], np.float32), 1, axis=0 if len(outputs[name]) > 1 else -1)
        share = squares(error) / max(squares(outputs[name]), 1e-30)
        if name not in places or not share or not energy:
            gains[name] = 1.0
            continue
        disturbed = session.run({**inputs, **no_errors, places[name]: error})
        change = sum(squares(np.subtract(disturbed[key], expected[key], dtype=np.float64)) for key in expected)
        gains[name] = change / energy / share
    return gains


def _disturbed(model: ir.Model, names: Sequence[str]) -> tuple[ir.Model, dict[str, str]]:
    """The model with an input added to each of these values, and name of value → name of input."""
    copy = model.clone()
    fresh = Names(copy)
    values = {str(value.name): value for node in copy.graph for value in node.outputs}
    places: dict[str, str] = {}
    for name in names:
        value = values[name]
        source = value.producer()
        if value.is_graph_output() or value.shape is None or source is None:
            continue
        place = fresh.fresh(f"{name}_error")
        shape = ir.Shape([f"{place}_{axis}" for axis in range(len(value.shape))])
        error = ir.Value(name=place, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        copy.graph.inputs.append(error)
        total = ir.node("Add", [value, error], name=fresh.fresh(f"{name}_adding"))
        total.outputs[0].name, total.outputs[0].type = fresh.fresh(f"{name}_disturbed"), value.type
        total.outputs[0].shape = value.shape
        for reader, index in list(value.uses()):
            if reader is not total:
                reader.replace_input_with(index, total.outputs[0])
        copy.graph.insert_after(source, total)
        places[name] = place
    return copy, places
