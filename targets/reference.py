"""ONNX Runtime with its optimizations off: the oracle every other target is compared with, and the plugin to copy.

A plugin is one object with the members of `compiler.target.Target`. What it can do is data (`capability`), what this
machine lacks is said before anything is built (`check`), and the toolchain is imported where it is used, nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from compiler.target import (
    API_VERSION,
    Array,
    Arrays,
    Artifact,
    Capability,
    DataError,
    Evidence,
    HardwareProfile,
    OpRule,
    Pass,
    PrecisionRule,
    Runner,
    TargetPlan,
    TargetUnavailable,
    TensorSpec,
    UnsupportedModel,
    installed_version,
    save_model,
)

_NO_KERNEL = frozenset({"BitCast", "Bernoulli", "ImageDecoder", "RoiAlign"})
"""Operators of ONNX that ONNX Runtime's CPU provider neither has nor can expand into others (at `_OPSET_MAX`)."""

_RULES = {name: OpRule(attributes={"layout": (0,)}) for name in ("GRU", "LSTM", "RNN")}
_OPSET_MAX = 27
_FP32 = PrecisionRule("fp32", "the oracle computes as the model is written", converts_graph=False, tolerance="fp32")


@dataclass(frozen=True)
class Options:
    """The reference takes no options."""


class Reference:
    """Runs the border model as it stands, one operator after another, on one thread."""

    name = "reference"
    api_version = API_VERSION
    Options = Options

    def toolchain(self) -> Mapping[str, str]:
        """ONNX Runtime's version."""
        return {"onnxruntime": installed_version("onnxruntime")}

    def check(self, profile: HardwareProfile) -> None:
        """Raises TargetUnavailable if ONNX Runtime is not installed."""
        if find_spec("onnxruntime") is None:
            raise TargetUnavailable("ONNX Runtime is not installed", remedy="pip install fleetc")

    def capability(self, profile: HardwareProfile) -> Capability:
        """Every operator of ONNX itself, few left out; no other domain."""
        names = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain and not schema.deprecated}
        ops = {name: _RULES.get(name, OpRule()) for name in sorted(names - _NO_KERNEL)}
        return Capability(ops=ops, precisions=(_FP32,), dynamic_dims=True, opset_max=_OPSET_MAX)

    def passes(self, profile: HardwareProfile) -> Sequence[Pass]:
        """None."""
        return ()

    def build(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile, *, workdir: Path) -> Artifact:
        """Writes the model, and opens it once to read back what it takes and gives."""
        path = workdir / "payload" / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        files = save_model(model, path)
        session = _open(path)
        return Artifact(
            root=workdir,
            target=self.name,
            precision=plan.precision,
            inputs=tuple(_spec(value) for value in session.get_inputs()),
            outputs=tuple(_spec(value) for value in session.get_outputs()),
            files=tuple(file.relative_to(workdir).as_posix() for file in files),
            tools=self.toolchain(),
        )

    def load(self, artifact: Artifact) -> Runner:
        """Opens the model on this machine."""
        return _SessionRunner(_open(artifact.root / artifact.files[0]))


class _SessionRunner:
    evidence = Evidence.HOST

    def __init__(self, session: Any) -> None:
        self._session = session
        self._names = [value.name for value in session.get_outputs()]

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Raises DataError if the inputs do not fit the model."""
        try:
            return dict(zip(self._names, self._session.run(self._names, dict(inputs)), strict=True))
        except _refusals() as error:
            raise DataError(f"ONNX Runtime does not run these inputs: {error}") from error

    def close(self) -> None:
        del self._session


def _open(path: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what is wrong comes as an exception; its copy on stderr would be noise
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _refusals() as error:
        raise UnsupportedModel(f"ONNX Runtime refuses the model: {error}") from error


def _refusals() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.NotImplemented,
        state.RuntimeException,
        ValueError,
    )


def _spec(value: Any) -> TensorSpec:
    if not value.type.startswith("tensor("):
        raise UnsupportedModel(f"'{value.name}' is a {value.type}; targets take and give tensors only")
    kind = {"float": "float32", "double": "float64"}.get(value.type[7:-1], value.type[7:-1])
    return TensorSpec(value.name, kind, tuple("?" if size is None else size for size in value.shape))


TARGET = Reference()
