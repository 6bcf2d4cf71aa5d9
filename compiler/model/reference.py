"""The reference: ONNX Runtime with its optimizations off, on a model in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.model.graph import skeleton
from compiler.model.numerics import Array, Arrays
from compiler.model.onnx_runtime import onnx_runtime_errors, open_session


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
        self._session = open_session(skeleton(model).SerializeToString(), is_optimized=False)
        self._weights = _removed_weights(model, self._session)
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
        pairs = zip(self._names, values, strict=True)
        # an output that is an input lies in memory that is valid for this run only
        return {name: np.array(inputs[name]) if name in inputs else _take(value) for name, value in pairs}


def _removed_weights(model: ir.Model, session: Any) -> dict[str, Any]:
    wanted = {value.name for value in session.get_inputs()}
    return {
        name: _lend(value.const_value.numpy())
        for name, value in model.graph.initializers.items()
        if name in wanted and value.const_value is not None
    }


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
