"""The reference: ONNX Runtime with its optimizations off, on a model in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.errors import UnsupportedModel
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
    """

    def __init__(self, model: ir.Model) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            bare = skeleton(model).SerializeToString()
            self._session = ort.InferenceSession(bare, options, providers=["CPUExecutionProvider"])
            self._weights = _removed_weights(model, self._session)
        except Exception as error:
            raise _refusal(error) from error
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs by name.

        Raises:
            UnsupportedModel: ONNX Runtime does not run the model on these inputs.
        """
        try:
            feeds = {name: _lend(array) for name, array in inputs.items()} | self._weights
            values = self._session.run_with_ort_values(self._names, feeds)
            pairs = zip(self._names, values, strict=True)
            # an output that is an input lies in memory that is valid for this run only
            return {name: np.array(inputs[name]) if name in inputs else _take(value) for name, value in pairs}
        except Exception as error:
            raise _refusal(error) from error


def _refusal(error: Exception) -> UnsupportedModel:
    """ORT's message; it raises a dozen unrelated classes, and each means that it does not run this model."""
    return UnsupportedModel(f"ONNX Runtime does not run it: {type(error).__name__}: {str(error)[:300]}")


def _removed_weights(model: ir.Model, session: Any) -> dict[str, Any]:
    wanted = {value.name for value in session.get_inputs()}
    return {
        name: _lend(value.const_value.numpy())
        for name, value in model.graph.initializers.items()
        if name in wanted and value.const_value is not None
    }


def _lend(array: Array) -> Any:
    import onnxruntime as ort

    whole = np.ascontiguousarray(array).reshape(array.shape)
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
    array: Array = np.asarray(value.numpy())
    return array
