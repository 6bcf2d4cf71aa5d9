"""What makes a model a decoder language model: which inputs are its cache, and which dimension counts what.

    tokens (batch, sequence), cache (batch, heads, past, head)  →  logits (batch, sequence, vocabulary),
                                                                   grown cache (batch, heads, past + sequence, head)

An input of the cache belongs to the output that holds it grown. They are paired by the names that exporters give them,
and where names say nothing by the graph: the output is what an operator made by joining the input with new rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.errors import CompilerError, UnsupportedModel, combine

if TYPE_CHECKING:  # a child process that answers prompts needs no graph library
    import onnx_ir as ir

CACHE_RANK = 4
"""Batch, heads, positions, head."""

POSITIONS = 2
"""The axis along which a cache grows."""

_PAST = re.compile(r"(^|[._/])(past|cache)")
_NUMBER = re.compile(r"\d+")
_KIND = re.compile(r"key|value|(?<![a-z])[kv](?![a-z])")
_IDS = re.compile(r"(^|[./])(decoder_input_ids|input_ids|token_ids|tokens|ids)$")
_MASK = re.compile(r"mask")
_POSITIONS = re.compile(r"position")
_JOINS = {
    "Concat": {},
    "ScatterElements": {},
    "ScatterND": {},
    "TensorScatter": {},
    "Attention": {4: 1, 5: 2},
    "GroupQueryAttention": {3: 1, 4: 2},
    "MultiHeadAttention": {6: 1, 7: 2},
}
"""Operators that a cache grows in → input of an old cache → output of the new one; the first where not listed."""

_STEPS = 4
"""Operators that an exporter may put between a joined cache and the output: Identity, Cast and the like."""

_ROUNDING = ("QuantizeLinear", "DequantizeLinear")
"""Operators that round a cache: what they give is of their first input."""


@dataclass(frozen=True)
class CachePair:
    """An input of the cache, the output that holds it grown, and the axis that grows."""

    past: str
    present: str
    axis: int = POSITIONS


@dataclass(frozen=True)
class Decoder:
    """A decoder language model's inputs and outputs by what they mean.

    Args:
        ids: Input of token ids (batch, sequence).
        logits: Output (batch, sequence, vocabulary).
        pairs: The cache, in order of the inputs.
        mask: Input of ones for tokens that are seen (batch, past + sequence); empty where there is none.
        positions: Input of each token's position (batch, sequence); empty where there is none.
        batch: Name of the dimension that counts sequences; empty where it is fixed.
        sequence: Name of the dimension of new tokens; empty where it is fixed.
        past: Name of the dimension of cached tokens; empty where it is fixed.
        total: Name of the dimension of both together; empty where it is fixed, or no input has it.
        vocabulary: Count of token ids.
    """

    ids: str
    logits: str
    pairs: tuple[CachePair, ...]
    mask: str = ""
    positions: str = ""
    batch: str = ""
    sequence: str = ""
    past: str = ""
    total: str = ""
    vocabulary: int = 0


def is_decoder(model: ir.Model) -> bool:
    """Whether a model takes token ids and anything that looks like a cache."""
    return any(map(_is_ids, model.graph.inputs)) and any(map(_is_cache, model.graph.inputs))


def find_decoder(model: ir.Model) -> Decoder:
    """The inputs and outputs of a decoder by what they mean.

    Args:
        model: As it was read, or with its sizes put in.

    Raises:
        UnsupportedModel: It has no input of token ids, no cache, a cache of another layout, or an input of the cache
            that no output belongs to; all at once.
    """
    inputs, outputs = list(model.graph.inputs), list(model.graph.outputs)
    ids = next(filter(_is_ids, inputs), None)
    cache = [value for value in inputs if _is_cache(value)]
    pairs, problems = _paired(cache, outputs)
    problems = [*_missing(ids, cache, model), *_layouts(cache), *problems]
    taken = {pair.present for pair in pairs}
    logits = next((value for value in outputs if value.name not in taken and _rank(value) == 3), None)
    if logits is None:
        names = _listed(outputs)
        problems.append(UnsupportedModel(f"no output of three dimensions is left for the logits among {names}"))
    if problems or ids is None or logits is None:
        raise combine(problems)
    mask, positions = (
        next((value for value in inputs if wanted.search(str(value.name))), None) for wanted in (_MASK, _POSITIONS)
    )
    vocabulary = logits.shape[2] if logits.shape is not None else 0
    return Decoder(
        ids=str(ids.name),
        logits=str(logits.name),
        pairs=tuple(pairs),
        mask=str(mask.name) if mask is not None else "",
        positions=str(positions.name) if positions is not None else "",
        batch=_symbol(ids, 0),
        sequence=_symbol(ids, 1),
        past=_symbol(cache[0], pairs[0].axis),
        total=_symbol(mask, 1) if mask is not None else "",
        vocabulary=vocabulary if isinstance(vocabulary, int) else 0,
    )


def _is_ids(value: ir.Value) -> bool:
    is_integer = value.dtype is not None and value.dtype.name in ("INT64", "INT32")
    return is_integer and bool(_IDS.search(str(value.name))) and _rank(value) == 2


def _is_cache(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point() and bool(_PAST.search(str(value.name)))


def _missing(ids: ir.Value | None, cache: list[ir.Value], model: ir.Model) -> Iterator[CompilerError]:
    names = _listed(model.graph.inputs)
    if ids is None:
        yield UnsupportedModel(
            f"no input holds token ids: it has {names}", remedy="Name it input_ids, as optimum and torch do."
        )
    if not cache:
        yield UnsupportedModel(
            f"the model has no cache of keys and values among its inputs: {names}",
            remedy="Export it with its cache (optimum: text-generation-with-past; torch: past_key_values as inputs).",
        )


def _layouts(cache: list[ir.Value]) -> Iterator[CompilerError]:
    for value in cache:
        if _rank(value) != CACHE_RANK:
            yield UnsupportedModel(
                f"cache input '{value.name}' of shape {value.shape} is not (batch, heads, positions, head)",
                remedy="Export keys and values of each layer as tensors of four dimensions.",
            )
        elif not _symbol(value, POSITIONS) and (other := next((a for a in (1, 3) if _symbol(value, a)), None)):
            yield UnsupportedModel(
                f"cache input '{value.name}' of shape {value.shape} grows along axis {other}: it is not (batch, heads, "
                "positions, head)",
                remedy="Transpose keys and values before the cache joins them, as optimum and torch export them.",
            )


def _paired(cache: list[ir.Value], outputs: list[ir.Value]) -> tuple[list[CachePair], list[CompilerError]]:
    """The pairs, and an error for each input of the cache that has no output."""
    by_place = {_place(value): value for value in outputs if _is_present(value)}
    pairs: list[CachePair] = []
    problems: list[CompilerError] = []
    for value in cache:
        grown = by_place.get(_place(value)) if _place(value) is not None else None
        grown = grown or _grown_from(value, outputs)
        if grown is None:
            left = _listed(other for other in outputs if other.name not in {pair.present for pair in pairs})
            what = f"cache input '{value.name}' belongs to no output: there are {left}"
            problems.append(
                UnsupportedModel(what, remedy="Name the output present.N.key or .value as the input is named.")
            )
        else:
            pairs.append(CachePair(str(value.name), str(grown.name)))
    doubled = {pair.present for pair in pairs if sum(other.present == pair.present for other in pairs) > 1}
    for name in sorted(doubled):
        listed = ", ".join(pair.past for pair in pairs if pair.present == name)
        problems.append(UnsupportedModel(f"output '{name}' would belong to several inputs of the cache: {listed}"))
    return pairs, problems


def _is_present(value: ir.Value) -> bool:
    return bool(re.search(r"present|past|cache|new_", str(value.name)))


def _place(value: ir.Value) -> tuple[int, str] | None:
    """Layer and key or value, by the name; None where it tells neither."""
    name = str(value.name)
    number, kind = _NUMBER.search(name), _KIND.findall(name.rpartition("past_key_values")[2] or name)
    return (int(number.group()), kind[-1][0]) if number and kind else None


def _grown_from(value: ir.Value, outputs: list[ir.Value]) -> ir.Value | None:
    """The output that an operator made by joining the input with new rows, or by writing them into it."""
    for node, index in value.uses():
        if node.op_type not in _JOINS:
            continue
        front = [node.outputs[_JOINS[node.op_type].get(index, 0)]]
        for _ in range(_STEPS):
            match = next((out for out in outputs if out in front), None)
            if match is not None:
                return match
            users = [use for seen in front for use in seen.uses()]
            front = [out for user, place in users if _hands_on(user, place) for out in user.outputs]
    return None


def _hands_on(node: ir.Node, place: int) -> bool:
    """Whether what a node gives is, in another form, what it reads at a place."""
    return len(node.inputs) == 1 or (node.op_type in _ROUNDING and place == 0)


def _rank(value: ir.Value) -> int:
    return -1 if value.shape is None else len(value.shape)


def _symbol(value: ir.Value, axis: int) -> str:
    size = value.shape[axis] if value.shape is not None and len(value.shape) > axis else None
    return "" if size is None or isinstance(size, int) or not size.value else str(size.value)


def _listed(values: object) -> str:
    return ", ".join(str(value.name) for value in values) or "none"  # type: ignore[attr-defined]
