"""How far a model's answers are from the float model's: the Kullback-Leibler divergence of the next token.

KL = Σ_v p_v·(ln p_v − ln q_v), p of the float model, q of the other, the mean over all tokens.

A trial changes a few weights. What is computed before the first of them is the float model's, and taken from it:

    start 0: inputs ───────────────────────────→ logits      trials of weights that are read early
    start k: values that the float model has there → logits  trials of weights that are read behind it
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.compress.threads import in_parallel
from compiler.evaluate.generation import log_divergences, log_softmax
from compiler.model.frontend.extract import extract_prefix, extract_suffix, read_by
from compiler.model.numerics import Array, Arrays
from compiler.model.reference import Unoptimized

Floats = NDArray[np.float32]

_ROWS = 64
"""Tokens compared at a time: a vocabulary of 49,152 takes 13 MB then."""


def mean_divergence(expected: Floats, logits: Floats) -> float:
    """The mean divergence over tokens.

    Args:
        expected: Logarithms of the float model's probabilities (tokens, vocabulary).
        logits: Of the other (…, vocabulary).
    """
    got = logits.reshape(-1, logits.shape[-1])
    total = 0.0
    for start in range(0, len(expected), _ROWS):
        rows = slice(start, start + _ROWS)
        total += float(log_divergences(expected[rows], log_softmax(got[rows])).sum(dtype=np.float64))
    return total / max(1, len(expected))


LARGE_BYTES = 128 << 20
"""Of a weight: with such a one windows are run one after another."""


@dataclass(frozen=True)
class _Part:
    """The model from one of its nodes on.

    Args:
        position: The node's place in the graph.
        reads: Values before it that it reads.
        session: Takes them, inputs of the model and the weights that trials change, as far as they are read.
        inputs: Names of all those.
    """

    position: int
    reads: tuple[str, ...]
    session: Unoptimized
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class _Window:
    """One batch: what the float model computes of it.

    Args:
        known: Inputs of the model, and values that a part reads.
        expected: Logarithms of the probabilities (tokens, vocabulary).
    """

    known: Arrays = field(repr=False)
    expected: Floats = field(repr=False)


class Trials:
    """Measures what other weights do to a model's answers.

    Args:
        model: In float32, types inferred, every node named; left as it is.
        logits: Name of the output that is compared.
        batches: Inputs; what the float model computes of them is kept.
        weights: Initializers that trials change.
        starts: Names of nodes where a trial may begin: more of them take memory, and save work.
    """

    def __init__(
        self,
        model: ir.Model,
        logits: str,
        batches: Sequence[Arrays],
        *,
        weights: Collection[str],
        starts: Collection[str] = (),
    ) -> None:
        whole = extract_prefix(model, [logits])
        self._logits = logits
        self._floats, self._first = _take_weights(whole, weights)
        self._parts = _parts_of(whole, starts)
        names = [logits, *dict.fromkeys(name for part in self._parts for name in part.reads)]
        session, read = _opened(extract_prefix(whole, names))
        # a table that the head shares is turned in each run
        self._most = 1 if max(array.nbytes for array in self._floats.values()) > LARGE_BYTES else None
        self._windows = in_parallel(lambda batch: self._window(session, read, batch), batches, most=self._most)

    def measure(self, weights: Mapping[str, Floats]) -> float:
        """The mean divergence with other values of some weights, in nats a token."""
        first = min(self._first[name] for name in weights)
        part = max((part for part in self._parts if part.position <= first), key=lambda part: part.position)

        def divergence(window: _Window) -> float:
            known = {**self._floats, **window.known, **weights}
            outputs = part.session.run({name: known[name] for name in part.inputs})
            return mean_divergence(window.expected, outputs[self._logits].astype(np.float32, copy=False))

        return max(0.0, float(np.mean(in_parallel(divergence, self._windows, most=self._most))))

    def _window(self, session: Unoptimized, read: Sequence[str], batch: Arrays) -> _Window:
        known = {**self._floats, **batch}
        outputs = session.run({name: known[name] for name in read})
        logits = outputs.pop(self._logits)
        return _Window({**batch, **outputs}, log_softmax(logits.reshape(-1, logits.shape[-1])))


def _take_weights(model: ir.Model, names: Collection[str]) -> tuple[dict[str, Array], dict[str, int]]:
    """Makes inputs of some initializers, in place; the arrays that they were, and the place of their first readers."""
    places = {node: number for number, node in enumerate(model.graph)}
    taken, first = dict[str, Array](), dict[str, int]()
    for name in names:
        value = model.graph.initializers.pop(name)
        assert value.const_value is not None  # noqa: S101  weights are constants
        taken[name] = value.const_value.numpy()
        first[name] = min(places[node] for node, _ in value.uses())
        value.shape, value.dtype = ir.Shape(taken[name].shape), value.const_value.dtype
        value.const_value = None
        model.graph.inputs.append(value)
    return taken, first


def _parts_of(model: ir.Model, starts: Collection[str]) -> tuple[_Part, ...]:
    """The whole model, and what is left of it from each of some nodes on."""
    nodes = list(model.graph)
    parts = [_Part(0, (), *_opened(model))]
    for position in [place for place, node in enumerate(nodes) if node.name in starts and place]:
        made = {value for node in nodes[:position] for value in node.outputs}
        reads = tuple(dict.fromkeys(str(v.name) for node in nodes[position:] for v in read_by(node) if v in made))
        parts.append(_Part(position, reads, *_opened(extract_suffix(model, reads))))
    return tuple(parts)


def _opened(model: ir.Model) -> tuple[Unoptimized, tuple[str, ...]]:
    """A session, and the names of what it takes."""
    return Unoptimized(model), tuple(str(value.name) for value in model.graph.inputs)
