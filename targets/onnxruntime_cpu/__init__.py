"""ONNX Runtime on a CPU, optimized: the model (`model.onnx`) and the settings the device opens it with.

The model holds no machine code: ONNX Runtime optimizes the graph and chooses kernels for the processor at hand when the
session is made. So the same folder is for x86-64 and for 64-bit ARM; the device needs ONNX Runtime's own package. It
computes what no other target of ours does: operators of `com.microsoft`, models that others have quantized.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from compiler.target import (
    API_VERSION,
    Artifact,
    Capability,
    HardwareProfile,
    Runner,
    TargetPlan,
    TargetUnavailable,
    host_isa,
    installed_version,
)
from targets.onnxruntime_cpu.rules import IN_INTEGERS, VNNI, capability_of, multiplies_8_bits

if TYPE_CHECKING:
    import onnx_ir as ir

    from compiler.target import Pass

_MODEL, _CONFIG = "payload/model.onnx", "payload/config.json"
_EXTERNAL_ABOVE_BYTES = 1 << 30
"""Of weights: with less the device gets one file; protobuf ends at twice as much."""


@dataclass(frozen=True)
class Options:
    """How ONNX Runtime shall run the model on the device."""

    threads: Annotated[int | None, Field(ge=1, description="Threads of one operator; the plan's when absent.")] = None


class OnnxRuntime:
    """Delivers the border model with the settings of its session."""

    name = "onnxruntime"
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
        """Operators of ONNX and of `com.microsoft` that the CPU provider has; int8 by the profile's ISA."""
        return capability_of(profile)

    def passes(self, profile: HardwareProfile) -> Sequence[Pass]:
        """None: ONNX Runtime optimizes the graph when it opens the model."""
        return ()

    def build(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile, *, workdir: Path) -> Artifact:
        """Writes model and settings, and opens them once to read back what the model takes and gives.

        Raises:
            UnsupportedModel: ONNX Runtime refuses the model.
        """
        from compiler.target import OnnxRuntimeSession, remove_unread, save_model
        from targets.onnxruntime_cpu.attention import fuse_attention
        from targets.onnxruntime_cpu.blocks import pack_weights
        from targets.onnxruntime_cpu.in_place import CACHE, find_cache
        from targets.onnxruntime_cpu.last_logits import select_logits
        from targets.onnxruntime_cpu.normalization import fuse_normalizations
        from targets.onnxruntime_cpu.session import threads_of

        config = _config(plan)
        path = workdir / _MODEL
        path.parent.mkdir(parents=True, exist_ok=True)
        fused = model.clone()
        fuse_attention(fused)
        fuse_normalizations(fused)
        remove_unread(fused)
        packed = pack_weights(fused)
        cache = find_cache(packed, plan.dims)
        if cache is not None:
            select_logits(packed)
        # a language model's weights are mapped from a file of their own: inside the message they are in memory twice
        above = _EXTERNAL_ABOVE_BYTES if packed is fused else 0
        files = save_model(packed, path, external_above_bytes=above)
        (workdir / _CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        threads, operators = threads_of(config)
        session = OnnxRuntimeSession(path, is_optimized=True, threads=threads, operators=operators, packs=False)
        return Artifact(
            root=workdir,
            target=self.name,
            precision=plan.precision,
            inputs=session.inputs,
            outputs=session.outputs,
            files=(*(file.relative_to(workdir).as_posix() for file in files), _CONFIG),
            tools=self.toolchain(),
            facts={
                "config": config,
                "isa": list(profile.cpu.isa if profile.cpu else ()),
                **({CACHE: {"pairs": dict(cache.pairs), "positions": cache.positions}} if cache is not None else {}),
            },
        )

    def load(self, artifact: Artifact) -> Runner:
        """Opens the model on this machine with the artifact's settings.

        Raises:
            TargetUnavailable: This processor saturates where the device does not.
        """
        from targets.onnxruntime_cpu.in_place import CACHE, CacheInPlace, DecoderRunner
        from targets.onnxruntime_cpu.session import SessionRunner

        if artifact.precision in IN_INTEGERS and not multiplies_8_bits(host_isa()):
            raise TargetUnavailable(
                f"this machine's processor has neither {' nor '.join(VNNI)}: its sums of 8-bit products saturate, the "
                "device's do not",
                remedy="Verify this artifact on a machine that has one of them.",
            )
        model, config, note = artifact.root / _MODEL, artifact.root / _CONFIG, _note(artifact)
        cache: Any = artifact.facts.get(CACHE)
        return (
            DecoderRunner(model, config, note, CacheInPlace(**cache)) if cache else SessionRunner(model, config, note)
        )


def _config(plan: TargetPlan) -> dict[str, int]:
    """What the device sets in its `SessionOptions`, by their names; graph optimizations are all on, as by default."""
    options: Options = plan.options
    return {"inter_op_num_threads": 1, "intra_op_num_threads": options.threads or plan.threads}


def _note(artifact: Artifact) -> str:
    isa = artifact.facts.get("isa")
    flags = {str(flag) for flag in isa} if isinstance(isa, list) else set()
    is_arm = bool(flags & {"asimd", "neon"})
    if is_arm and platform.machine() not in ("aarch64", "arm64"):
        return f"ran by ONNX Runtime's kernels for {platform.machine()}: the device has others, and another speed"
    return "ONNX Runtime chooses kernels by the processor it runs on: the speed is this machine's" if flags else ""


TARGET = OnnxRuntime()
