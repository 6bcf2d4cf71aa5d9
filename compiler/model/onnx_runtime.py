"""The edge to ONNX Runtime: sessions on files, what they take and give, and its exceptions as errors of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compiler.errors import DataError, ToolchainFailed, UnsupportedModel
from compiler.model.numerics import Array, Arrays
from compiler.model.spec import TensorSpec

# ONNX Runtime has one status for "no memory" and for a dozen others; its text alone tells them apart
_NO_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation")
_NUMPY_NAMES = {"float": "float32", "double": "float64"}

_NO_KERNEL = frozenset({"BitCast", "Bernoulli", "ImageDecoder", "RoiAlign"})
"""Operators of ONNX that the CPU provider neither has nor can expand into others (at opset 27)."""
_MICROSOFT = """
    Attention AttnLSTM BiasGelu CDist ConvTransposeWithDynamicPads CropAndResize DecoderMaskedMultiHeadAttention
    DequantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul EmbedLayerNormalization ExpandDims FastGelu FusedConv
    FusedGemm FusedMatMul GatherBlockQuantized GatherND Gelu GridSample GroupQueryAttention Inverse LinearAttention
    MatMulBnb4 MatMulFpQ4 MatMulInteger16 MatMulIntegerToFloat MatMulNBits MaxpoolWithMask MoE MultiHeadAttention
    NGramRepeatBlock NhwcMaxPool Pad QAttention QEmbedLayerNormalization QGemm QLinearAdd QLinearAveragePool
    QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearSigmoid QLinearSoftmax
    QLinearWhere QMoE QuantizeLinear QuickGelu Range RotaryEmbedding SkipLayerNormalization
    SkipSimplifiedLayerNormalization SparseAttention TransposeMatMul Trilu UnfoldTensor Unique WordConvEmbedding
"""
"""Operators of `com.microsoft` with a CPU kernel, without random ones, text, and whole decoders."""


class OnnxRuntimeSession:
    """A model file, opened on this machine's CPU.

    Args:
        path: The file.
        is_optimized: With all graph optimizations, or with none; without them the results are the same each time.
        threads: Of one operator.
        operators: How many operators may run at once.
        packs: Whether kernels copy weights into a form of theirs, which takes as much memory again; without, what the
            model takes and gives is known, and it is slow to run.

    Raises:
        UnsupportedModel: ONNX Runtime refuses the model, or it takes or gives something that is no tensor.
        ToolchainFailed: The machine's memory does not hold it.
    """

    def __init__(
        self, path: Path, *, is_optimized: bool, threads: int = 1, operators: int = 1, packs: bool = True
    ) -> None:
        self._session = open_session(
            str(path), is_optimized=is_optimized, threads=threads, operators=operators, packs=packs
        )
        self.inputs = tuple(map(_spec, self._session.get_inputs()))
        self.outputs = tuple(map(_spec, self._session.get_outputs()))
        self._names = [spec.name for spec in self.outputs]

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs by name.

        Raises:
            DataError: The inputs do not fit the model.
            ToolchainFailed: The machine's memory does not hold what it computes.
        """
        try:
            with onnx_runtime_errors("does not run these inputs", raises=DataError):
                return dict(zip(self._names, self._session.run(self._names, dict(inputs)), strict=True))
        except ValueError as error:  # of its Python layer: an input that is missing
            raise DataError(f"ONNX Runtime does not run these inputs: {error}") from error

    def close(self) -> None:
        """Frees the session."""
        del self._session


def onnx_runtime_operators() -> frozenset[str]:
    """The operators that the CPU provider computes: `Conv` of ONNX itself, `com.microsoft::FusedConv` of its own."""
    import onnx

    standard = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain and not schema.deprecated}
    return frozenset((standard - _NO_KERNEL) | {f"com.microsoft::{name}" for name in _MICROSOFT.split()})


def open_session(
    model: str | bytes,
    *,
    is_optimized: bool,
    threads: int = 1,
    operators: int = 1,
    packs: bool = True,
    keeps: bool = True,
) -> Any:
    """An `InferenceSession` on a file, or on the bytes of a model.

    Args:
        model: Either.
        is_optimized, threads, operators, packs: As in `OnnxRuntimeSession`.
        keeps: Whether the memory of one run is kept for the next.

    Raises:
        UnsupportedModel: ONNX Runtime refuses the model.
        ToolchainFailed: The machine's memory does not hold it.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if is_optimized else level.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, operators
    options.use_deterministic_compute = not is_optimized
    if not packs:
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = keeps
    options.log_severity_level = 4  # what is wrong comes as an exception; its copy on stderr would be noise
    with onnx_runtime_errors("does not run the model"):
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@contextmanager
def onnx_runtime_errors(
    what: str, *, raises: type[UnsupportedModel] | type[DataError] = UnsupportedModel
) -> Iterator[None]:
    """Turns what ONNX Runtime raises into the errors of the tree; stands around its own calls only.

    Args:
        what: What it does not do, as the message says: "ONNX Runtime …".
        raises: The error; for lack of memory it is ToolchainFailed in any case.
    """
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
        raise raises(f"ONNX Runtime {what}: {text}") from error


def _spec(value: Any) -> TensorSpec:
    if not value.type.startswith("tensor("):
        raise UnsupportedModel(f"'{value.name}' is a {value.type}; targets take and give tensors only")
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    return TensorSpec(
        value.name, _NUMPY_NAMES.get(kind, kind), tuple("?" if size is None else size for size in value.shape)
    )
