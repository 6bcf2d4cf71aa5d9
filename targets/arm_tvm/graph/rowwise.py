"""Finds what our kernels compute in the model's own layout: softmax, normalisations, products of two values."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from targets.arm_tvm.graph.reading import operator_name, readers_of, shape_of
from targets.arm_tvm.graph.regions import Users, find_region
from targets.arm_tvm.graph.written_out_norms import find_written_out_norm
from targets.arm_tvm.kernels.floating_point.matmul import Matmul, emit_matmul, vectors_for
from targets.arm_tvm.kernels.floating_point.rows import (
    Rows,
    emit_instance_norm,
    emit_layer_norm,
    emit_rms_norm,
    emit_softmax,
)
from targets.arm_tvm.kernels.machine import Machine

DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class PlainKernel:
    """Bindings that become one kernel on plain tensors.

    Args:
        name: Names the kernel; equal kernels have equal names.
        emit: Writes the kernel.
        operands: What it reads, each with the shape the kernel sees it in.
        shape: Shape of its result, as the kernel sees it.
        last: The variable of its result.
        inner: The variables between; nothing else reads them.
    """

    name: str
    emit: Callable[[], Any]
    operands: tuple[tuple[Any, tuple[int, ...]], ...]
    shape: tuple[int, ...]
    last: Any
    inner: tuple[Any, ...] = ()


def find_plain_kernels(main: Any, machine: Machine, *, claimed: Container[Any]) -> Mapping[Any, PlainKernel]:
    """Such kernels of a function by the variable that each gives.

    Args:
        main: The Relax function.
        machine: What to write kernels for.
        claimed: Variables that belong to other kernels.
    """
    block = main.body.blocks[0]
    users = readers_of(block, main.body.body)
    kernels: dict[Any, PlainKernel] = {}
    for binding in block.bindings:
        rule = _RULES.get(operator_name(binding.value))
        if rule is None or binding.var in claimed or str(binding.var.ty.dtype) not in DTYPES:
            continue
        kernel = rule(binding, machine, users)
        if kernel is not None and not any(var in claimed for var in (*kernel.inner, kernel.last)):
            kernels[kernel.last] = kernel
    return kernels


def _rows(binding: Any) -> Rows | None:
    """The tensor as rows of its last axis; None where its shape is not known or it is empty."""
    shape = shape_of(binding.var)
    if not shape or 0 in shape or shape_of(binding.value.args[0]) != shape:
        return None
    return Rows(prod(shape[:-1]), shape[-1], str(binding.var.ty.dtype))


def _is_last(axes: Any, binding: Any) -> bool:
    return [int(axis) % len(shape_of(binding.var)) for axis in axes] == [len(shape_of(binding.var)) - 1]


def _softmax(binding: Any, machine: Machine, _: Users) -> PlainKernel | None:
    rows = _rows(binding)
    if rows is None or not _is_last([binding.value.attrs.axis], binding):
        return None
    return _row_kernel("softmax", binding, rows, lambda: emit_softmax(rows, machine))


def _layer_norm(binding: Any, machine: Machine, _: Users) -> PlainKernel | None:
    rows, attrs = _rows(binding), binding.value.attrs
    if rows is None or not _is_last(attrs.axes, binding) or not (attrs.center and attrs.scale):
        return None
    epsilon = float(attrs.epsilon)
    return _row_kernel(f"layernorm_{epsilon}", binding, rows, lambda: emit_layer_norm(rows, machine, epsilon=epsilon))


def _written_out_norm(binding: Any, machine: Machine, users: Users) -> PlainKernel | None:
    from tvm import relax

    norm = find_written_out_norm(binding, users)
    if norm is None:
        return None
    *outer, size = shape_of(norm.source)
    rows = Rows(prod(outer), size, str(binding.var.ty.dtype))
    factors = ((relax.const(factor), (size,)) for factor in (norm.scale, norm.shift))
    return PlainKernel(
        f"layernorm_{norm.epsilon}_{rows}",
        lambda: emit_layer_norm(rows, machine, epsilon=norm.epsilon),
        ((norm.source, (rows.count, size)), *factors),
        (rows.count, size),
        norm.last,
        norm.inner,
    )


def _rms_norm(binding: Any, machine: Machine, _: Users) -> PlainKernel | None:
    rows, attrs = _rows(binding), binding.value.attrs
    if rows is None or not _is_last(attrs.axes, binding):
        return None
    epsilon = float(attrs.epsilon)
    return _row_kernel(f"rmsnorm_{epsilon}", binding, rows, lambda: emit_rms_norm(rows, machine, epsilon=epsilon))


def _instance_norm(binding: Any, machine: Machine, _: Users) -> PlainKernel | None:
    (source, *factors), shape, attrs = binding.value.args, shape_of(binding.var), binding.value.attrs
    if len(shape) < 3 or 0 in shape or [int(axis) % len(shape) for axis in attrs.axes] != list(range(2, len(shape))):
        return None
    rows, channels = Rows(prod(shape[:2]), prod(shape[2:]), str(binding.var.ty.dtype)), shape[1]
    if any(shape_of(factor) != (channels,) or str(factor.ty.dtype) != rows.dtype for factor in factors):
        return None
    epsilon, whole = float(attrs.epsilon), (rows.count, rows.size)
    operands = ((source, whole), *((factor, (channels,)) for factor in factors))
    name = f"instancenorm_{epsilon}_{channels}_{rows}"
    return PlainKernel(
        name,
        lambda: emit_instance_norm(rows, machine, channels=channels, epsilon=epsilon),
        operands,
        whole,
        binding.var,
    )


def _row_kernel(name: str, binding: Any, rows: Rows, emit: Callable[[], Any]) -> PlainKernel | None:
    """A kernel whose further operands are of one row's size."""
    source, *factors = binding.value.args
    shape = (rows.count, rows.size)
    if any(shape_of(factor) != (rows.size,) or str(factor.ty.dtype) != rows.dtype for factor in factors):
        return None
    operands = ((source, shape), *((factor, (rows.size,)) for factor in factors))
    return PlainKernel(f"{name}_{rows}", emit, operands, shape, binding.var)


def _matmul(binding: Any, machine: Machine, users: Users) -> PlainKernel | None:
    left, right = binding.value.args
    before, after = shape_of(left), shape_of(right)
    dtype = str(binding.var.ty.dtype)
    if len(before) < 2 or before[:-2] != after[:-2] or 0 in before or 0 in after:
        return None
    if {str(left.ty.dtype), str(right.ty.dtype)} != {dtype}:
        return None
    batch, (rows, depth), columns = prod(before[:-2]), before[-2:], after[-1]
    work = Matmul(batch, rows, depth, columns, dtype)
    narrow = vectors_for(work, machine)
    if narrow is None:
        return None
    last, inner = binding.var, []
    while (region := find_region(last, users)) is not None:
        inner += [last, *region.inner]
        work, last = replace(work, steps=(*work.steps, region.text)), region.last
    return PlainKernel(
        f"matmul_{work}",
        lambda: emit_matmul(work, narrow),
        ((left, (batch, rows, depth)), (right, (batch, depth, columns))),
        (batch, rows, columns),
        last,
        tuple(inner),
    )


_RULES: Mapping[str, Callable[[Any, Machine, Users], PlainKernel | None]] = {
    "relax.nn.softmax": _softmax,
    "relax.mean": _written_out_norm,
    "relax.nn.instance_norm": _instance_norm,
    "relax.nn.layer_norm": _layer_norm,
    "relax.nn.rms_norm": _rms_norm,
    "relax.matmul": _matmul,
}
