"""The reference: ONNX Runtime with its optimizations off, on a model in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.errors import ToolchainFailed, UnsupportedModel
from compiler.model.graph import skeleton
from compiler.model.numerics import Array, Arrays


class Unoptimized:
    """A session on a model; the weights are shared, not copied, and nothing is written to disk.

    One run computes on the thread that calls it, so results do not depend on the machine, and several threads may call
    at once.

    Args:
        model: Must stay as it is while the session is in use.

    Raises:
        UnsupportedModel: ONNX Runtime refuses the model.
        ToolchainFailed: The machine's memory does not hold it.
    """

    def __init__(self, model: ir.Model) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        bare = skeleton(model).SerializeToString()
        with _onnx_runtime_errors():
            self._session = ort.InferenceSession(bare, options, providers=["CPUExecutionProvider"])
        self._weights = _removed_weights(model, self._session)
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs by name.

        Raises:
            UnsupportedModel: ONNX Runtime does not run the model on these inputs.
            ToolchainFailed: The machine's memory does not hold what it computes.
        """
        feeds = {name: _lend(array) for name, array in inputs.items()} | self._weights
        with _onnx_runtime_errors():
            values = self._session.run_with_ort_values(self._names, feeds)
        pairs = zip(self._names, values, strict=True)
        # an output that is an input lies in memory that is valid for this run only
        return {name: np.array(inputs[name]) if name in inputs else _take(value) for name, value in pairs}


# ORT has one status for "no memory" and for a dozen others; its text alone tells them apart
_NO_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation")


@contextmanager
def _onnx_runtime_errors() -> Iterator[None]:
    """Turns what ONNX Runtime raises of a model into the errors of the tree; stands around its own calls only."""
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    refusals = (
        ort.EPFail,
        ort.Fail,
        ort.InvalidArgument,
        ort.InvalidGraph,
        ort.InvalidProtobuf,
        ort.NotFound,
        ort.NotImplemented,
        ort.RuntimeException,
        RuntimeError,  # what its Python binding makes of a C++ exception: an element type it cannot hand over
    )
    try:
        yield
    except (MemoryError, *refusals) as error:
        text = f"{type(error).__name__}: {str(error)[:300]}"
        if isinstance(error, MemoryError) or any(phrase in str(error) for phrase in _NO_MEMORY):
            remedy = "Give the build more memory, or bind smaller sizes (`dims`, `batch`)."
            raise ToolchainFailed(f"ONNX Runtime ran out of memory: {text}", remedy=remedy) from error
        raise UnsupportedModel(f"ONNX Runtime does not run it: {text}") from error


def _removed_weights(model: ir.Model, session: Any) -> dict[str, Any]:
    wanted = {value.name for value in session.get_inputs()}
    return {
        name: _lend(value.const_value.numpy())
        for name, value in model.graph.initializers.items()
        if name in wanted and value.const_value is not None
    }


def _lend(array: Array) -> Any:
    whole = np.ascontiguousarray(array).reshape(array.shape)
    with _onnx_runtime_errors():
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
    with _onnx_runtime_errors():
        array: Array = np.asarray(value.numpy())
    return array
