"""The reference: ONNX Runtime with its optimizations off, on a model in memory; and with them, where speed counts."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from compiler.model.graph import skeleton
from compiler.model.numerics import Array, Arrays
from compiler.model.onnx_runtime import OnnxRuntimeSession, onnx_runtime_errors, open_session
from compiler.model.save import save_model
from compiler.store.scratch import scratch_folder

TURNED_BYTES = 512 << 20
"""Weights that a Transpose turns are turned when a session is opened, up to so many bytes; others in each run."""

LARGE_BYTES = 1 << 30
"""Of weights and inputs: beyond that nothing is kept from one run for the next, which is as much again."""

_M_MMAP_THRESHOLD = -3
"""Of malloc.h."""


class Unoptimized:
    """A session on a model; the weights are shared, not copied, and nothing is written to disk.

    One run computes on the thread that calls it, so results do not depend on the machine, and several threads may call
    at once. Where a Transpose turns a weight, as of a table that the head shares, its result is made once.

    Args:
        model: Must stay as it is while the session is in use.

    Raises:
        UnsupportedModel: ONNX Runtime refuses the model.
        ToolchainFailed: The machine's memory does not hold it.
    """

    def __init__(self, model: ir.Model) -> None:
        bare = skeleton(model)
        turned = _turn_weights(model, bare)
        self._is_large = _bytes_of(model) > LARGE_BYTES
        if self._is_large:
            _keep_little()
        self._session = open_session(bare.SerializeToString(), is_optimized=False, keeps=not self._is_large)
        self._weights = _removed_weights(model, self._session) | turned
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs by name.

        Raises:
            UnsupportedModel: ONNX Runtime does not run the model on these inputs.
            ToolchainFailed: The machine's memory does not hold what it computes.
        """
        feeds = {name: _lend(array) for name, array in inputs.items()} | self._weights
        with onnx_runtime_errors("does not run the model"):
            values = self._session.run_with_ort_values(self._names, feeds)
        if self._is_large:
            _give_back_memory()
        pairs = zip(self._names, values, strict=True)
        # an output that is an input lies in memory that is valid for this run only
        return {name: np.array(inputs[name]) if name in inputs else _take(value) for name, value in pairs}


_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
_HALF = 4
"""Bits of what is stored two to a byte."""

_ROUNDING = ("Quantize", "Integer", "QLinear", "NBits")
"""In the names of operators that round to few bits."""


def may_optimize(model: ir.Model) -> bool:
    """Whether a model computes in float32, float16 or float64 alone, so that optimizing it changes last places only."""
    nodes = list(model.graph.all_nodes())
    types = {value.dtype for node in nodes for value in node.outputs if value.dtype is not None}
    narrow = {kind for kind in types if kind.is_floating_point() and kind not in _FLOATS}
    return not narrow and not any(part in node.op_type for node in nodes for part in _ROUNDING)


class Optimized:
    """A session with all graph optimizations, in which each run computes on the thread that calls it.

    Its results are the reference's but for the order of sums, and depend on the machine's instructions. Models of
    floats alone: of a quantized one, optimizing changes what it rounds.

    Args:
        model: Copied, through a scratch file.

    Raises:
        UnsupportedModel: ONNX Runtime refuses the model.
        ToolchainFailed: The machine's memory does not hold it.
    """

    def __init__(self, model: ir.Model) -> None:
        with scratch_folder() as folder:
            save_model(model, folder / "model.onnx")
            self._session = OnnxRuntimeSession(folder / "model.onnx", is_optimized=True)

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs by name.

        Raises:
            DataError: The inputs do not fit the model.
            ToolchainFailed: The machine's memory does not hold what it computes.
        """
        return self._session.run(inputs)


def _keep_little() -> None:
    """Has arrays of a megabyte and more given back as soon as they are freed, from now on (glibc).

    Otherwise the C library learns from each that is freed to keep those of its size, up to 32 MiB.
    """
    _tell_allocator("mallopt", _M_MMAP_THRESHOLD, 1 << 20)


def _give_back_memory() -> None:
    """Gives freed memory back to the system, where the C library holds on to it (glibc)."""
    _tell_allocator("malloc_trim", 0)


def _tell_allocator(function: str, *arguments: int) -> None:
    """Calls a function of the C library, where it has it."""
    library = ctypes.CDLL(None)
    if hasattr(library, function):
        getattr(library, function)(*arguments)


def _bytes_of(model: ir.Model) -> int:
    """Of weights and of inputs whose shapes are fixed, which may be weights too."""
    return sum(map(_fixed_bytes, [*model.graph.initializers.values(), *model.graph.inputs]))


def _fixed_bytes(value: ir.Value) -> int:
    shape, dtype = value.shape, value.dtype
    if shape is None or not shape.is_static() or dtype is None or dtype == ir.DataType.STRING:
        return 0
    return math.prod(shape.numpy()) * dtype.bitwidth // 8


def _removed_weights(model: ir.Model, session: Any) -> dict[str, Any]:
    wanted = {value.name for value in session.get_inputs()}
    return {
        name: _lend_weight(value.const_value)
        for name, value in model.graph.initializers.items()
        if name in wanted and value.const_value is not None
    }


def _turn_weights(model: ir.Model, bare: onnx.ModelProto) -> dict[str, Any]:
    """Takes the nodes out of a skeleton that turn a weight it lacks; name of the result, an input now → its value."""
    graph, turned, left = bare.graph, dict[str, Any](), TURNED_BYTES
    given, results = {value.name for value in graph.input}, {value.name for value in graph.output}
    for place in range(len(graph.node) - 1, -1, -1):
        node = graph.node[place]
        if node.op_type != "Transpose" or node.domain or node.input[0] not in given or node.output[0] in results:
            continue
        weight, result = model.graph.initializers.get(node.input[0]), node.output[0]
        tensor = weight.const_value if weight is not None else None
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes > left:
            continue
        left -= tensor.nbytes
        order = next((list(attribute.ints) for attribute in node.attribute), None)
        array = np.transpose(tensor.numpy(), order)
        turned[result] = _lend(array)
        graph.input.append(onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, array.shape))
        del graph.node[place]
    return turned


def _lend_weight(tensor: ir.TensorProtocol) -> Any:
    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype.bitwidth != _HALF:
        return _lend(tensor.numpy())
    import onnxruntime as ort

    size = tensor.size
    mapped = np.memmap(tensor.path, np.uint8, "r", offset=tensor.offset or 0)[:size]
    # of so many bytes the runtime reads the first half: where the file has them it does not matter what they are
    halves = mapped if len(mapped) == size else np.append(mapped, np.zeros(size - len(mapped), np.uint8))
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(halves.reshape(tensor.shape.numpy()), int(tensor.dtype))


def _lend(array: Array) -> Any:
    whole = np.ascontiguousarray(array).reshape(array.shape)
    with onnx_runtime_errors("does not run the model"):
        return _ort_value(whole)


def _ort_value(whole: Array) -> Any:
    import onnxruntime as ort

    if whole.dtype.kind == "V" or whole.dtype.name.startswith(("bfloat16", "float8")):
        kind = ir.DataType.from_numpy(whole.dtype)
        if kind.bitwidth == 4:
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(_packed(whole), int(kind))
        bits = whole.view(np.uint16 if kind.itemsize == 2 else np.uint8)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, int(kind))
    return ort.OrtValue.ortvalue_from_numpy(whole)


def _packed(array: Array) -> Array:
    """Elements of 4 bits, two to a byte as ONNX Runtime reads them, in a buffer that has the array's shape."""
    halves = array.reshape(-1).view(np.uint8) & 0xF
    halves = np.append(halves, np.zeros(halves.size % 2, np.uint8))
    buffer = np.zeros(array.shape, np.uint8)
    buffer.reshape(-1)[: halves.size // 2] = halves[0::2] | (halves[1::2] << 4)
    return buffer


def _take(value: Any) -> Array:
    if value.data_type() == "tensor(bfloat16)":
        import ml_dtypes

        narrow: Array = _array(value).view(ml_dtypes.bfloat16).astype(np.float32)
        return narrow
    return _array(value)


def _array(value: Any) -> Array:
    with onnx_runtime_errors("does not run the model"):
        array: Array = np.asarray(value.numpy())
    return array
