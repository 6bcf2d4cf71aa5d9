"""A few verbs to write a kernel's statements one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

PARALLEL_WORK = 1 << 17
"""Vector operations below which starting the other threads costs more than they bring."""
OPAQUE = 8
"""TVM's pattern kind of a function that is not to be fused with others."""


class Emitter:
    """Collects the statements of one kernel, loop in loop."""

    def __init__(self) -> None:
        self._open: list[list[Any]] = [[]]

    def add(self, statement: Any) -> None:
        """Appends a statement to the innermost loop."""
        self._open[-1].append(statement)

    def let(self, value: Any) -> Any:
        """A variable of that value: it is computed once."""
        from tvm import tirx

        variable = tirx.Var("v", value.ty.dtype)
        self.add(tirx.Bind(variable, value))
        return variable

    def allocate(self, elements: int, dtype: str) -> Any:
        """A buffer of the innermost loop; a small one that is indexed by constants becomes registers."""
        from tvm import tirx

        buffer = tirx.decl_buffer((elements,), dtype, "local")
        self.add(tirx.AllocBuffer(buffer))
        return buffer

    @contextmanager
    def loop(self, extent: int, *, parallel: bool = False) -> Iterator[Any]:
        """What is added inside is repeated; yields the counter. One iteration needs no loop."""
        from tvm import tirx

        if extent <= 1:
            self._open.append([])
            yield tirx.const(0, "int32")
            once = self._open.pop()
            self._open[-1].extend(once if extent == 1 else [])
            return
        counter = tirx.Var("i", "int32")
        self._open.append([])
        yield counter
        body = _sequence(self._open.pop())
        kind = tirx.ForKind.PARALLEL if parallel else tirx.ForKind.SERIAL
        self.add(tirx.For(counter, int32(0), int32(extent), kind, body))

    def function(self, parameters: Sequence[Any]) -> Any:
        """The kernel; no pass is to look into it."""
        from tvm import s_tir, tirx

        attributes = {"s_tir": True, "tirx.noalias": True, "op_pattern": OPAQUE, "fleetc.kernel": True}
        root = s_tir.SBlock([], [], [], "root", _sequence(self._open.pop()))  # TVM's passes look for one
        body = s_tir.SBlockRealize([], True, root)
        return tirx.PrimFunc(list(parameters), body).with_attrs(attributes)


def _sequence(statements: list[Any]) -> Any:
    from tvm import tirx

    return tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]


def int32(value: int) -> Any:
    """A constant."""
    from tvm import tirx

    return tirx.const(value, "int32")


def parameter(elements: int, dtype: str, name: str) -> Any:
    """A kernel's argument: a flat array."""
    from tvm import tirx

    return tirx.decl_buffer((elements,), dtype, name)


def load(buffer: Any, offset: Any, lanes: int, *, stride: int = 1) -> Any:
    """A vector of consecutive elements, or of every `stride`-th one."""
    from tvm import tirx

    return tirx.BufferLoad(buffer, [tirx.Ramp(_index(offset), int32(stride), lanes) if lanes > 1 else _index(offset)])


def store(buffer: Any, offset: Any, value: Any, lanes: int, *, stride: int = 1) -> Any:
    """Statement that writes a vector."""
    from tvm import tirx

    index = tirx.Ramp(_index(offset), int32(stride), lanes) if lanes > 1 else _index(offset)
    return tirx.BufferStore(buffer, value, [index])


def _index(offset: Any) -> Any:
    return int32(offset) if isinstance(offset, int) else offset


def broadcast(value: float, dtype: str, lanes: int) -> Any:
    """A constant vector."""
    from tvm import tirx

    return tirx.Broadcast(tirx.const(value, dtype), lanes)


def shuffle(vectors: Sequence[Any], lanes: Sequence[int]) -> Any:
    """A vector of the lanes of others, counted through."""
    from tvm import tirx

    return tirx.Shuffle(list(vectors), [int32(lane) for lane in lanes])


def cast(dtype: str, value: Any) -> Any:
    """Lane by lane conversion."""
    from tvm import tirx

    return tirx.Cast(dtype, value)


def intrinsic(dtype: str, name: str, *arguments: Any) -> Any:
    """One machine instruction without side effects, by LLVM's name of it."""
    from tvm import tirx

    return tirx.call_llvm_pure_intrin(dtype, name, *arguments)
