"""Finds composites: a convolution or matrix product with the bias, residual and activation that follow it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compiler.target import Array
from targets.arm_tvm.graph.quantized.stored import rows_digest
from targets.arm_tvm.graph.reading import constant, number, operator_name, readers_of, shape_of
from targets.arm_tvm.graph.regions import Users, find_region
from targets.arm_tvm.kernels.floating_point.bfloat16 import BFLOAT16
from targets.arm_tvm.kernels.floating_point.int8_weights import INT8
from targets.arm_tvm.kernels.floating_point.workload import ConvWorkload

FACTORS, PRODUCTS = "fleetc.weight_factors", "fleetc.products"
"""Attributes of `main`."""
PLANAR_CHANNELS = 4
"""A source of fewer channels than this is read plane by plane: blocks of it would be mostly zeros."""


@dataclass(frozen=True)
class Composite:
    """Bindings that become one kernel.

    Args:
        workload: What it computes.
        source: The variable it reads.
        weights: Filters, channels / groups, rows, columns; integers where the workload has them so in memory.
        bias: One value for each filter.
        residual: The variable that is added, if any.
        last: The variable of its result.
        inner: The variables between; nothing else reads them.
        factors: Of integer weights, one for each filter; None for floats.
    """

    workload: ConvWorkload
    source: Any
    weights: Array
    bias: Array
    residual: Any
    last: Any
    inner: tuple[Any, ...]
    factors: Array | None = None

    @property
    def given_bytes(self) -> int:
        """Of its weights, as the Relax function holds them: floats."""
        return self.weights.size * np.dtype(self.workload.dtype).itemsize


def find_composites(main: Any) -> dict[Any, Composite]:
    """Composites of a function by their first variable; no binding is in two."""
    block = main.body.blocks[0]
    users = readers_of(block, main.body.body)
    claimed: set[Any] = set()
    composites: dict[Any, Composite] = {}
    products = str((main.attrs or {}).get(PRODUCTS) or "")
    factors = {digest: value.numpy() for digest, value in ((main.attrs or {}).get(FACTORS) or {}).items()}
    for binding in block.bindings:
        start = _start(binding)
        if start is not None:
            stored = _in_bfloat16(start) if products == BFLOAT16 else _as_stored(start, factors)
            composite = _extended(stored, users, claimed)
            claimed |= {*composite.inner, composite.last}
            composites[binding.var] = composite
    return composites


def note_factors(module: Any, factors: Mapping[str, Array]) -> Any:
    """The module, whose `main` says which of its weights are int8 in memory.

    Args:
        module: Relax.
        factors: Digest of weights, as `rows_digest` gives it → the factor of each filter.
    """
    import tvm

    if factors:
        tensors = {digest: tvm.runtime.tensor(np.asarray(value, np.float32)) for digest, value in factors.items()}
        module["main"] = module["main"].with_attr(FACTORS, tensors)
    return module


def note_bfloat16(module: Any) -> Any:
    """The module, whose `main` says that what our kernels multiply is rounded to bfloat16."""
    module["main"] = module["main"].with_attr(PRODUCTS, BFLOAT16)
    return module


def _in_bfloat16(composite: Composite) -> Composite:
    """The composite with products of bfloat16; groups of channels stay as they are."""
    work = composite.workload
    if work.groups > 1 or work.dtype != "float32":
        return composite
    return replace(composite, workload=replace(work, weights=BFLOAT16))


def _as_stored(composite: Composite, factors: Mapping[str, Array]) -> Composite:
    """The composite with its weights as integers, where the model has them so and a kernel takes them."""
    work = composite.workload
    # Of depthwise, grouped and planar convolutions the weights are few.
    if not factors or work.groups > 1 or work.layout == "planar" or work.dtype != "float32":
        return composite
    factor = factors.get(rows_digest(composite.weights))
    if factor is None:
        return composite
    integers = np.rint(np.divide(composite.weights, factor.reshape(-1, 1, 1, 1))).astype(np.int8)
    return replace(composite, workload=replace(work, weights=INT8), weights=integers, factors=factor)


def _start(binding: Any) -> Composite | None:
    name = operator_name(binding.value)
    if name == "relax.nn.conv2d":
        return _convolution(binding)
    return _product(binding) if name == "relax.matmul" else None


def _convolution(binding: Any) -> Composite | None:
    from tvm import relax

    source, kernel = binding.value.args
    attrs, weights, shape = binding.value.attrs, constant(kernel), shape_of(source)
    plain = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout) == ("NCHW", "OIHW", "NCHW")
    dtype = str(binding.var.ty.dtype)
    if weights is None or not plain or len(shape) != 4 or not isinstance(source, relax.Var) or dtype not in _DTYPES:
        return None
    if str(source.ty.dtype) != dtype or 0 in shape:
        return None
    batch, channels, height, width = shape
    workload = ConvWorkload(
        "planar" if channels < PLANAR_CHANNELS else "blocked",
        dtype,
        *(batch, channels, height, width, weights.shape[0]),
        kernel=_pair(weights.shape[2:]),
        strides=_pair(attrs.strides),
        dilations=_pair(attrs.dilation),
        padding=tuple(int(size) for size in attrs.padding),  # type: ignore[arg-type]  # four of them
        groups=int(attrs.groups),
    )
    return Composite(workload, source, weights, np.zeros(weights.shape[0], dtype), None, binding.var, ())


_DTYPES = ("float32", "float16")


def _product(binding: Any) -> Composite | None:
    from tvm import relax

    source, kernel = binding.value.args
    weights, shape, dtype = constant(kernel), shape_of(source), str(binding.var.ty.dtype)
    if weights is None or weights.ndim != 2 or len(shape) < 2 or not isinstance(source, relax.Var) or 0 in shape:
        return None
    if dtype not in _DTYPES or str(source.ty.dtype) != dtype:
        return None
    channels, filters = weights.shape
    rows = int(np.prod(shape[:-1]))
    workload = ConvWorkload("rows", dtype, 1, channels, 1, rows, filters)
    filters_first = np.ascontiguousarray(weights.T).reshape(filters, channels, 1, 1)
    return Composite(workload, source, filters_first, np.zeros(filters, dtype), None, binding.var, ())


def _pair(sizes: Any) -> tuple[int, int]:
    first, second = (int(size) for size in sizes)
    return first, second


def _extended(composite: Composite, users: Users, claimed: set[Any]) -> Composite:
    """The composite with all steps that follow it and that no one else reads between."""
    while (longer := _longer(composite, users, claimed)) is not None:
        composite = longer
    return composite


def _longer(composite: Composite, users: Users, claimed: set[Any]) -> Composite | None:
    """The composite with one more step: a bias, a residual, an activation."""
    readers = users.get(composite.last, ())
    if len(readers) == 1 and readers[0] is not None and readers[0].var not in claimed:
        longer = _step(composite, readers[0])
        if longer is not None:
            return replace(longer, last=readers[0].var, inner=(*composite.inner, composite.last))
    region = find_region(composite.last, users)
    if region is None or claimed & {region.last, *region.inner}:
        return None
    return replace(
        _with(composite, region.text), last=region.last, inner=(*composite.inner, composite.last, *region.inner)
    )


def _step(composite: Composite, binding: Any) -> Composite | None:
    name, value = operator_name(binding.value), binding.value
    if shape_of(binding.var) != shape_of(composite.last) or str(binding.var.ty.dtype) != composite.workload.dtype:
        return None
    if name == "relax.nn.relu":
        return _with(composite, "relu")
    if name == "relax.clip":
        low, high = (number(bound) for bound in value.args[1:])
        return None if low is None or high is None else _with(composite, f"clip {low!r} {high!r}")
    return _sum(composite, *value.args) if name == "relax.add" else None


def _sum(composite: Composite, left: Any, right: Any) -> Composite | None:
    """Bias, or residual."""
    from tvm import relax

    other = right if left.same_as(composite.last) else left
    array = constant(other)
    if array is not None:
        bias = _per_filter(array, composite)
        # A kernel adds its bias before any other step: behind one of them a constant is no bias.
        unchanged = not composite.workload.epilogue
        return replace(composite, bias=np.add(composite.bias, bias)) if bias is not None and unchanged else None
    # A kernel takes one residual.
    same = shape_of(other) == shape_of(composite.last) and "add" not in composite.workload.epilogue
    if not same or not isinstance(other, relax.Var) or other.same_as(composite.last):
        return None
    return replace(_with(composite, "add"), residual=other)


def _per_filter(array: Array, composite: Composite) -> Array | None:
    axis = -1 if composite.workload.layout == "rows" else -3
    full = array.reshape((1,) * (len(shape_of(composite.last)) - array.ndim) + array.shape)
    sizes = [1] * full.ndim
    sizes[axis] = composite.workload.filters
    return full.reshape(-1) if list(full.shape) == sizes else None


def _with(composite: Composite, step: str) -> Composite:
    return replace(composite, workload=replace(composite.workload, epilogue=(*composite.workload.epilogue, step)))
