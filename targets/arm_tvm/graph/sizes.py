"""One dimension with a range of sizes, built as several fixed ones that share their weights.

Where every operator computes each place of the dimension by itself, as that of a batch, a size is divided into built
ones when the model runs: 5 = 4 + 1. Nothing is padded. Otherwise every size of the range is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from compiler.target import Capability, UnrollLoops, UnsupportedModel, load_passes, refuse_unsupported
from targets.arm_tvm.graph.fold_shapes import FOLD_SHAPES
from targets.arm_tvm.graph.places import why_mixed

if TYPE_CHECKING:
    from compiler.target import Pass, Range

MOST_SIZES = 32
"""Sizes of one dimension that are built: each has code of its own, and takes seconds to compile."""


@dataclass(frozen=True)
class Sizes:
    """How a range of sizes is built.

    Args:
        dimension: Name of the dimension.
        least: Smallest size of the range.
        most: Largest size of the range.
        built: Sizes that code is compiled for, ascending.
        best: The size whose kernels decide how weights are packed; one of `built`.
        divides: Whether a size that is not built is divided into built ones.
    """

    dimension: str
    least: int
    most: int
    built: tuple[int, ...]
    best: int
    divides: bool


def own_passes() -> tuple[Pass, ...]:
    """Sizes become constants, and loops their iterations: compiled code has no loops of operators."""
    return (FOLD_SHAPES, UnrollLoops())  # sizes first: numbers of iterations may be computed from them


def bind_size(model: ir.Model, dimension: str, size: int) -> ir.Model:
    """A copy of the border model where a dimension has one size.

    Args:
        model: The border model.
        dimension: Name of the dimension in the shapes of its inputs.
        size: The size.
    """
    return bind_sizes(model, {dimension: size})


def bind_sizes(model: ir.Model, sizes: Mapping[str, int]) -> ir.Model:
    """A copy of the border model where some dimensions have one size each.

    Args:
        model: The border model.
        sizes: Name of a dimension in the shapes of its inputs → its size.
    """
    copy = model.clone()
    for value in copy.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([sizes.get(_name(dim) or "", dim) for dim in value.shape])
    for value in (*copy.graph.outputs, *(value for node in copy.graph.all_nodes() for value in node.outputs)):
        if value.shape is not None and not value.shape.is_static():
            value.shape = None  # what inference knows by the size it must not take from before
    for step in (*load_passes(("infer-shapes",)), *own_passes()):
        step(copy)
    return copy


def plan_sizes(model: ir.Model, dims: Mapping[str, Range], capability: Capability | None) -> Sizes | None:
    """How the range of a border model is built; None where it has none.

    Args:
        model: The border model.
        dims: Dimension → its range; those that the model does not have say nothing.
        capability: What the target takes, of a model whose sizes are fixed; needed where there is a range.

    Raises:
        UnsupportedModel: More than one dimension has a range, an operator is refused, or too many sizes would have to
            be built.
    """
    named = {_name(dim) for value in model.graph.inputs for dim in value.shape or ()}
    dims = {name: sizes for name, sizes in dims.items() if name in named}
    if not dims or capability is None:
        return None
    if len(dims) > 1:
        listed = ", ".join(f"{name} {sizes}" for name, sizes in dims.items())
        raise UnsupportedModel(
            f"target 'tvm' builds a range of one dimension, and these are {len(dims)}: {listed}",
            remedy="Give all of them but one a single size.",
        )
    ((dimension, sizes),) = dims.items()
    divided = Sizes(dimension, sizes.min, sizes.max, _divisors(sizes.opt), sizes.opt, divides=True)
    first, second = (bind_size(model, dimension, size) for size in _compared(sizes))
    refuse_unsupported(first, capability, target="tvm")
    reason = why_mixed(model, first, second, dimension, _compared(sizes))
    if not reason:
        return divided
    every = tuple(range(sizes.min, sizes.max + 1))
    if len(every) > MOST_SIZES:
        raise UnsupportedModel(
            f"target 'tvm' would have to build {len(every)} sizes of '{dimension}', {sizes.min} to {sizes.max}, and "
            f"builds {MOST_SIZES} at most: they cannot be divided into others, since {reason}",
            remedy=f"Give '{dimension}' a range of at most {MOST_SIZES} sizes or a single one, make several device "
            "classes, or choose a target that keeps shapes open.",
        )
    return replace(divided, built=every, divides=False)


def bind_single(model: ir.Model, dims: Mapping[str, Range], capability: Capability) -> ir.Model:
    """The border model where dimensions whose range is one size have that size: so is asked for what is only raced.

    Args:
        model: The border model.
        dims: Dimension → its range.
        capability: What the target takes.

    Raises:
        UnsupportedModel: An operator is refused at that size.
    """
    named = {_name(dim) for value in model.graph.inputs for dim in value.shape or ()}
    single = {name: sizes.opt for name, sizes in dims.items() if sizes.is_fixed and name in named}
    if not single:
        return model
    bound = bind_sizes(model, single)
    refuse_unsupported(bound, capability, target="tvm")
    return bound


def at_best_size(model: ir.Model, dims: Mapping[str, Range]) -> ir.Model:
    """The border model with each range at the size that it shall be fastest at: what kernels are tuned for."""
    for dimension, sizes in dims.items():
        model = bind_size(model, dimension, sizes.opt)
    return model


def _divisors(best: int) -> tuple[int, ...]:
    """Powers of four below a size, and the size: any number is a sum of few of them.

    At least two, so that tensors at both show which of their axes depend on the dimension.
    """
    return tuple(
        sorted({1, best if best > 1 else 2, *(4**power for power in range(best.bit_length()) if 4**power < best)})
    )


def _compared(sizes: Range) -> tuple[int, int]:
    """Two sizes that show which axes depend on the dimension; not 1, at which an axis may be broadcast."""
    return (sizes.max, sizes.max - 1) if sizes.max > sizes.min else (sizes.max, sizes.max + 1)


def _name(dim: int | ir.SymbolicDim) -> str | None:
    return None if isinstance(dim, int) else dim.value
