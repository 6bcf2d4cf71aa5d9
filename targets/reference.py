"""ONNX Runtime with its optimizations off: the oracle every other target is compared with, and the plugin to copy.

A plugin is one object with the members of `compiler.target.Target`. What it can do is data (`capability`), what this
machine lacks is said before anything is built (`check`). The toolchain and the graph library are imported where they
are used: a process that only runs an artifact does not wait for what builds one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.target import (
    API_VERSION,
    Artifact,
    Capability,
    Evidence,
    HardwareProfile,
    OnnxRuntimeSession,
    OpRule,
    PrecisionRule,
    Runner,
    TargetPlan,
    TargetUnavailable,
    installed_version,
    onnx_runtime_operators,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from compiler.target import Pass

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
        """Every operator that ONNX Runtime computes: of ONNX itself, few left out, and of `com.microsoft`."""
        ops = {name: _RULES.get(name, OpRule()) for name in sorted(onnx_runtime_operators())}
        return Capability(ops=ops, precisions=(_FP32,), dynamic_dims=True, opset_max=_OPSET_MAX)

    def passes(self, profile: HardwareProfile) -> Sequence[Pass]:
        """None."""
        return ()

    def build(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile, *, workdir: Path) -> Artifact:
        """Writes the model, and opens it once to read back what it takes and gives."""
        from compiler.target import save_model

        path = workdir / "payload" / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        files = save_model(model, path)
        session = OnnxRuntimeSession(path, is_optimized=False)
        return Artifact(
            root=workdir,
            target=self.name,
            precision=plan.precision,
            inputs=session.inputs,
            outputs=session.outputs,
            files=tuple(file.relative_to(workdir).as_posix() for file in files),
            tools=self.toolchain(),
        )

    def load(self, artifact: Artifact) -> Runner:
        """Opens the model on this machine."""
        return _Session(artifact.root / artifact.files[0], is_optimized=False)


class _Session(OnnxRuntimeSession):
    evidence = Evidence.HOST


TARGET = Reference()
