"""One direction of a recurrent layer over all its time steps: LSTM, GRU or plain RNN, in ONNX's definition.

The products with the input do not depend on the state: they are one matrix product over all steps, computed before.
This kernel has the loop over time, the products with the state, and the gates.

Layout: hidden units in blocks of L, one vector each. The products arrive as (steps, batch, blocks, gates, L), so what
the gates of a block need is together. The recurrent weights are packed for each group of Q blocks as (units, Q, gates,
L): the kernel reads them in order.
Tiling: Q blocks × all gates × P sequences of sums stay in registers over all hidden units. A vector of the state holds
L units; each of its lanes multiplies Q · gates vectors of weights.
Registers: P · Q · gates sums, P vectors of the state, one for weights on their way.
Roofline: with one sequence each weight is used once a step, so a step takes as long as the weights take to arrive.
The state is kept twice, for even and odd steps: all units of a step read that of the step before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.target import Array
from targets.arm_tvm.kernels.emitter import PARALLEL_WORK, Emitter, broadcast, fma, int32, lane, load, store
from targets.arm_tvm.kernels.expressions import evaluate
from targets.arm_tvm.kernels.floating_point.direct import split
from targets.arm_tvm.kernels.floating_point.workload import blocks
from targets.arm_tvm.kernels.machine import Machine

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Gates of each operator; ONNX orders them i, o, f, c and z, r, h."""
SUMS = 8
"""Vectors of sums that hide the latency of a multiply-add (4 cycles, 2 a cycle)."""
MAX_ROWS = 3
"""Sequences of a tile, at most."""
SPARE = 8
"""Vector registers for the state, the weights, and the loop's own use."""
DTYPE = "float32"


@dataclass(frozen=True)
class Recurrent:
    """One direction of a recurrent layer.

    Args:
        kind: `LSTM`, `GRU` or `RNN`.
        steps, batch, hidden: Time steps, sequences, hidden units.
        activations: Of one direction in ONNX's order, as expressions of `x`.
        reverse: Whether time runs backwards.
        clip: The gates are limited to −clip … clip before their activations.
        linear_before_reset: Of a GRU: its reset gate is applied to the products and not to the state.
        peepholes: Whether the gates of an LSTM see its cell.
        lengths: Whether every sequence has a length of its own, given at run time.
    """

    kind: str
    steps: int
    batch: int
    hidden: int
    activations: tuple[str, ...]
    reverse: bool = False
    clip: float = math.inf
    linear_before_reset: bool = False
    peepholes: bool = False
    lengths: bool = False

    @property
    def phases(self) -> tuple[int, ...]:
        """Gates whose products with the state are computed together; the next ones need the results of these."""
        # What the reset gate of a GRU leaves of the state is known only when all units have it.
        return (2, 1) if self.kind == "GRU" and not self.linear_before_reset else (GATES[self.kind],)


@dataclass(frozen=True)
class _Group:
    """Blocks of hidden units whose sums are in registers together.

    Args:
        first, count, blocks: Number of the first block; groups of that kind; blocks of each.
        offset: Where its weights begin.
    """

    first: int
    count: int
    blocks: int
    offset: int


def arrange(array: Array, lanes: int) -> Array:
    """The last axis (gates · hidden) → (blocks, gates, L) in one axis, missing units zeros.

    Args:
        array: (…, gates, hidden).
        lanes: L.
    """
    *rest, gates, hidden = array.shape
    full = np.zeros((*rest, gates, blocks(hidden, lanes) * lanes), array.dtype)
    full[..., :hidden] = array
    tiled = full.reshape(*rest, gates, -1, lanes)
    return np.ascontiguousarray(np.swapaxes(tiled, -2, -3)).reshape(*rest, -1)


def pack(work: Recurrent, weights: Array, machine: Machine) -> Array:
    """Recurrent weights (gates · hidden, hidden) in the order of the kernel's loops."""
    lanes, first, parts = machine.lanes(DTYPE), 0, []
    size = blocks(work.hidden, lanes) * lanes
    by_gate = weights.reshape(-1, work.hidden, work.hidden)
    for gates in work.phases:
        full = np.zeros((gates, size, size), weights.dtype)
        full[:, : work.hidden, : work.hidden] = by_gate[first : first + gates]
        tiled = full.reshape(gates, -1, lanes, size)
        for group in _groups(work, gates, machine):
            own = tiled[:, group.first : group.first + group.count * group.blocks]
            grouped = own.reshape(gates, group.count, group.blocks, lanes, size)
            parts.append(grouped.transpose(1, 4, 2, 0, 3).ravel())
        first += gates
    return np.ascontiguousarray(np.concatenate(parts))


def _groups(work: Recurrent, gates: int, machine: Machine) -> list[_Group]:
    """All blocks; one that is not full is a group of its own, and the last."""
    lanes = machine.lanes(DTYPE)
    whole, size = work.hidden // lanes, blocks(work.hidden, lanes) * lanes
    parts = split(whole, max(1, SUMS // gates))
    if work.hidden % lanes:
        parts.append((whole, 1, 1))
    return [_Group(first, count, q, first * lanes * gates * size) for first, count, q in parts]


def emit_recurrent(work: Recurrent, machine: Machine) -> Any:
    """The kernel: (products, weights[, GRU's bias][, peepholes][, lengths], state[, cell], all states, last[, cell]).

    The bias of the state's products is an argument of its own only where the reset gate is applied to it
    (`linear_before_reset`); elsewhere the products have it.
    """
    return _Kernel(work, machine).function()


class _Kernel:
    """One kernel while it is written."""

    def __init__(self, work: Recurrent, machine: Machine) -> None:
        self.work, self.machine, self.lanes = work, machine, machine.lanes(DTYPE)
        self.emitter, self.vector = Emitter(), f"{DTYPE}x{self.lanes}"
        self.gates = GATES[work.kind]
        self.size = blocks(work.hidden, self.lanes) * self.lanes
        self.states = work.batch * self.size

    def function(self) -> Any:
        self._declare()
        self._begin()
        with self.emitter.loop(self.work.steps) as step:
            self._step(step)
        self._end()
        return self.emitter.function()

    def _declare(self) -> None:
        work, emitter = self.work, self.emitter
        shape = (work.batch, work.hidden)
        self.products = emitter.parameter((work.steps, work.batch, self.gates * self.size), DTYPE, "x")
        self.weights = emitter.parameter((self.gates * self.size**2,), DTYPE, "w")
        self.bias = emitter.parameter((self.size,), DTYPE, "bias") if work.linear_before_reset else None
        self.peepholes = emitter.parameter((3 * self.size,), DTYPE, "p") if work.peepholes else None
        self.lengths = emitter.parameter((work.batch,), "int32", "lengths") if work.lengths else None
        self.first = emitter.parameter(shape, DTYPE, "h0")
        is_lstm = work.kind == "LSTM"
        self.first_cell = emitter.parameter(shape, DTYPE, "c0") if is_lstm else None
        self.result = emitter.parameter((work.steps, *shape), DTYPE, "y")
        self.last = emitter.parameter(shape, DTYPE, "h")
        self.last_cell = emitter.parameter(shape, DTYPE, "c") if is_lstm else None
        self.state = emitter.allocate(2 * self.states, DTYPE, "global")
        if is_lstm:
            self.cell = emitter.allocate(self.states, DTYPE, "global")
        if len(work.phases) > 1:
            self.update = emitter.allocate(self.states, DTYPE, "global")
            self.reset = emitter.allocate(self.states, DTYPE, "global")

    def _begin(self) -> None:
        """The first states; results behind the ends of sequences are zeros."""
        if self.lengths is not None:
            with self.emitter.loop(self.work.steps * self.work.batch * self.work.hidden) as at:
                self.emitter.add(store(self.result, at, broadcast(0.0, 1, DTYPE), 1))
        with self.emitter.loop(self.work.batch) as row:
            self._load_row(self.state, row, self.first)
            if self.first_cell is not None:
                self._load_row(self.cell, row, self.first_cell)

    def _load_row(self, target: Any, row: Any, source: Any) -> None:
        hidden = self.work.hidden
        with self.emitter.loop(hidden) as unit:
            self.emitter.add(store(target, row * self.size + unit, load(source, row * hidden + unit, 1), 1))
        # Units that fill up the last block have weights of zero, but what is in memory there may be no number.
        for unit in range(hidden, self.size):
            self.emitter.add(store(target, row * self.size + unit, broadcast(0.0, 1, DTYPE), 1))

    def _end(self) -> None:
        hidden, emitter = self.work.hidden, self.emitter
        with emitter.loop(self.work.batch) as row:
            steps = int32(self.work.steps) if self.lengths is None else emitter.let(load(self.lengths, row, 1))
            start = emitter.let(self._parity(steps) + row * self.size)
            with emitter.loop(hidden) as unit:
                emitter.add(store(self.last, row * hidden + unit, load(self.state, start + unit, 1), 1))
                if self.last_cell is not None:
                    value = load(self.cell, row * self.size + unit, 1)
                    emitter.add(store(self.last_cell, row * hidden + unit, value, 1))

    def _parity(self, step: Any) -> Any:
        """Where the state before a step lies."""
        from tvm import tirx

        return tirx.bitwise_and(step, int32(1)) * self.states

    def _step(self, step: Any) -> None:
        old = self.emitter.let(self._parity(step))
        new = self.emitter.let(int32(self.states) - old)
        # Sequences of different lengths do not run side by side.
        rows = 1 if self.lengths is not None else self._rows()
        for first, count, size in split(self.work.batch, rows):
            with self.emitter.loop(count) as part:
                row = self.emitter.let(part * size + first)
                with self._running(step, row) as time:
                    _Step(self, (row, size), time, old, new).write()

    def _rows(self) -> int:
        """Sequences of a tile."""
        sums = max(
            gates * max(group.blocks for group in _groups(self.work, gates, self.machine)) for gates in self.work.phases
        )
        return max(1, min(self.work.batch, MAX_ROWS, (self.machine.registers - SPARE) // sums))

    @contextmanager
    def _running(self, step: Any, row: Any) -> Iterator[Any]:
        """What is added inside is done while the sequence lasts; yields the place in time."""
        length = int32(self.work.steps) if self.lengths is None else self.emitter.let(load(self.lengths, row, 1))
        with self.emitter.when(None if self.lengths is None else step < length):
            yield self.emitter.let(length - 1 - step if self.work.reverse else step + 0)


class _Step:
    """One step of some sequences while it is written."""

    def __init__(self, kernel: _Kernel, rows: tuple[Any, int], time: Any, old: Any, new: Any) -> None:
        self.kernel, self.work, self.emitter, self.lanes = kernel, kernel.work, kernel.emitter, kernel.lanes
        first, count = rows
        self.rows = [self.emitter.let(first + index) for index in range(count)]
        width = kernel.gates * kernel.size
        self.inputs = [self.emitter.let((time * self.work.batch + row) * width) for row in self.rows]
        self.results = [self.emitter.let((time * self.work.batch + row) * self.work.hidden) for row in self.rows]
        self.cells = [self.emitter.let(row * kernel.size) for row in self.rows]
        self.old = [self.emitter.let(old + place) for place in self.cells]
        self.new = [self.emitter.let(new + place) for place in self.cells]

    def write(self) -> None:
        if self.work.kind == "LSTM":
            self._phase((0, 1, 2, 3), 0, self._lstm)
        elif self.work.kind == "RNN":
            self._phase((0,), 0, self._rnn)
        elif self.work.linear_before_reset:
            self._phase((0, 1, 2), 0, self._gru)
        else:
            self._phase((0, 1), 0, self._gru_gates)
            self._phase((2,), 2 * self.kernel.size**2, self._gru_state)

    def _phase(self, gates: Sequence[int], start: int, finish: Any) -> None:
        """The products of some gates with the state, and what follows them, block by block."""
        kernel, emitter = self.kernel, self.emitter
        for group in _groups(self.work, len(gates), kernel.machine):
            width = len(gates) * group.blocks * self.lanes
            vectors = group.count * kernel.size * width // self.lanes * len(self.rows)
            with emitter.loop(group.count, parallel=vectors > PARALLEL_WORK) as part:
                first = emitter.let(part * group.blocks + group.first)
                weights = emitter.view(kernel.weights, part * (kernel.size * width) + start + group.offset)
                sums = self._sums(gates, first, group.blocks)
                self._multiply(sums, weights, len(gates) * group.blocks, from_reset=finish == self._gru_state)
                for row in range(len(self.rows)):
                    for index in range(group.blocks):
                        at = (row * group.blocks + index) * len(gates)
                        values = [emitter.let(load(sums, at + gate, 1)) for gate in range(len(gates))]
                        self.is_whole = group.first * self.lanes + self.lanes <= self.work.hidden
                        finish(row, emitter.let((first + index) * self.lanes), values)

    def _sums(self, gates: Sequence[int], first: Any, count: int) -> Any:
        """Sums that begin with what the input gives each gate."""
        sums = self.emitter.allocate(len(self.rows) * count * len(gates), self.kernel.vector)
        place = 0
        for row in range(len(self.rows)):
            for index in range(count):
                for gate in gates:
                    self.emitter.add(
                        store(sums, place, self._given(row, self.emitter.let((first + index) * self.lanes), gate), 1)
                    )
                    place += 1
        return sums

    def _given(self, row: int, unit: Any, gate: int) -> Any:
        """What the products of a gate are added to."""
        if self.kernel.bias is not None and gate == 2:
            # The reset gate takes part of these products away, bias included, and nothing of the input's.
            return load(self.kernel.bias, unit, self.lanes)
        return self._input(row, unit, gate)

    def _input(self, row: int, unit: Any, gate: int) -> Any:
        at = self.inputs[row] + unit * self.kernel.gates + gate * self.lanes
        return load(self.kernel.products, at, self.lanes)

    def _multiply(self, sums: Any, weights: Any, width: int, *, from_reset: bool) -> None:
        """Adds the products of all hidden units."""
        kernel, emitter, lanes = self.kernel, self.emitter, self.lanes
        source, places = (kernel.reset, self.cells) if from_reset else (kernel.state, self.old)
        by_element = kernel.machine.by_element
        count = lanes if by_element else 1
        with emitter.loop(kernel.size // count) as block:
            unit = emitter.let(block * count)
            vectors = [emitter.let(load(source, place + unit, count)) for place in places]
            base = emitter.let(unit * (width * lanes))
            for step in range(count):
                scalars = [lane(vector, step) if by_element else vector for vector in vectors]
                operands = [emitter.let(broadcast(scalar, lanes)) for scalar in scalars]
                for place in range(width):
                    factor = emitter.let(load(weights, base + (step * width + place) * lanes, lanes))
                    for row, operand in enumerate(operands):
                        at = row * width + place
                        total = fma(factor, operand, load(sums, at, 1), kernel.vector)
                        emitter.add(store(sums, at, total, 1))

    def _lstm(self, row: int, unit: Any, gates: list[Any]) -> None:
        kernel, emitter = self.kernel, self.emitter
        gate, cell_input, cell_output = self.work.activations
        at = self.cells[row] + unit
        cell = emitter.let(load(kernel.cell, at, self.lanes))
        enter = self._activate(gate, self._peep(gates[0], cell, 0, unit))
        forget = self._activate(gate, self._peep(gates[2], cell, 2, unit))
        new = self._settled(forget * cell + enter * self._activate(cell_input, gates[3]))
        leave = self._activate(gate, self._peep(gates[1], new, 1, unit))
        emitter.add(store(kernel.cell, at, new, self.lanes))
        self._store(row, unit, leave * self._activate(cell_output, new))

    def _peep(self, value: Any, cell: Any, gate: int, unit: Any) -> Any:
        if self.kernel.peepholes is None:
            return value
        factor = load(self.kernel.peepholes, unit + gate * self.kernel.size, self.lanes)
        return self.emitter.let(fma(factor, cell, value, self.kernel.vector))

    def _rnn(self, row: int, unit: Any, gates: list[Any]) -> None:
        self._store(row, unit, self._activate(self.work.activations[0], gates[0]))

    def _gru(self, row: int, unit: Any, gates: list[Any]) -> None:
        gate, candidate = self.work.activations
        update, reset = (self._activate(gate, value) for value in gates[:2])
        value = self.emitter.let(self._input(row, unit, 2) + reset * gates[2])
        self._mix(row, unit, update, self._activate(candidate, value))

    def _gru_gates(self, row: int, unit: Any, gates: list[Any]) -> None:
        update, reset = (self._activate(self.work.activations[0], value) for value in gates)
        state = load(self.kernel.state, self.old[row] + unit, self.lanes)
        self.emitter.add(store(self.kernel.update, self.cells[row] + unit, update, self.lanes))
        self.emitter.add(store(self.kernel.reset, self.cells[row] + unit, reset * state, self.lanes))

    def _gru_state(self, row: int, unit: Any, gates: list[Any]) -> None:
        update = self.emitter.let(load(self.kernel.update, self.cells[row] + unit, self.lanes))
        self._mix(row, unit, update, self._activate(self.work.activations[1], gates[0]))

    def _mix(self, row: int, unit: Any, update: Any, candidate: Any) -> None:
        """(1 − z) · candidate + z · state."""
        state = load(self.kernel.state, self.old[row] + unit, self.lanes)
        self._store(row, unit, fma(update, state - candidate, candidate, self.kernel.vector))

    def _activate(self, text: str, value: Any) -> Any:
        from tvm import tirx

        if math.isfinite(self.work.clip):
            low, high = (broadcast(bound, self.lanes, DTYPE) for bound in (-self.work.clip, self.work.clip))
            value = tirx.min(tirx.max(value, low), high)
        return self._settled(evaluate(text, value, emitter=self.emitter, lanes=self.lanes, dtype=DTYPE))

    def _settled(self, value: Any) -> Any:
        """The value through a buffer, which LLVM keeps in a register.

        TVM puts the definitions of variables in their places while it simplifies: one activation of another's result
        would take it minutes.
        """
        buffer = self.emitter.allocate(1, self.kernel.vector)
        self.emitter.add(store(buffer, 0, value, 1))
        return self.emitter.let(load(buffer, 0, 1))

    def _store(self, row: int, unit: Any, value: Any) -> None:
        """The new state, and the result, of which only existing units are written."""
        vector, emitter = self.emitter.let(value), self.emitter
        emitter.add(store(self.kernel.state, self.new[row] + unit, vector, self.lanes))
        at = self.results[row] + unit
        if self.is_whole:
            emitter.add(store(self.kernel.result, at, vector, self.lanes))
            return
        for index in range(self.work.hidden % self.lanes):
            emitter.add(store(self.kernel.result, at + index, lane(vector, index), 1))
