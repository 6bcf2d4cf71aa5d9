"""A fleetc target in one file. Acme's NPU is imaginary: ONNX's reference evaluator plays it, so this runs anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.target import (
    API_VERSION,
    Array,
    Arrays,
    Artifact,
    Capability,
    Evidence,
    HardwareProfile,
    OpRule,
    PrecisionRule,
    TargetPlan,
    TensorSpec,
    UnsupportedModel,
    installed_version,
    save_model,
)

OPS = "Add AveragePool BatchNormalization Clip Conv Gemm GlobalAveragePool MatMul MaxPool Mul Relu Reshape Sigmoid"
FP32 = PrecisionRule("fp32", "the only arithmetic of the NPU", converts_graph=False, tolerance="fp32")


@dataclass(frozen=True)
class Options:
    """The `target_options` of a profile."""

    tiles: int = 1


class AcmeNpu:
    """Everything fleetc asks of a target."""

    name = "acme_npu"
    api_version = API_VERSION
    Options = Options

    def toolchain(self) -> Mapping[str, str]:
        """What a new version of changes the build's bytes."""
        return {"acme-npu": installed_version("acme-npu"), "onnx": installed_version("onnx")}

    def check(self, profile: HardwareProfile) -> None:
        """Nothing can be missing; otherwise raise TargetUnavailable with a remedy."""

    def capability(self, profile: HardwareProfile) -> Capability:
        """What the NPU computes, as data."""
        rule = OpRule(dtypes=frozenset({"FLOAT", "INT64"}))
        return Capability(ops=dict.fromkeys(OPS.split(), rule), precisions=(FP32,), dynamic_dims=False, opset_max=21)

    def passes(self, profile: HardwareProfile) -> tuple[()]:
        """No graph passes of its own."""
        return ()

    def build(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile, *, workdir: Path) -> Artifact:
        """Writes what the device loads below workdir/payload."""
        (workdir / "payload").mkdir(parents=True, exist_ok=True)
        files = save_model(model, workdir / "payload" / "program.onnx")
        return Artifact(
            root=workdir,
            target=self.name,
            precision=plan.precision,
            inputs=tuple(map(_spec, model.graph.inputs)),
            outputs=tuple(map(_spec, model.graph.outputs)),
            files=tuple(file.relative_to(workdir).as_posix() for file in files),
            tools=self.toolchain(),
            facts={"tiles": plan.options.tiles},
        )

    def load(self, artifact: Artifact) -> _Runner:
        """Opens the artifact on this machine; otherwise raise TargetUnavailable saying why not."""
        return _Runner(artifact.root / artifact.files[0])


class _Runner:
    evidence = Evidence.HOST

    def __init__(self, path: Path) -> None:
        from onnx.reference import ReferenceEvaluator

        self._program = ReferenceEvaluator(str(path))

    def run(self, inputs: Arrays) -> dict[str, Array]:
        outputs = self._program.run(None, dict(inputs))
        return {name: np.asarray(value) for name, value in zip(self._program.output_names, outputs, strict=True)}

    def close(self) -> None:
        del self._program


def _spec(value: ir.Value) -> TensorSpec:
    if value.dtype is None:
        raise UnsupportedModel(f"the element type of '{value.name}' is not known")
    sizes = tuple(size if isinstance(size, int) else str(size) for size in value.shape or ())
    return TensorSpec(str(value.name), value.dtype.numpy().name, sizes)


TARGET = AcmeNpu()
