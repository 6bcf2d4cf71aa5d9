"""A decoder as functions of fixed sizes over a cache of fixed size, which they write in place.

    main_1, main_16, main_256   ids, positions, caches (1, groups, context, size), tokens before → hidden vectors
    head                        hidden vector of one token → logits

A cache in 8 bits is a row of integers for each head and token, with their factor behind them.

A prompt is divided into built sizes: a token behind others is computed alike whichever of them are read with it. Logits
are a function of their own, since those of a prompt's last token alone are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.target import (
    CachedAttention,
    Decoder,
    Editor,
    TensorSpec,
    UnsupportedModel,
    constant_of,
    extract_prefix,
    extract_suffix,
    find_attentions,
    find_decoder,
    is_causal,
    is_decoder,
    remove_unread,
    stand_in,
)
from targets.arm_tvm.graph.blocks import PRODUCT, pack_blocks
from targets.arm_tvm.graph.quantized.rewrite import DOMAIN
from targets.arm_tvm.graph.sizes import Sizes, bind_sizes

if TYPE_CHECKING:
    from compiler.target import Range

ATTENTION = "CachedAttention"
"""Our operator: queries, keys, values, both caches, tokens before → (1, tokens, heads · size). Attribute scale."""
HEAD = "head"
"""Name of the function that makes logits; native/model.c says the same."""
START = "fleetc.start"
"""Input of compiled code: tokens before those that it is given."""

_PART = 16
"""Tokens of the built size between one and `prefill`: more sizes take more code, fewer more steps of one token."""
_LANES, _NARROW_LANES = 4, 16
"""Elements of a head that native/attention.c computes at a time, of a cache in float32 and in 8 bits."""
_FACTOR_BYTES = 4
"""Of a row of a cache in 8 bits; native/attention.h says the same."""

_ELEMENTWISE = frozenset({"Add", "Cast", "Clip", "Div", "Identity", "Mul", "Tanh"})
"""What may stand between the last product and the logits."""


@dataclass(frozen=True)
class DecoderBuild:
    """How a decoder is built.

    Args:
        decoder: What its inputs and outputs mean.
        context: Tokens of prompt and answer together.
        prefill: Tokens of a prompt that are read at once.
        sizes: Numbers of new tokens that code is compiled for.
        values: Inputs and outputs beside a decoder's that have values for each new token: where a decoder is cut at
            its roundings, its products are given what they read.
    """

    decoder: Decoder
    context: int
    prefill: int
    sizes: Sizes
    values: frozenset[str] = frozenset()

    @property
    def rows(self) -> int:
        """Tokens of the cache in memory: a prompt behind a full context is a call of the model too.

        Pages of rows that are never written take no memory.
        """
        return self.context - 1 + self.prefill


def plan_decoder(model: ir.Model, dims: Mapping[str, Range]) -> DecoderBuild | None:
    """How a decoder with a growing cache is built; None of another model.

    Args:
        model: The border model.
        dims: Dimension → its range.

    Raises:
        UnsupportedModel: Another dimension than those of new and cached tokens is open, or its attention is not known.
    """
    decoder = find_decoder(model) if dims and is_decoder(model) else None
    if decoder is None or not decoder.past or decoder.past not in dims or decoder.sequence not in dims:
        return None
    others = sorted(set(dims) - {decoder.past, decoder.sequence, decoder.total})
    if others or decoder.batch in dims:
        raise UnsupportedModel(
            f"target 'tvm' builds a language model for one sequence, and {', '.join(others)} is a range too",
            remedy="Give it one size: `batch: 1`.",
        )
    prefill, context = dims[decoder.sequence].max, dims[decoder.past].max + 1
    _refuse_attentions(model, decoder, context)
    built = tuple(sorted({1, min(_PART, prefill), prefill}))
    sizes = Sizes(decoder.sequence, 1, context, built, 1, divides=True)
    return DecoderBuild(decoder, context, prefill, sizes, _values_of(model, decoder))


def _values_of(model: ir.Model, decoder: Decoder) -> frozenset[str]:
    """Inputs and outputs that have values for each new token, and are none of a decoder's own."""
    own = {decoder.ids, decoder.mask, decoder.positions, decoder.logits}
    own |= {name for pair in decoder.pairs for name in (pair.past, pair.present)}
    tensors = [value for value in (*model.graph.inputs, *model.graph.outputs) if value.name not in own]
    floats = [value for value in tensors if value.dtype == ir.DataType.FLOAT and value.shape is not None]
    return frozenset(str(value.name) for value in floats if len(value.shape or ()) == 3)


def _refuse_attentions(model: ir.Model, decoder: Decoder, context: int) -> None:
    """Raises UnsupportedModel where an input of the cache is read by something else than a known causal attention."""
    matches = find_attentions(model)
    # behind a full context, since our attention has no bias: what hides the oldest tokens would be lost
    causal = {bias for bias in {match.bias for match in matches} if is_causal(model, bias, decoder, past=context - 1)}
    known = {name for match in matches if match.bias in causal for name in _caches_of(match)}
    unknown = sorted({pair.past for pair in decoder.pairs} - known)
    if unknown:
        raise UnsupportedModel(
            f"target 'tvm' does not know the attention that reads {', '.join(unknown)}: it takes products of queries "
            "and keys, a factor, a bias that hides later tokens and no others, Softmax, and the product with values",
            remedy="Take precision fp32 or int8-weights, which leave it in float32; export the model with its "
            "attention spelled out (optimum, torch); or take target onnxruntime.",
        )
    for is_rounded, lanes, where in ((False, _LANES, ""), (True, _NARROW_LANES, " behind a cache in int8")):
        sizes = {match.size for match in matches if match.is_rounded == is_rounded}
        if odd := sorted(str(size) for size in sizes if size % lanes):
            raise UnsupportedModel(
                f"target 'tvm' computes heads of multiples of {lanes} elements{where}; this has {', '.join(odd)}"
            )


def _caches_of(match: CachedAttention) -> tuple[str, str]:
    return str(match.past_key.name), str(match.past_value.name)


def decoder_models(model: ir.Model, build: DecoderBuild) -> dict[str, ir.Model]:
    """Name of a function → the model that it computes; the one that decides how weights are packed comes first.

    Args:
        model: The border model.
        build: How it is built.

    Raises:
        UnsupportedModel: Something but attention needs the mask or the number of cached tokens, or logits are more than
            a product of a hidden vector.
    """
    records: dict[str, NDArray[np.uint8]] = {}
    first = _at_size(model, build, 1, records)
    hidden = _hidden_of(first, build.decoder)
    models = {f"main_{size}": _body(_at_size(model, build, size, records), build, hidden) for size in build.sizes.built}
    return {**models, HEAD: _head(first, build.decoder, hidden)}


def _at_size(model: ir.Model, build: DecoderBuild, size: int, records: dict[str, NDArray[np.uint8]]) -> ir.Model:
    """The model for a number of tokens behind one in the cache: attention, which alone looks at it, is replaced."""
    decoder = build.decoder
    sizes = {decoder.sequence: size, decoder.past: 1, **({decoder.total: size + 1} if decoder.total else {})}
    # inference may have given the number of new tokens another name there
    given = [value.shape for value in model.graph.inputs if value.name in build.values and value.shape is not None]
    sizes |= {str(shape[1].value): size for shape in given if isinstance(shape[1], ir.SymbolicDim)}
    bound = bind_sizes(model, sizes)
    pack_blocks(bound, records)
    return bound


def _hidden_of(model: ir.Model, decoder: Decoder) -> str:
    """Name of the value whose product with a matrix are the logits, but for what is computed of each by itself."""
    value: ir.Value | None = next(output for output in model.graph.outputs if output.name == decoder.logits)
    while (node := value.producer() if value is not None else None) is not None:
        read = [other for other in node.inputs if other is not None and not _is_fixed(other)]
        if node.op_type in ("MatMul", PRODUCT) and len(read) == 1 and read[0] is node.inputs[0]:
            return str(read[0].name)
        if node.op_type not in _ELEMENTWISE or len(read) != 1:
            break
        (value,) = read
    raise UnsupportedModel(
        f"target 'tvm' makes logits of one token at a time, and '{decoder.logits}' is more than a product with weights",
        remedy="Take target onnxruntime for this model.",
    )


def _is_fixed(value: ir.Value) -> bool:
    """Whether a value is computed of constants alone."""
    if constant_of(value) is not None:
        return True
    node = value.producer()
    return node is not None and all(read is not None and _is_fixed(read) for read in node.inputs)


def _head(model: ir.Model, decoder: Decoder, hidden: str) -> ir.Model:
    head = extract_suffix(extract_prefix(model, [decoder.logits]), [hidden])
    names = [value.name for value in head.graph.inputs if value.name not in head.graph.initializers]
    if names != [hidden]:
        raise UnsupportedModel(
            f"target 'tvm': the logits are of {', '.join(map(str, names))} and not of '{hidden}' alone"
        )
    return head


def _body(model: ir.Model, build: DecoderBuild, hidden: str) -> ir.Model:
    """The model up to its hidden vectors, with our attention, whose cache is of the whole context."""
    graph, decoder = model.graph, build.decoder
    start = ir.Value(name=START, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    narrow: set[str] = set()
    for match in find_attentions(model):
        narrow |= set(_caches_of(match)) if match.is_rounded else set()
        inputs = [match.query, match.key, match.value, match.past_key, match.past_value, start]
        (new,) = Editor(model, match.last).add(ATTENTION, inputs, {"scale": match.scale}, domain=DOMAIN)
        stand_in(match.last.outputs[0], new)
    outputs = [_named(model, hidden), *(value for value in graph.outputs if value.name in build.values)]
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    remove_unread(model)
    graph.sort()
    graph.inputs.append(start)
    caches = {pair.past for pair in decoder.pairs}
    for value in list(graph.inputs):
        if value.name in caches and value.shape is not None:
            _size_cache(value, build.rows, is_narrow=value.name in narrow)
        elif not value.uses() and value.name not in graph.initializers:
            graph.inputs.remove(value)
    _refuse_other_inputs(model, decoder, build.values)
    return model


def _size_cache(value: ir.Value, rows: int, *, is_narrow: bool) -> None:
    """Gives an input of the cache its whole size, and the form in which it lies in memory."""
    groups, size = (int(str(extent)) for extent in (value.shape or ())[1::2])
    value.shape = ir.Shape([1, groups, rows, size + (_FACTOR_BYTES if is_narrow else 0)])
    if is_narrow:
        value.type = ir.TensorType(ir.DataType.INT8)  # copies of a model share their types


def _named(model: ir.Model, name: str) -> ir.Value:
    """A value of a graph as an output; an input of it by a node, for an output is computed."""
    given = next((value for value in model.graph.inputs if value.name == name), None)
    if given is None:
        return next(value for node in model.graph for value in node.outputs if value.name == name)
    same = ir.node("Identity", [given], name=f"Identity:{name}")
    same.outputs[0].name, same.outputs[0].type, same.outputs[0].shape = f"{name}:same", given.type, given.shape
    model.graph.append(same)
    return same.outputs[0]


def _refuse_other_inputs(model: ir.Model, decoder: Decoder, values: Set[str]) -> None:
    known = {decoder.ids, decoder.positions, START, *(pair.past for pair in decoder.pairs)}
    others = [str(value.name) for value in model.graph.inputs if value.name not in {*known, *values}]
    caches = {pair.past for pair in decoder.pairs}
    counted = sorted(
        {
            str(value.name)
            for value in model.graph.inputs
            if value.name in caches and any(node.op_type != ATTENTION for node, _ in value.uses())
        }
    )
    if names := [*others, *counted]:
        raise UnsupportedModel(
            f"target 'tvm' keeps the cache in place and takes tokens in order, and something besides attention reads "
            f"{', '.join(names)}",
            remedy="Export the model with position_ids as an input, or take target onnxruntime.",
        )


def convert_attention(builder: Any, inputs: list[Any], scale: float) -> Any:
    """The call of `fleetc.attention`, which the program of the bundle has (native/attention.c)."""
    from tvm import relax

    heads, tokens, size = (int(extent) for extent in inputs[0].ty.shape.values[1:])
    result = relax.TensorType((1, tokens, heads * size), "float32")
    factor = relax.const(np.array([scale], np.float32))
    return builder.emit(relax.call_dps_packed("fleetc.attention", [*inputs, factor], result))


def border_specs(model: ir.Model) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a border model, whose open sizes have the names that it gives them."""
    graph = model.graph
    given = [value for value in graph.inputs if value.name not in graph.initializers]
    return tuple(_specs(given)), tuple(_specs(graph.outputs))


def _specs(values: Any) -> Iterator[TensorSpec]:
    for value in values:
        shape = tuple(
            size if isinstance(size, int) else size.value or f"{value.name}.{axis}"
            for axis, size in enumerate(value.shape)
        )
        yield TensorSpec(str(value.name), value.dtype.numpy().name, shape)


def describe_decoder(
    model: ir.Model, build: DecoderBuild, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> str:
    """What the program of the bundle must know of a decoder, as native/decoder.c reads it.

    Args:
        model: The border model.
        build: How it is built.
        inputs: Those of compiled code, in order.
        outputs: Likewise.
    """
    decoder, places = build.decoder, {spec.name: place for place, spec in enumerate(inputs)}
    kinds = {decoder.ids: "ids", decoder.mask: "mask", decoder.positions: "positions", decoder.logits: "logits"}
    kinds |= dict.fromkeys(build.values, "values")
    given, results = border_specs(model)
    grown = {pair.present: places[pair.past] for pair in decoder.pairs}
    grown |= {spec.name: place for place, spec in enumerate(outputs)}
    lines = [
        f"context {build.context}",
        f"prefill {build.prefill}",
        f"vocabulary {decoder.vocabulary}",
        f"ids {places[decoder.ids]}",
        f"positions {places.get(decoder.positions, -1)}",
        f"start {places[START]}",
        *(f"takes {kinds.get(spec.name, 'cache')} {places.get(spec.name, -1)}" for spec in given),
        *(f"gives {kinds.get(spec.name, 'cache')} {grown.get(spec.name, -1)}" for spec in results),
    ]
    return "".join(f"{line}\n" for line in lines)
