"""OpenVINO on a CPU: the IR (`model.xml`, `model.bin`) and the settings the device compiles it with.

The IR holds no machine code: OpenVINO generates it for the processor at hand when the model is loaded. What this
machine has beyond the device is not used (`isa.py`), so that kernels, weight layouts and memory are the device's. An
instruction set the device has and this machine lacks changes speed and nothing else, except where it is the one that
the precision is computed in: then this machine cannot say what the device would answer, and `load` refuses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from compiler.target import (
    API_VERSION,
    Artifact,
    Backend,
    Capability,
    HardwareProfile,
    Measurer,
    Runner,
    TargetPlan,
    TargetUnavailable,
    Tunable,
    host_isa,
    installed_version,
    raise_refusals,
)
from targets.intel_openvino.rules import PRECISION_ISA, capability_of, computes

if TYPE_CHECKING:
    import onnx_ir as ir

    from compiler.target import Decoder, Pass

_THREADS_PER_STREAM = 2
CHOSEN = ("INFERENCE_NUM_THREADS", "NUM_STREAMS")
"""Settings that tuning chooses."""

_HINT = {"bf16": "bf16", "fp16": "f16"} | dict.fromkeys(("fp32", "fp16-weights", "int4-weights", "int8"), "f32")


@dataclass(frozen=True)
class Options:
    """How OpenVINO shall run the model on the device."""

    performance_hint: Annotated[
        Literal["latency", "throughput"], Field(description="Answer one request soonest, or most requests per second.")
    ] = "latency"
    num_streams: Annotated[
        int | None, Field(ge=1, description="Requests computed side by side; chosen from the threads when absent.")
    ] = None
    threads: Annotated[int | None, Field(ge=1, description="Threads in all; the plan's when absent.")] = None


class OpenVino:
    """Converts the border model to OpenVINO's IR."""

    name = "openvino"
    api_version = API_VERSION
    holds_to_isa = True
    Options = Options

    def toolchain(self) -> Mapping[str, str]:
        """OpenVINO's version."""
        return {"openvino": installed_version("openvino")}

    def check(self, profile: HardwareProfile) -> None:
        """Raises TargetUnavailable if OpenVINO is not installed."""
        if find_spec("openvino") is None:
            raise TargetUnavailable("OpenVINO is not installed", remedy="pip install 'fleetc[openvino]'")

    def capability(self, profile: HardwareProfile) -> Capability:
        """What OpenVINO's ONNX frontend reads and its CPU plugin computes; precisions by the profile's ISA."""
        return capability_of(profile)

    def passes(self, profile: HardwareProfile) -> Sequence[Pass]:
        """What OpenVINO takes for something else is written otherwise; it does its own fusions when it loads the IR."""
        from targets.intel_openvino.passes import RewriteForOpenVino

        return (RewriteForOpenVino(),)

    def tunables(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile) -> Sequence[Tunable]:
        """The model as one kernel, whose choices are streams and threads; what the profile's options fix stays."""
        from targets.intel_openvino.tuning import list_tunables

        options: Options = plan.options
        # a decoder answers one request at a time: its cache is in the request
        if options.num_streams is not None or _growing(model, plan) is not None:
            return ()
        config = _config(replace(plan, schedule={}))
        return list_tunables(model, plan, {name: config[name] for name in CHOSEN})

    def measurer(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile, backend: Backend) -> Measurer:
        """Times on this machine, where its processor has the device's instructions; raises TargetUnavailable else."""
        from targets.intel_openvino.tuning import HostMeasurer

        return HostMeasurer(model, plan, profile, backend, _config(plan))

    def build(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile, *, workdir: Path) -> Artifact:
        """Converts the model, with ranges where a dimension is one, and reads the result back.

        Raises:
            UnsupportedModel: 64-bit integers may need more than 32 bits, or OpenVINO does not convert the model.
        """
        from targets.intel_openvino.convert import read_back, write_ir
        from targets.intel_openvino.integers import refuse_wide_integers
        from targets.intel_openvino.isa import OWN, OWN_KERNELS
        from targets.intel_openvino.stateful import CACHE, make_stateful
        from targets.intel_openvino.toolchain import layer_types

        raise_refusals(model, refuse_wide_integers(model, plan.dims), target=self.name)
        payload = workdir / "payload"
        payload.mkdir(parents=True, exist_ok=True)
        config, decoder = _config(plan), _growing(model, plan)
        plain = (workdir if decoder else payload) / "model.xml"
        write_ir(model, plan, plain)
        (payload / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        inputs, outputs = read_back(plain, model)
        facts: dict[str, object] = {}
        if decoder is not None:
            pairs = {pair.past: pair.present for pair in decoder.pairs}
            make_stateful(plain, payload / "model.xml", ids=decoder.ids, pairs=pairs)
            plain.unlink()
            plain.with_suffix(".bin").unlink()
            facts[CACHE] = pairs
        # written down, since to find them takes as long as to load the model, which each measurement does anew
        facts[OWN] = sorted(OWN_KERNELS & layer_types(payload / "model.xml"))
        return Artifact(
            root=workdir,
            target=self.name,
            precision=plan.precision,
            inputs=inputs,
            outputs=outputs,
            files=("payload/model.xml", "payload/model.bin", "payload/config.json"),
            tools=self.toolchain(),
            facts={
                "config": config,
                "isa": list(profile.cpu.isa if profile.cpu else ()),
                "unused_inputs": sorted({str(value.name) for value in model.graph.inputs} - {i.name for i in inputs}),
                **facts,
            },
        )

    def load(self, artifact: Artifact) -> Runner:
        """Compiles the IR for this machine's processor with the artifact's settings.

        Raises:
            TargetUnavailable: This processor cannot compute in the artifact's precision.
            ToolchainFailed: OpenVINO does not compile the IR.
        """
        from targets.intel_openvino.runner import CompiledRunner
        from targets.intel_openvino.stateful import CACHE, StatefulRunner

        host = host_isa()
        if not computes(artifact.precision, host):
            flags = " nor ".join(PRECISION_ISA[artifact.precision])
            raise TargetUnavailable(
                f"this machine's processor has neither {flags}: it cannot compute in "
                f"{artifact.precision} as the device does",
                remedy="Verify this artifact on a machine that has one of them.",
            )
        return StatefulRunner(artifact, host) if CACHE in artifact.facts else CompiledRunner(artifact, host)


def _growing(model: ir.Model, plan: TargetPlan) -> Decoder | None:
    """The model as a decoder whose cache grows; None of any other model."""
    from compiler.target import find_decoder, is_decoder

    if not is_decoder(model):
        return None
    decoder = find_decoder(model)
    sizes = plan.dims.get(decoder.past)
    return None if sizes is None or sizes.is_fixed else decoder


def _config(plan: TargetPlan) -> dict[str, str]:
    """What the device passes to `compile_model`, by OpenVINO's property names."""
    options: Options = plan.options
    threads = options.threads or plan.threads
    parallel = 1 if options.performance_hint == "latency" else max(1, threads // _THREADS_PER_STREAM)
    config = {
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": _HINT[plan.precision],
        "NUM_STREAMS": str(options.num_streams or parallel),
        "PERFORMANCE_HINT": options.performance_hint.upper(),
    }
    for choice in plan.schedule.values():  # the whole model is the only kernel there is
        config |= {name: str(int(choice[name])) for name in CHOSEN if name in choice}
    return config


TARGET = OpenVino()
