"""ONNX's own backend test cases of single operators, for the operators that a target claims."""

from __future__ import annotations

import itertools
import warnings
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from compiler.target.capability import Capability, find_unsupported, op_key
from compiler.target.testing.case import Case

_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


def onnx_backend_cases(capability: Capability, *, per_op: int = 0) -> list[Case]:
    """The node cases of the onnx package whose every node the capability covers, sorted by operator and name.

    Left out: expansions of functions (the same cases again), what takes or gives anything but tensors of numbers,
    random operators, and training.

    Args:
        capability: What the target claims.
        per_op: How many cases of each operator, spread over its list; 0 means all.
    """
    covered: dict[str, list[Case]] = defaultdict(list)
    for op, case, model in _loaded():
        # most of what is not covered is seen by its operators
        if all(name in capability.ops for name in op.split("+")) and _is_covered(model, capability):
            covered[op].append(case)
    return [case for op in sorted(covered) for case in _spread(covered[op], per_op)]


def _is_covered(model: ir.Model, capability: Capability) -> bool:
    return model.opset_imports.get("", 0) <= capability.opset_max and not find_unsupported(model, capability)


def _spread(cases: list[Case], count: int) -> list[Case]:
    if not count or len(cases) <= count:
        return cases
    return [cases[index * len(cases) // count] for index in range(count)]


@cache
def all_cases() -> tuple[tuple[str, Case], ...]:
    """Every node case of the onnx package that has a result to compare, with its operators, whoever claims it."""
    return tuple((op, case) for op, case, _ in _loaded())


@cache
def _loaded() -> tuple[tuple[str, Case, ir.Model], ...]:
    """The cases with their operators, and the model of each, which is asked for every capability and never changed."""
    return tuple(sorted(_generated(), key=lambda row: (row[0], row[1].name)))


def _generated() -> Iterator[tuple[str, Case, ir.Model]]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # onnx computes the expected values as it imports the cases
        from onnx.backend.test.loader import load_node_model_tests

        tests = load_node_model_tests()
    for test in tests:
        if "_expanded" in test.name or "training" in test.name or "_train_" in test.name:
            continue
        if (case := _case(test)) is None:
            continue
        model = case.model()
        ops = {op_key(node) for node in model.graph}
        if not ops & _RANDOM:
            yield "+".join(sorted(ops)), case, model


def _case(test: Any) -> Case | None:
    graph, sets = test.model.graph, test.data_sets or []
    values = [*graph.input, *graph.output]
    arrays = list(itertools.chain.from_iterable((*inputs, *outputs) for inputs, outputs in sets))
    if not sets or any(not value.type.HasField("tensor_type") for value in values) or not all(map(_is_numeric, arrays)):
        return None
    takes, gives = [value.name for value in graph.input], [value.name for value in graph.output]
    model: onnx.ModelProto = test.model
    return Case(
        name=f"onnx/{test.name}",
        proto=lambda: model,
        inputs=tuple(dict(zip(takes, map(np.asarray, inputs), strict=False)) for inputs, _ in sets),
        expected=tuple(dict(zip(gives, map(np.asarray, outputs), strict=False)) for _, outputs in sets),
    )


def _is_numeric(value: object) -> bool:
    return isinstance(value, (np.ndarray, np.generic)) and np.asarray(value).dtype.kind in "fiub"
