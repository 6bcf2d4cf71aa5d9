"""A complete target that needs no toolchain and misbehaves on request, to test what drives targets."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from compiler.artifact import Artifact, Evidence
from compiler.errors import TargetUnavailable, ToolchainFailed, UnsupportedModel
from compiler.fleet.profile import HardwareProfile, validate_options
from compiler.model.numerics import Array, Arrays
from compiler.model.spec import TensorSpec
from compiler.target.capability import Capability, OpRule, PrecisionRule
from compiler.target.runner import Runner
from compiler.target.scheme import OpScheme, QuantScheme, TensorFormat
from compiler.target.target import API_VERSION, TargetPlan

if TYPE_CHECKING:
    import onnx_ir as ir

    from compiler.model.graph import Pass

_MIB = 1 << 20
EAT_MIB_MAX = 16384
"""What `eat-memory` stops at if nobody stops it before, in MiB."""

HANG_S_MAX = 3600
"""What `hang` stops after if nobody stops it before, in seconds."""

_FP32 = PrecisionRule("fp32", "it computes as the model is written", converts_graph=False, tolerance="fp32")
_FP16 = PrecisionRule("fp16", "it takes a converted model", converts_graph=True, tolerance="fp16")
_PRODUCT = OpScheme(
    inputs={0: TensorFormat("int8")}, weights={1: TensorFormat("int8", granularity="channel", narrow=True)}
)
_INT8 = PrecisionRule(
    "int8",
    "it takes a quantized model",
    converts_graph=False,
    tolerance="int8",
    gain=2.0,
    scheme=QuantScheme("fake-int8", {"Conv": _PRODUCT, "MatMul": _PRODUCT}),
)

_Build = Literal["ok", "defer", "fail", "refuse", "raise", "crash", "hang", "eat-memory"]
_Run = Literal["ok", "wrong", "raise", "crash", "hang"]


@dataclass(frozen=True)
class Options:
    """What shall go wrong, as the `target_options` of a profile."""

    toolchain: Annotated[Literal["ok", "missing"], Field(description="What `check` finds.")] = "ok"
    build: Annotated[_Build, Field(description="What `build` does.")] = "ok"
    load: Annotated[Literal["ok", "unavailable"], Field(description="What `load` does.")] = "ok"
    run: Annotated[_Run, Field(description="What the runner does.")] = "ok"
    refuses: Annotated[tuple[str, ...], Field(description="Operators the capability lacks.")] = ()
    seconds: Annotated[float, Field(ge=0, description="How long a build takes at least, in seconds.")] = 0.0
    dynamic_dims: Annotated[bool, Field(description="Whether a dimension may stay a range.")] = True


class FakeTarget:
    """Writes the model, and executes it with ONNX's reference evaluator.

    Args:
        name: What the entry point calls it.
        version: What `toolchain` reports: change it to see what a new toolchain does to a cache.
    """

    api_version = API_VERSION
    Options = Options

    def __init__(self, name: str = "fake", *, version: str = "1.0") -> None:
        self.name, self._version = name, version

    def toolchain(self) -> Mapping[str, str]:
        """One package that does not exist."""
        return {"fake-toolchain": self._version}

    def check(self, profile: HardwareProfile) -> None:
        """Raises TargetUnavailable on request."""
        if validate_options(self.Options, profile).toolchain == "missing":
            raise TargetUnavailable("the fake toolchain is not installed", remedy="Set toolchain: ok.")

    def capability(self, profile: HardwareProfile) -> Capability:
        """Every operator of ONNX but the refused ones."""
        import onnx

        options = validate_options(self.Options, profile)
        names = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
        return Capability(
            ops={name: OpRule() for name in sorted(names - set(options.refuses))},
            precisions=(_FP32, _FP16, _INT8),
            dynamic_dims=options.dynamic_dims,
            opset_max=onnx.defs.onnx_opset_version(),
        )

    def passes(self, profile: HardwareProfile) -> Sequence[Pass]:
        """None."""
        return ()

    def build(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile, *, workdir: Path) -> Artifact:
        """Writes the model, or what else was requested."""
        from compiler.model.save import save_model

        options: Options = plan.options
        time.sleep(options.seconds)
        misbehave(options.build)
        path = workdir / "payload" / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        files = save_model(model, path)
        return Artifact(
            root=workdir,
            target=self.name,
            precision=plan.precision,
            inputs=tuple(map(_spec, model.graph.inputs)),
            outputs=tuple(map(_spec, model.graph.outputs)),
            files=tuple(file.relative_to(workdir).as_posix() for file in files),
            tools=self.toolchain(),
            facts={"load": options.load, "run": options.run},
            deferred="the device has to finish it" if options.build == "defer" else "",
        )

    def load(self, artifact: Artifact) -> Runner:
        """Reads the model back."""
        if artifact.facts.get("load") == "unavailable":
            raise TargetUnavailable("the fake device is not here", remedy="Set load: ok.")
        return _EvaluatorRunner(artifact.root / artifact.files[0], str(artifact.facts.get("run", "ok")))


class _EvaluatorRunner:
    evidence = Evidence.HOST

    def __init__(self, path: Path, behaviour: str) -> None:
        import onnx

        self._model, self._behaviour = onnx.load(path), behaviour

    def run(self, inputs: Arrays) -> dict[str, Array]:
        from compiler.target.testing.case import evaluate

        misbehave(self._behaviour)
        outputs = evaluate(self._model, inputs)
        return {name: _wrong(value) for name, value in outputs.items()} if self._behaviour == "wrong" else outputs

    def close(self) -> None:
        self._behaviour = "ok"


def install_plugin(folder: Path, name: str, source: str, *, attribute: str = "TARGET") -> Path:
    """Lays out an installed package that offers one target; put `folder` on `sys.path` to make it visible.

    Args:
        folder: Becomes what a site-packages folder is.
        name: Of the target; the module is `fleetc_<name>`, the distribution `fleetc-<name>`.
        source: The module's text, for example
            `from compiler.target.testing import FakeTarget\\nTARGET = FakeTarget("x")`.
        attribute: What the entry point refers to.

    Returns:
        The module's file.
    """
    module = folder / f"fleetc_{name}.py"
    module.write_text(source, encoding="utf-8")
    info = folder / f"fleetc_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fleetc-{name}\nVersion: 1.0\n", encoding="utf-8")
    entry = f"[fleetc.targets]\n{name} = fleetc_{name}:{attribute}\n"
    (info / "entry_points.txt").write_text(entry, encoding="utf-8")
    return module


def misbehave(behaviour: str, seconds: float = 0.0) -> None:
    """Does what `build`, `run` and `trial` of the options name; takes `seconds` before it."""
    time.sleep(seconds)
    if behaviour == "fail":
        raise ToolchainFailed("the fake toolchain failed, as it was told to")
    if behaviour == "refuse":
        raise UnsupportedModel("the fake toolchain refuses the model, as it was told to")
    if behaviour == "raise":
        raise RuntimeError("the fake target has a bug, as it was told to")
    if behaviour == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if behaviour == "hang":
        time.sleep(HANG_S_MAX)
    if behaviour == "eat-memory":
        _eat_memory()


def _eat_memory() -> None:
    eaten: list[bytearray] = []
    while len(eaten) * 64 < EAT_MIB_MAX:
        eaten.append(bytearray(os.urandom(_MIB) * 64))
    raise ToolchainFailed(f"nobody stopped the fake toolchain at {EAT_MIB_MAX} MiB")


def _wrong(value: Array) -> Array:
    numbers: Any = value
    return np.asarray(np.logical_not(numbers) if value.dtype == np.bool_ else numbers + 1, dtype=value.dtype)


def _spec(value: ir.Value) -> TensorSpec:
    if value.dtype is None or value.shape is None:
        raise UnsupportedModel(f"'{value.name}' has no type and shape")
    sizes = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return TensorSpec(str(value.name), value.dtype.numpy().name, sizes)
