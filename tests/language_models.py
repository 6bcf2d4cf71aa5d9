"""A small decoder with weights that have structure, and text for it as token ids."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from decoder_graph import DecoderSize, drawn_weights, make_decoder

from compiler.compress.quant.apply import at_opset
from compiler.compress.weight_only.apply import apply_weights
from compiler.compress.weight_only.fit import fit_blocks
from compiler.compress.weight_only.layers import find_layers
from compiler.compress.weight_only.round_activations import round_activations
from compiler.evaluate.text import empty_cache, token_inputs
from compiler.model.decoder import find_decoder
from compiler.model.frontend import describe_inputs
from compiler.model.frontend.infer import infer_shapes
from compiler.target.scheme import BlockFormat

SIZE = DecoderSize(layers=2, width=128, heads=4, kv_heads=2, hidden=192, vocabulary=256)


def tiny_decoder(size: DecoderSize = SIZE) -> ir.Model:
    model = make_decoder(size, drawn_weights(size))
    infer_shapes(model)
    return model


def tiny_text(tokens: int, *, seed: int = 0, vocabulary: int = SIZE.vocabulary) -> np.ndarray:
    return np.random.default_rng(seed).zipf(1.4, tokens) % vocabulary


def in_blocks(
    format_: BlockFormat,
    *,
    rounds: bool = False,
    size: DecoderSize = SIZE,
    others: Mapping[str, BlockFormat] = MappingProxyType({}),
) -> ir.Model:
    """The small decoder with its weights rounded to nearest: in one format, and those whose name ends so in others."""
    model = at_opset(tiny_decoder(size), 21)
    layers = {layer.name: layer for layer in find_layers(model)}
    stored = {}
    for name, layer in layers.items():
        array = model.graph.initializers[name].const_value.numpy()
        weight = np.ascontiguousarray(array.T) if layer.is_turned else array
        own = next((other for end, other in others.items() if name.endswith(end)), format_)
        scales = fit_blocks(weight, np.ones(layer.inputs, np.float32), own)
        stored[name] = (scales.integers(weight), scales)
    formats = {name: scales.format for name, (_, scales) in stored.items()}
    made = apply_weights(model, layers, formats, stored.__getitem__)
    if rounds:
        round_activations(made)
    return made


def windows(model: ir.Model, count: int, *, length: int = 16, past: int = 0) -> list[Mapping[str, np.ndarray]]:
    """Tokens with a cache of random numbers of that many positions."""
    decoder, inputs = find_decoder(model), describe_inputs(model)
    random = np.random.default_rng(1)
    made = []
    for number in range(count):
        ids = tiny_text(length, seed=number)[None]
        cache = {
            name: random.standard_normal((*array.shape[:2], past, array.shape[3])).astype(np.float32)
            for name, array in empty_cache(inputs, decoder).items()
        }
        made.append({**token_inputs(ids, past, inputs, decoder), **cache})
    return made
