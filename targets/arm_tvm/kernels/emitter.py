"""Builds the TIR of a kernel, statement by statement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

PARALLEL_WORK = 1 << 15
"""Vector operations, some ten microseconds, below which starting the other threads costs more than they bring."""
PARALLEL_ELEMENTS = 1 << 17
"""The same in elements that are moved or converted, a vector of them at once."""
OPAQUE = 8
"""TVM's pattern kind of a function that is not to be fused with others."""


class Emitter:
    """Collects the statements of one kernel; loops may be nested."""

    def __init__(self) -> None:
        self._open: list[list[Any]] = [[]]
        self._parameters: list[Any] = []
        self._defined: dict[str, str] = {}

    def parameter(self, shape: Sequence[int], dtype: str, name: str) -> Any:
        """The kernel's next argument, a tensor of that shape; what is returned sees it as flat."""
        from tvm import tirx

        tensor = tirx.decl_buffer(tuple(shape), dtype, name)
        if len(shape) == 1:
            self._parameters.append(tensor)
            return tensor
        # Kernels compute their own offsets, so they see every tensor as one row of elements.
        flat = tirx.decl_buffer((prod(shape),), dtype, f"{name}_flat")
        self._parameters.append(tensor)
        self.add(tirx.DeclBuffer(flat, data=tensor.data))
        return flat

    def add(self, statement: Any) -> None:
        """Appends a statement to the innermost loop."""
        self._open[-1].append(statement)

    def let(self, value: Any) -> Any:
        """A variable of that value: it is computed once."""
        from tvm import tirx

        # TVM tells variables apart by identity, so all may have the same name.
        variable = tirx.Var("v", value.ty.dtype)
        self.add(tirx.Bind(variable, value))
        return variable

    def allocate(self, elements: int, dtype: str, scope: str = "local") -> Any:
        """A buffer of the innermost loop; a small one that is indexed by constants becomes registers.

        Args:
            elements: How many.
            dtype: Of one; a vector where every access is to one whole element.
            scope: `local` for elements that are vectors; `global` for scalars, which TVM groups into vectors, and for
                workspaces.
        """
        from tvm import tirx

        buffer = tirx.decl_buffer((elements,), dtype, "buffer", scope=scope)
        self.add(tirx.AllocBuffer(buffer))
        return buffer

    @contextmanager
    def loop(self, extent: Any, *, parallel: bool = False) -> Iterator[Any]:
        """Repeats what is added inside; yields the counter. No loop is written for one iteration, nothing for fewer.

        Args:
            extent: Iterations: a number, or an expression that may be 0.
            parallel: The iterations are spread over the threads.
        """
        from tvm import tirx

        if isinstance(extent, int) and extent <= 1:
            self._open.append([])
            # A constant counter: TVM folds the offsets that are computed from it.
            yield int32(0)
            once = self._open.pop()
            self._open[-1].extend(once if extent == 1 else [])
            return
        counter = tirx.Var("i", "int32")
        self._open.append([])
        yield counter
        body = _sequence(self._open.pop())
        kind = tirx.ForKind.PARALLEL if parallel else tirx.ForKind.SERIAL
        self.add(tirx.For(counter, int32(0), int32(extent) if isinstance(extent, int) else extent, kind, body))

    def view(self, buffer: Any, offset: Any) -> Any:
        """The buffer from an offset on: constant offsets into it are part of the addresses of loads and stores.

        For parameters that are only read or only written: TVM plans the memory of a workspace without its views.
        """
        import tvm
        from tvm import tirx

        element = buffer.dtype
        pointer = tirx.Var("p", tvm.ir.PointerType(tvm.ir.PrimType(str(element))))
        address = tirx.call_intrin(pointer.ty, "tirx.address_of", load(buffer, offset, 1))
        self.add(tirx.Bind(pointer, address))
        view = tirx.decl_buffer(buffer.shape, element, "view")
        self.add(tirx.DeclBuffer(view, data=pointer))
        return view

    @contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        """Executes what is added inside only if the condition holds; None: always."""
        from tvm import tirx

        if condition is None:
            yield
            return
        self._open.append([])
        yield
        self.add(tirx.IfThenElse(condition, _sequence(self._open.pop()), None))

    def call_defined(self, dtype: str, name: str, definition: str, *arguments: Any) -> Any:
        """A value of a function that is defined in LLVM's own language, for types that TVM rewrites.

        Args:
            dtype: Of the value.
            name: Of the function.
            definition: Its text, with what it declares.
            arguments: What it is called with.
        """
        from tvm import tirx

        self._defined[name] = definition
        return tirx.call_extern(dtype, name, *arguments)

    def function(self) -> Any:
        """The PrimFunc of all statements so far; its parameters are in the order of their declaration."""
        from tvm import s_tir, tirx

        # noalias: arguments do not overlap, so LLVM may move loads over stores. fleetc.kernel: `graph.tvm_kernels` is
        # not to change its loops.
        attributes = {"tirx.noalias": True, "op_pattern": OPAQUE, "fleetc.kernel": True, "s_tir": True}
        body = _sequence(self._open.pop())
        for text in self._defined.values():
            body = tirx.AttrStmt(self._parameters[0], "pragma_import_llvm", text, body)
        root = s_tir.SBlock([], [], [], "root", body)  # TVM's passes look for one
        return tirx.PrimFunc(self._parameters, s_tir.SBlockRealize([], True, root)).with_attrs(attributes)


def _sequence(statements: list[Any]) -> Any:
    from tvm import tirx

    return tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]


def int32(value: int) -> Any:
    """An int32 constant."""
    from tvm import tirx

    return tirx.const(value, "int32")


def load(buffer: Any, offset: Any, lanes: int) -> Any:
    """A vector of consecutive elements."""
    from tvm import tirx

    return tirx.BufferLoad(buffer, [_at(offset, lanes)])


def store(buffer: Any, offset: Any, value: Any, lanes: int) -> Any:
    """Statement that writes a vector."""
    from tvm import tirx

    return tirx.BufferStore(buffer, value, [_at(offset, lanes)])


def _at(offset: Any, lanes: int) -> Any:
    from tvm import tirx

    index = int32(offset) if isinstance(offset, int) else offset
    return tirx.Ramp(index, tirx.const(1, index.ty.dtype), lanes) if lanes > 1 else index


def shuffle(vectors: Sequence[Any], lanes: Sequence[int]) -> Any:
    """A vector of lanes of other vectors; lanes are numbered through all of them, as in LLVM's shufflevector."""
    from tvm import tirx

    return tirx.Shuffle(list(vectors), [int32(lane) for lane in lanes])


def cast(dtype: str, value: Any) -> Any:
    """Conversion, lane by lane."""
    from tvm import tirx

    return tirx.Cast(dtype, value)


def exclusive_or(left: Any, right: Any) -> Any:
    """Bits that are set in one of two vectors of integers, lane by lane."""
    from tvm import tirx

    return tirx.bitwise_xor(left, right)


def intrinsic(dtype: str, name: str, *arguments: Any) -> Any:
    """One machine instruction without side effects, by LLVM's name of it."""
    from tvm import tirx

    return tirx.call_llvm_pure_intrin(dtype, name, *arguments)


def effect(emitter: Emitter, name: str, *arguments: Any) -> None:
    """Appends an instruction that gives no value, by LLVM's name of it."""
    from tvm import tirx

    emitter.add(tirx.Evaluate(tirx.call_llvm_intrin("void", name, *arguments)))


def address(buffer: Any, offset: Any) -> Any:
    """Pointer to an element."""
    from tvm import tirx

    return tirx.call_intrin("handle", "tirx.address_of", load(buffer, offset, 1))


def broadcast(value: Any, lanes: int, dtype: str = "float32") -> Any:
    """A vector of one value: a number or a scalar expression; the scalar itself for one lane."""
    from tvm import tirx

    scalar = tirx.const(value, dtype) if isinstance(value, int | float) else value
    return tirx.Broadcast(scalar, lanes) if lanes > 1 else scalar


def vector_type(dtype: str, lanes: int) -> str:
    """TVM's name of a vector type; of the scalar for one lane."""
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def lane(vector: Any, index: int) -> Any:
    """One lane of a vector, as a scalar."""
    return shuffle([vector], [index])


def gather(scalars: Sequence[Any]) -> Any:
    """The vector of these scalars."""
    return shuffle(scalars, range(len(scalars)))


def fma(left: Any, right: Any, addend: Any, dtype: str) -> Any:
    """left · right + addend, rounded once; `dtype` as `float32x4`."""
    return intrinsic(dtype, "llvm.fma", left, right, addend)
