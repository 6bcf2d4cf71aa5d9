"""TVM for edge CPUs: a folder with the compiled model, its runtime libraries and a program `run` that starts it.

The device needs a 64-bit Linux with glibc 2.28 or newer and libstdc++. The weights in
`payload/weights.bin` are mapped, not copied; `payload/io.txt` says what the model takes and gives; `payload/cores.txt`
how many threads run on how many of the fastest cores; on x86-64 `payload/cpu.txt` which instruction sets are needed;
`./run --help` explains itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

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
    combine,
    installed_version,
    validate_options,
)
from targets.arm_tvm.bundle.runtime_libraries import FFI_VERSION, TVM_VERSION
from targets.arm_tvm.bundle.zig import REMEDY
from targets.arm_tvm.kernels.integer.dot_products import dot_of
from targets.arm_tvm.kernels.integer.specs import Dot
from targets.arm_tvm.kernels.machine import machine_of
from targets.arm_tvm.options import Options

if TYPE_CHECKING:
    import onnx_ir as ir

    from compiler.target import Pass

_REQUIRED = {"apache-tvm": TVM_VERSION, "apache-tvm-ffi": FFI_VERSION}


class Tvm:
    """Compiles ahead of time for an ARM (or x86) CPU, and runs the bundle here directly or under QEMU."""

    name = "tvm"
    api_version = API_VERSION
    holds_to_isa = True
    Options = Options

    def toolchain(self) -> Mapping[str, str]:
        """TVM, its foreign-function library, and zig."""
        return {package: installed_version(package) for package in (*_REQUIRED, "ziglang")}

    def check(self, profile: HardwareProfile) -> None:
        """Raises TargetUnavailable naming every package that is absent or not of the pinned version."""
        problems = [
            TargetUnavailable(f"{package} is {installed}; this fleetc needs {wanted}", remedy=REMEDY)
            for package, wanted in _REQUIRED.items()
            if (installed := installed_version(package)) != wanted
        ]
        if find_spec("ziglang") is None:
            problems.append(TargetUnavailable("ziglang, which links for the device, is absent", remedy=REMEDY))
        if problems:
            raise combine(problems)

    def capability(self, profile: HardwareProfile) -> Capability:
        """What the importer converts and the CPU code generator compiles correctly."""
        from targets.arm_tvm.graph.capability import capability_of

        return capability_of(
            _dot_of(profile),
            half=_computes_half(profile),
            bfloat16=machine_of(validate_options(Options, profile)).bfloat16,
        )

    def passes(self, profile: HardwareProfile) -> Sequence[Pass]:
        """Sizes become constants, and loops their iterations: compiled code has no loops of operators."""
        from targets.arm_tvm.graph.sizes import own_passes

        return own_passes()

    def prepare(self) -> None:
        """Imports TVM, which takes longer than to compile a small model."""
        for module in ("targets.arm_tvm.bundle.folder", "tvm.relax.frontend.onnx"):
            import_module(module)

    def build(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile, *, workdir: Path) -> Artifact:
        """Compiles the model, links it, and writes the bundle."""
        from targets.arm_tvm.bundle.folder import Cores, write_bundle
        from targets.arm_tvm.bundle.processor import needed_flags, refuse_other_processor
        from targets.arm_tvm.graph.decoder import plan_decoder
        from targets.arm_tvm.graph.sizes import bind_single, plan_sizes

        options: Options = plan.options
        needs = needed_flags(options)
        refuse_other_processor(needs, options, profile)
        cores = Cores(plan.threads, max(plan.threads, profile.cpu.cores if profile.cpu else 1))
        decoder = plan_decoder(model, plan.dims)
        sizes = None
        if decoder is None and plan.dims:
            capability = self.capability(profile)
            model = bind_single(model, plan.dims, capability)
            sizes = plan_sizes(model, plan.dims, capability)
        lowered, files = write_bundle(
            model,
            options,
            cores,
            schedule=plan.schedule,
            workdir=workdir,
            cache_dir=plan.cache_dir,
            precision=plan.precision,
            payload_bytes=plan.payload_bytes,
            sizes=sizes,
            decoder=decoder,
        )
        return Artifact(
            root=workdir,
            target=self.name,
            precision=plan.precision,
            inputs=lowered.inputs,
            outputs=lowered.outputs,
            files=files,
            tools=self.toolchain(),
            facts={
                "mtriple": options.mtriple,
                "mcpu": options.mcpu,
                "mattr": list(options.mattr),
                "threads": plan.threads,
                **({"needs": list(needs)} if needs else {}),
                **(
                    {"context": decoder.context, "tokens at a time": list(decoder.sizes.built)}
                    if decoder is not None
                    else {}
                ),
                **({"sizes": {**asdict(sizes), "shapes": lowered.shapes}} if sizes is not None else {}),
            },
            least_payload_bytes=lowered.least_payload_bytes,
        )

    def tunables(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile) -> Sequence[Tunable]:
        """The convolutions and products that our kernels compute, each with the register tiles the payload allows."""
        from targets.arm_tvm.graph.budget import budget_of, within_budget
        from targets.arm_tvm.graph.decoder import plan_decoder
        from targets.arm_tvm.graph.fold_constants import fold_constants
        from targets.arm_tvm.graph.lower import import_relax
        from targets.arm_tvm.graph.sizes import at_best_size, plan_sizes
        from targets.arm_tvm.tune.tunables import list_tunables

        if plan_decoder(model, plan.dims) is not None:
            return ()  # its kernels are those of the predicted choice
        sizes = plan_sizes(model, plan.dims, self.capability(profile) if plan.dims else None)
        model = at_best_size(model, plan.dims)
        tunables = list_tunables(model, plan.options, plan.precision)
        budget = budget_of(plan.options, plan.payload_bytes, sizes=len(sizes.built) if sizes is not None else 1)
        if not tunables or (budget.payload_bytes is None and budget.growth is None):
            return tunables
        folded = fold_constants(import_relax(model, plan.options, precision=plan.precision))
        return within_budget(tunables, folded, machine_of(plan.options), budget)

    def measurer(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile, backend: Backend) -> Measurer:
        """Times kernels on this machine or on a board; raises TargetUnavailable where it is not there."""
        from targets.arm_tvm.graph.sizes import at_best_size
        from targets.arm_tvm.tune.tunables import KernelMeasurer

        return KernelMeasurer(at_best_size(model, plan.dims), plan, profile, backend)

    def load(self, artifact: Artifact) -> Runner:
        """Loads the bundle. Raises TargetUnavailable where neither this machine nor QEMU can run it."""
        from targets.arm_tvm.run.runner import load_bundle

        return load_bundle(artifact)


def _computes_half(profile: HardwareProfile) -> bool:
    isa = profile.cpu.isa if profile.cpu is not None else ()
    return "asimdhp" in isa and "+fullfp16" in validate_options(Options, profile).mattr


def _dot_of(profile: HardwareProfile) -> Dot:
    options = validate_options(Options, profile)
    return dot_of(options.arch, options.mcpu, options.mattr)


TARGET = Tvm()
