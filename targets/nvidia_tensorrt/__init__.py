"""NVIDIA GPUs: an engine by TensorRT-RTX, built without the GPU, or by TensorRT, built on the GPU it is for.

TensorRT-RTX compiles for a list of compute capabilities on any x86-64 machine. TensorRT itself compiles only on a GPU
of the very kind: where there is none, the artifact is deferred, and the same `build` completes it on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from compiler.target import (
    API_VERSION,
    Artifact,
    Capability,
    HardwareProfile,
    Runner,
    TargetPlan,
    TargetUnavailable,
    installed_version,
    raise_refusals,
    validate_options,
)
from targets.nvidia_tensorrt.network import MODULES, PACKAGES, BuildSettings, build_engine, input_ranges
from targets.nvidia_tensorrt.refusals import must_be_written_out, refuse_unbuildable
from targets.nvidia_tensorrt.rules import AHEAD_OF_TIME, capability_of
from targets.nvidia_tensorrt.signature import agree, model_signature

if TYPE_CHECKING:
    import onnx_ir as ir

    from compiler.target import Pass

_ENGINE = "payload/model.engine"
_NON_REPRODUCIBLE = (
    "TensorRT does not promise equal bytes: names its compiler makes up and timings on a GPU differ between builds"
)
_REMEDIES = {
    "tensorrt-rtx": "pip install 'fleetc[tensorrt]'",
    "tensorrt": "Install NVIDIA TensorRT with its Python package on the device.",
}


@dataclass(frozen=True)
class Options:
    """Which GPU, and which library builds for it."""

    compute_capability: Annotated[
        str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$", description='Compute capability of the GPU, in quotes: "8.9".')
    ]
    library: Annotated[
        Literal["tensorrt-rtx", "tensorrt"],
        Field(description="tensorrt-rtx builds without the GPU; tensorrt completes the build on the device."),
    ] = "tensorrt-rtx"
    tf32: Annotated[
        bool, Field(description="Whether float32 products may round their factors to TF32 (10-bit mantissas).")
    ] = False

    def __post_init__(self) -> None:
        if self.library == "tensorrt-rtx" and self.compute_capability not in AHEAD_OF_TIME:
            raise ValueError(
                f"TensorRT-RTX does not build for compute capability {self.compute_capability}, only for "
                f"{', '.join(AHEAD_OF_TIME)}; with `library: tensorrt` the build is completed on the device"
            )


class TensorRT:
    """Builds the border model into an engine."""

    name = "tensorrt"
    api_version = API_VERSION
    Options = Options
    alternatives = frozenset(PACKAGES.values())

    def toolchain(self) -> Mapping[str, str]:
        """Versions of both libraries."""
        return {package: installed_version(package) for package in PACKAGES.values()}

    def check(self, profile: HardwareProfile) -> None:
        """Raises TargetUnavailable if TensorRT-RTX is asked for and not installed; TensorRT's part can be deferred."""
        library = validate_options(Options, profile).library
        if library == "tensorrt-rtx" and find_spec(MODULES[library]) is None:
            raise TargetUnavailable("TensorRT-RTX is not installed", remedy=_REMEDIES[library])

    def capability(self, profile: HardwareProfile) -> Capability:
        """What TensorRT's parser reads, and the precisions the compute capability has."""
        options = validate_options(Options, profile)
        return capability_of(options.library, options.compute_capability, tf32=options.tf32)

    def passes(self, profile: HardwareProfile) -> Sequence[Pass]:
        """What the parser does not take, in operators that it takes; TensorRT does its own fusions."""
        from compiler.target import DecomposeOperators
        from targets.nvidia_tensorrt.passes import RewriteForTensorRT

        return (DecomposeOperators(must_be_written_out), RewriteForTensorRT())

    def build(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile, *, workdir: Path) -> Artifact:
        """Builds the engine, or defers it where the library needs a GPU that is not here.

        Raises:
            UnsupportedModel: An output is an input, the builder is known to fail at a node, or the parser refuses some.
            ToolchainFailed: The builder gives no engine, or one that does not take and give what the model does.
            FleetError: A symbolic dimension has no range.
        """
        raise_refusals(model, refuse_unbuildable(model), target=self.name)
        options: Options = plan.options
        settings = BuildSettings(options.library, options.compute_capability, options.tf32, plan.dims)
        lacking = _lacking(options)
        if lacking:
            return _deferred(model, plan, settings, workdir, lacking)
        return _built(model, plan, settings, workdir)

    def unavailable_here(self, artifact: Artifact) -> str:
        """Why no engine can run on this machine, as far as a look at the driver tells; empty where one may."""
        from targets.nvidia_tensorrt.cuda import driver_library

        try:
            driver_library()
        except TargetUnavailable as error:
            return error.what
        return ""

    def load(self, artifact: Artifact) -> Runner:
        """Opens the engine on this machine's GPU.

        Raises:
            TargetUnavailable: The artifact is deferred, or there is no GPU of its compute capability, or no library.
            ToolchainFailed: The engine cannot be opened, or differs from what the artifact says.
        """
        if artifact.deferred:
            raise TargetUnavailable(f"the artifact is not complete: {artifact.deferred}")
        library = str(artifact.facts["library"])
        if find_spec(MODULES[library]) is None:
            raise TargetUnavailable(f"{PACKAGES[library]} is not installed", remedy=_REMEDIES[library])
        from targets.nvidia_tensorrt.cuda import find_device
        from targets.nvidia_tensorrt.runner import EngineRunner

        return EngineRunner(artifact, library, find_device(str(artifact.facts["compute_capability"])))


def _lacking(options: Options) -> str:
    """What keeps this machine from building; empty where it can."""
    if options.library == "tensorrt-rtx":
        return ""
    if find_spec(MODULES[options.library]) is None:
        return "the Python package `tensorrt` is not installed here"
    from targets.nvidia_tensorrt.cuda import find_device

    try:
        find_device(options.compute_capability)
    except TargetUnavailable as error:
        return error.what
    return ""


def _deferred(model: ir.Model, plan: TargetPlan, settings: BuildSettings, workdir: Path, lacking: str) -> Artifact:
    signature = model_signature(model)
    return Artifact(
        root=workdir,
        target=TARGET.name,
        precision=plan.precision,
        inputs=signature.inputs,
        outputs=signature.outputs,
        files=(),
        tools={},
        facts={**_facts(model, settings), "ranges": input_ranges(model, settings.dims), "io_read_from": "border model"},
        deferred=f"TensorRT builds only on a GPU of compute capability {settings.compute_capability}, and {lacking}; "
        "run `fleetc finish` on the device",
    )


def _built(model: ir.Model, plan: TargetPlan, settings: BuildSettings, workdir: Path) -> Artifact:
    path = workdir / _ENGINE
    path.parent.mkdir(parents=True, exist_ok=True)
    built = build_engine(model, settings, path=path)
    artifact = Artifact(
        root=workdir,
        target=TARGET.name,
        precision=plan.precision,
        inputs=built.signature.inputs,
        outputs=built.signature.outputs,
        files=(_ENGINE,),
        tools={PACKAGES[settings.library]: installed_version(PACKAGES[settings.library])},
        facts={
            **_facts(model, settings),
            "ranges": built.ranges,
            "engine_bytes": path.stat().st_size,
            "network_layers": built.network_layers,
            "io_read_from": "network definition",
        },
        non_reproducible={_ENGINE: _NON_REPRODUCIBLE},
    )
    return _read_back(artifact, model, settings)


def _read_back(artifact: Artifact, model: ir.Model, settings: BuildSettings) -> Artifact:
    """The artifact with what the engine itself says it takes and gives, where a GPU is there to open it."""
    from targets.nvidia_tensorrt.cuda import find_device
    from targets.nvidia_tensorrt.runner import read_engine

    try:
        device = find_device(settings.compute_capability)
    except TargetUnavailable:
        return artifact
    engine = read_engine(artifact.root / _ENGINE, settings.library, device)
    signature = agree(model_signature(model), engine, source="engine")
    facts = {**artifact.facts, "io_read_from": "engine"}
    return replace(artifact, inputs=signature.inputs, outputs=signature.outputs, facts=facts)


def _facts(model: ir.Model, settings: BuildSettings) -> dict[str, object]:
    weights = (value.const_value for value in model.graph.initializers.values())
    return {
        "library": settings.library,
        "compute_capability": settings.compute_capability,
        "tf32": settings.tf32,
        "weights_bytes": sum(tensor.nbytes for tensor in weights if tensor is not None),
    }


TARGET = TensorRT()
