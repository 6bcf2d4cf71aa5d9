"""Softmax and normalisation over the last axis of a tensor in the model's own layout: (rows, size), any size.

softmax      greatest element; e^(x − greatest) written out and summed; times 1 / sum
layer norm   mean; mean of (x − mean)²; (x − mean) / √(variance + ε) · scale + shift
instance     the same, a row being a channel of an image, which has one scale and one shift
rms norm     mean of x²; x / √(mean + ε) · scale

Tiling: one row after the other, rows spread over the threads; a vector of L elements at a time, four of them in a
loop's body with sums of their own. What is left of a row is done element by element.
Registers: four sums, four vectors on their way, and the constants of e^x: no spills.
Roofline: three passes over a row that stays in the first-level cache; softmax is bound by the 14 instructions of e^x
per vector, the norms by their loads. All sums are float32. A row of nothing but −∞ gives equal shares, not NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from targets.arm_tvm.kernels.emitter import (
    PARALLEL_WORK,
    Emitter,
    broadcast,
    fma,
    int32,
    lane,
    load,
    store,
    vector_type,
)
from targets.arm_tvm.kernels.functions import exp
from targets.arm_tvm.kernels.machine import Machine

UNROLLED = 4
"""Vectors in a loop's body."""
LOWEST = -3.0e38
"""Where the search for the greatest element begins: from −∞, a row of nothing but −∞ would give NaN."""
PASSES = 8
"""Operations per vector, about: what the threads are worth starting for."""

_Body = Callable[[Any, int, int], None]
"""Takes an offset into the row, which of the unrolled vectors it is, and how many elements it has."""


@dataclass(frozen=True)
class Rows:
    """A tensor seen as rows of its last axis.

    Args:
        count: How many.
        size: Elements of one.
        dtype: Of source and result.
    """

    count: int
    size: int
    dtype: str


def emit_softmax(rows: Rows, machine: Machine) -> Any:
    """The kernel: (source, result)."""
    from tvm import tirx

    row = _Row(rows, machine)
    with row.rows_of("x", "y") as (x, y):
        greatest = row.reduced(tirx.max, LOWEST, lambda at, lanes: row.load(x, at, lanes))

        def share(at: Any, lanes: int) -> Any:
            value = exp(row.emitter, row.load(x, at, lanes) - broadcast(greatest, lanes), lanes)
            # The result holds the numerators until their sum is known: no workspace is needed.
            row.store(y, at, value, lanes)
            return value

        total = row.reduced(_add, 0.0, share)
        factor = row.emitter.let(tirx.const(1.0, "float32") / total)
        row.each(lambda at, _, lanes: row.store(y, at, row.load(y, at, lanes) * broadcast(factor, lanes), lanes))
    return row.emitter.function()


def emit_layer_norm(rows: Rows, machine: Machine, *, epsilon: float) -> Any:
    """The kernel: (source, scale, shift, result), scale and shift of one row's size."""
    row = _Row(rows, machine)
    with row.rows_of("x", "y", constants=("scale", "shift")) as (x, scale, shift, y):
        centred, inverse = row.standard(x, epsilon)

        def write(at: Any, _: int, lanes: int) -> None:
            factor = row.load(scale, at, lanes) * broadcast(inverse, lanes)
            value = fma(centred(at, lanes), factor, row.load(shift, at, lanes), vector_type("float32", lanes))
            row.store(y, at, value, lanes)

        row.each(write)
    return row.emitter.function()


def emit_instance_norm(rows: Rows, machine: Machine, *, channels: int, epsilon: float) -> Any:
    """The kernel: (source, scale, shift, result), scale and shift of each channel; rows are the channels in turn."""
    row = _Row(rows, machine)
    with row.rows_of("x", "y", constants=("scale", "shift"), channels=channels) as (x, scale, shift, y):
        centred, inverse = row.standard(x, epsilon)
        factor = row.emitter.let(scale * inverse)

        def write(at: Any, _: int, lanes: int) -> None:
            terms = (centred(at, lanes), broadcast(factor, lanes), broadcast(shift, lanes))
            row.store(y, at, fma(*terms, vector_type("float32", lanes)), lanes)

        row.each(write)
    return row.emitter.function()


def emit_rms_norm(rows: Rows, machine: Machine, *, epsilon: float) -> Any:
    """The kernel: (source, scale, result), scale of one row's size."""
    row = _Row(rows, machine)
    with row.rows_of("x", "y", constants=("scale",)) as (x, scale, y):
        inverse = row.inverse_root(row.reduced(_add, 0.0, lambda at, lanes: _square(row.load(x, at, lanes))), epsilon)

        def write(at: Any, _: int, lanes: int) -> None:
            factor = row.load(scale, at, lanes) * broadcast(inverse, lanes)
            row.store(y, at, row.load(x, at, lanes) * factor, lanes)

        row.each(write)
    return row.emitter.function()


class _Row:
    """One row while the kernel that computes it is written."""

    def __init__(self, rows: Rows, machine: Machine) -> None:
        from tvm import tirx

        self.rows, self.lanes, self.emitter = rows, machine.lanes(rows.dtype), Emitter()
        self.part = tirx.const(1.0 / rows.size, "float32")

    @contextmanager
    def rows_of(
        self, source: str, result: str, *, constants: Sequence[str] = (), channels: int = 0
    ) -> Iterator[tuple[Any, ...]]:
        """Declares the parameters and opens the loop over rows; yields source, constants and result from the row on.

        With `channels`, constants are numbers of a channel, and what is yielded of them is the row's own.
        """
        from tvm import tirx

        rows, emitter = self.rows, self.emitter
        shape = (rows.count, rows.size)
        x = emitter.parameter(shape, rows.dtype, source)
        factors = [emitter.parameter((channels or rows.size,), rows.dtype, name) for name in constants]
        y = emitter.parameter(shape, rows.dtype, result)
        work = rows.count * rows.size // self.lanes * PASSES
        with emitter.loop(rows.count, parallel=work > PARALLEL_WORK) as index:
            start = emitter.let(index * rows.size)
            if channels:
                factors = [self.load(factor, tirx.floormod(index, int32(channels)), 1) for factor in factors]
            yield (emitter.view(x, start), *factors, emitter.view(y, start))

    def load(self, buffer: Any, at: Any, lanes: int) -> Any:
        """Elements as float32."""
        from tvm import tirx

        value = load(buffer, at, lanes)
        wide = value if self.rows.dtype == "float32" else tirx.Cast(vector_type("float32", lanes), value)
        return self.emitter.let(wide)

    def store(self, buffer: Any, at: Any, value: Any, lanes: int) -> None:
        """Elements of float32, in the tensor's type."""
        from tvm import tirx

        narrow = value if self.rows.dtype == "float32" else tirx.Cast(vector_type(self.rows.dtype, lanes), value)
        self.emitter.add(store(buffer, at, narrow, lanes))

    def each(self, body: _Body) -> None:
        """A pass over a row: vectors, then what is left one by one."""
        step = UNROLLED * self.lanes
        whole, rest = divmod(self.rows.size, step)
        if whole:
            with self.emitter.loop(whole) as index:
                for part in range(UNROLLED):
                    body(index * step + part * self.lanes, part, self.lanes)
        for part in range(rest // self.lanes):
            body(int32(whole * step + part * self.lanes), part, self.lanes)
        for at in range(self.rows.size - rest % self.lanes, self.rows.size):
            body(int32(at), 0, 1)

    def reduced(self, combine: Callable[[Any, Any], Any], first: float, value: Callable[[Any, int], Any]) -> Any:
        """A row as one number: `combine` of what `value` gives for the elements at an offset."""
        from tvm import tirx

        emitter, lanes = self.emitter, self.lanes
        sums = emitter.allocate(UNROLLED, vector_type("float32", lanes))
        # What is left behind the last whole vector is summed by itself.
        alone = [tirx.const(first, "float32")]
        for part in range(UNROLLED):
            emitter.add(store(sums, part, broadcast(first, lanes), 1))

        def take(at: Any, part: int, count: int) -> None:
            element = value(at, count)
            if count == 1:
                alone.append(emitter.let(combine(alone[-1], element)))
            else:
                emitter.add(store(sums, part, combine(load(sums, part, 1), element), 1))

        self.each(take)
        total = emitter.let(load(sums, 0, 1))
        for part in range(1, UNROLLED):
            total = emitter.let(combine(total, load(sums, part, 1)))
        result = alone[-1]
        for index in range(lanes):
            result = emitter.let(combine(result, lane(total, index)))
        return result

    def standard(self, x: Any, epsilon: float) -> tuple[Callable[[Any, int], Any], Any]:
        """What gives elements of a row less their mean; and 1 / √(variance + ε)."""
        mean = self.emitter.let(self.reduced(_add, 0.0, lambda at, lanes: self.load(x, at, lanes)) * self.part)

        def centred(at: Any, lanes: int) -> Any:
            return self.emitter.let(self.load(x, at, lanes) - broadcast(mean, lanes))

        squares = self.reduced(_add, 0.0, lambda at, lanes: _square(centred(at, lanes)))
        return centred, self.inverse_root(squares, epsilon)

    def inverse_root(self, total: Any, epsilon: float) -> Any:
        """1 / √(mean + ε) of a sum over the row."""
        from tvm import tirx

        mean = total * self.part + tirx.const(epsilon, "float32")
        return self.emitter.let(tirx.const(1.0, "float32") / tirx.sqrt(mean))


def _add(left: Any, right: Any) -> Any:
    return left + right


def _square(value: Any) -> Any:
    return value * value
