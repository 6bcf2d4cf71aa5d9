"""From the border model to a serialized engine: parse, set the ranges, build; both libraries have the same API."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.target import FleetError, Range, Refusal, ToolchainFailed, UnsupportedModel
from targets.nvidia_tensorrt.signature import Signature, agree, model_signature, network_signature

if TYPE_CHECKING:
    import onnx_ir as ir

MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
PACKAGES = {"tensorrt-rtx": "tensorrt-rtx-cu12", "tensorrt": "tensorrt"}

EXTERNAL_ABOVE_BYTES = 1 << 30  # of weights; with less the parser gets one file
_LOG_LINES = 8  # of the log's end in a message: the cause and what it led to
_REASON_CHARS = 300

Ranges = Mapping[str, Mapping[str, list[int]]]
"""Input → `min`, `opt` and `max` → its shape."""


@dataclass(frozen=True)
class BuildSettings:
    """What the builder is told beside the network.

    Args:
        library: `tensorrt-rtx` or `tensorrt`.
        compute_capability: Of the device, such as `8.9`; TensorRT itself takes the one of the GPU it runs on.
        tf32: Whether float32 products may round their factors to TF32.
        dims: Symbolic dimension → its range.
    """

    library: str
    compute_capability: str
    tf32: bool
    dims: Mapping[str, Range]


@dataclass(frozen=True)
class BuiltEngine:
    """What the network definition told while its engine was built.

    Args:
        signature: Inputs and outputs of the network definition, equal to the border model's.
        ranges: The optimization profile; empty for a model without symbolic dimensions.
        network_layers: Layers of the network definition; the builder fuses them.
    """

    signature: Signature
    ranges: Ranges
    network_layers: int


def input_ranges(model: ir.Model, dims: Mapping[str, Range]) -> dict[str, dict[str, list[int]]]:
    """Shapes at the ends and the optimum of the ranges, of each input that has a symbolic dimension.

    Raises:
        FleetError: Some dimension has no range; all of them are named.
    """
    open_inputs = [spec for spec in model_signature(model).inputs if any(isinstance(size, str) for size in spec.shape)]
    missing = sorted({size for spec in open_inputs for size in spec.shape if isinstance(size, str)} - set(dims))
    if missing:
        raise FleetError(
            f"TensorRT needs a range for every open dimension of an input; none was given for {', '.join(missing)}",
            remedy="Give the device `dims: {name: {min: …, opt: …, max: …}}` in the fleet file.",
        )
    return {
        spec.name: {
            end: [size if isinstance(size, int) else getattr(dims[size], end) for size in spec.shape]
            for end in ("min", "opt", "max")
        }
        for spec in open_inputs
    }


def build_engine(model: ir.Model, settings: BuildSettings, *, path: Path) -> BuiltEngine:
    """Builds the border model's engine and writes it.

    Args:
        model: The border model, in the precision its types say.
        settings: Library, compute capability and ranges.
        path: The engine's file; its folder must exist.

    Raises:
        UnsupportedModel: The parser refuses nodes; all refusals are told.
        ToolchainFailed: The builder gives no engine, or the network differs from the model.
        FleetError: A symbolic dimension has no range.
    """
    from compiler.target import save_model

    ranges = input_ranges(model, settings.dims)
    trt = import_module(MODULES[settings.library])
    log = _recorder(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    with tempfile.TemporaryDirectory(
        dir=path.parent
    ) as folder:  # the parser may read weights until the engine is built
        border, *_ = save_model(model, Path(folder) / "border.onnx", external_above_bytes=EXTERNAL_ABOVE_BYTES)
        parser = _parse(trt, network, log, border)
        _refuse_shape_inputs(network)
        signature = agree(model_signature(model), network_signature(network), source="network")
        _let_attention_decompose(trt, network)
        config = _config(trt, builder, settings, ranges)
        engine = builder.build_serialized_network(network, config)
        del parser
    if engine is None:
        raise ToolchainFailed(
            f"TensorRT built no engine for compute capability {settings.compute_capability}; "
            f"the end of its log:\n{log.tail()}",
            remedy="The lines above name the operator. Try another precision, or report it with the border model.",
        )
    path.write_bytes(engine)
    return BuiltEngine(signature, ranges, int(network.num_layers))


def recorder(library: str) -> Any:
    """A logger for that library that keeps what it is told; its `tail()` is the end of the errors and warnings."""
    return _recorder(import_module(MODULES[library]))


def _recorder(trt: Any) -> Any:
    severities = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING)

    class Recorder(trt.ILogger):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in severities:
                self.lines.append(f"{severity.name.lower()}: {text.strip()}")

        def tail(self) -> str:
            return "\n".join(f"  {line}" for line in self.lines[-_LOG_LINES:]) or "  (empty)"

    return Recorder()


def _parse(trt: Any, network: Any, log: Any, path: Path) -> Any:
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(path)):
        return parser
    refusals = [_refusal(parser.get_error(index)) for index in range(parser.num_errors)]
    if not refusals:
        raise ToolchainFailed(f"TensorRT's parser failed and names no node; the end of its log:\n{log.tail()}")
    raise _unsupported(refusals)


def _refusal(error: Any) -> Refusal:
    reason = re.sub(r"\s+", " ", error.desc()).removeprefix("Assertion failed: ")
    text = f"{error.code().name.lower().replace('_', ' ')}: {reason[:_REASON_CHARS]}"
    return Refusal(error.node_name() or "(graph)", error.node_operator() or "Graph", text)


def _refuse_shape_inputs(network: Any) -> None:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    reason = "its values decide shapes; bind it to a constant in the model"
    refusals = [Refusal(tensor.name, "Input", reason) for tensor in tensors if tensor.is_shape_tensor]
    if refusals:
        raise _unsupported(refusals)


def _unsupported(refusals: list[Refusal]) -> UnsupportedModel:
    lines = "\n".join(f"  - {refusal}" for refusal in dict.fromkeys(refusals))
    return UnsupportedModel(
        f"TensorRT's parser refuses:\n{lines}",
        remedy="Choose another target for this device, or replace these operators in the model.",
    )


def _let_attention_decompose(trt: Any, network: Any) -> None:
    """Lets the builder compute attention by its parts where it has no kernel for the whole."""
    attention_type = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    for layer in map(network.get_layer, range(network.num_layers)):
        if attention_type is not None and layer.type == attention_type:
            layer.__class__ = trt.IAttentionInputLayer  # how TensorRT's Python API casts down
            layer.attention.decomposable = True


def _config(trt: Any, builder: Any, settings: BuildSettings, ranges: Ranges) -> Any:
    config = builder.create_builder_config()
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default: float32 would silently lose 13 bits of each factor
    if settings.library == "tensorrt-rtx":
        config.num_compute_capabilities = 1
        name = f"SM{settings.compute_capability.replace('.', '')}"
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), 0):
            raise ToolchainFailed(f"TensorRT-RTX does not take compute capability {settings.compute_capability}")
    if ranges:
        profile = builder.create_optimization_profile()
        for name, shapes in ranges.items():
            profile.set_shape(name, shapes["min"], shapes["opt"], shapes["max"])
        if config.add_optimization_profile(profile) < 0:
            raise ToolchainFailed(f"TensorRT does not take these ranges: {ranges}")
    return config
