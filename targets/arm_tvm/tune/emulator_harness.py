"""The harness that counts: kernels under QEMU, in guest instructions of one thread. Counts are no times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compiler.target import (
    Artifact,
    Evidence,
    HardwareProfile,
    TargetPlan,
    TargetUnavailable,
    TensorSpec,
    profile_device,
    scratch_folder,
)
from targets.arm_tvm.bundle.folder import Cores, pack_bundle
from targets.arm_tvm.graph.kernel_objects import compile_kernels
from targets.arm_tvm.graph.lower import Lowered
from targets.arm_tvm.options import Options
from targets.arm_tvm.run.emulate import REMEDY, emulated_cpu, host_arch, why_not_runnable
from targets.arm_tvm.run.runner import BundleRunner
from targets.arm_tvm.tune.harness import arguments_of, random_arguments, smallest_kernel

ONE_CORE = Cores(1, 1)


class EmulatorHarness:
    """Runs kernels under QEMU in place of the device.

    Each kernel is a bundle of its own, run by the same program that devices run.

    Args:
        plan: How kernels are built.
        profile: What they are built for.

    Raises:
        TargetUnavailable: The profile is of no architecture that is emulated here.
    """

    evidence = Evidence.EMULATOR

    def __init__(self, plan: TargetPlan, profile: HardwareProfile) -> None:
        self._options: Options = plan.options
        _refuse(self._options.arch, profile)
        self._plan, self.device = plan, profile_device(profile)
        self._cpu = emulated_cpu(self._options.mcpu)
        self._call = self._count_call()

    def compile(self, function: Any, folder: Path) -> Path:
        """A bundle of this kernel alone; its arguments are the bundle's weights."""
        *inputs, (shape, dtype) = arguments_of(function)
        objects = compile_kernels(
            {"main": _as_model(function)}, self._options, workdir=folder, cache_dir=self._plan.cache_dir
        )
        lowered = Lowered(objects, tuple(random_arguments(inputs)), (), (TensorSpec("y", dtype, shape),))
        bundle = folder / "bundle"
        pack_bundle(lowered, self._options, ONE_CORE, workdir=bundle, cache_dir=self._plan.cache_dir)
        return bundle

    def values(self, function: Any, built: Path) -> tuple[float, ...]:
        """One count, without the call. A second count would differ only by a few dozen instructions of the start-up."""
        # A kernel as small as the one of `_count_call` would count as nothing, or less.
        return (max(1.0, self._count(function, built) - self._call),)

    def _count_call(self) -> int:
        """Instructions of TVM's virtual machine to allocate a result and to call a kernel."""
        function = smallest_kernel()
        with scratch_folder() as place:
            return self._count(function, self.compile(function, place))

    def _count(self, function: Any, built: Path) -> int:
        shape, dtype = arguments_of(function)[-1]
        outputs, facts = (TensorSpec("y", dtype, shape),), {"mcpu": self._options.mcpu}
        artifact = Artifact(built, "tvm", self._plan.precision, (), outputs, (), {}, facts)
        return BundleRunner(artifact, self.evidence, self._cpu, 1).count_instructions({})


def _refuse(arch: str, profile: HardwareProfile) -> None:
    if arch == host_arch():
        raise TargetUnavailable(
            f"{profile.name} is of this machine's architecture, which is not emulated",
            remedy="Use --backend host.",
        )
    reason = why_not_runnable(arch)
    if reason:
        raise TargetUnavailable(f"kernels of {profile.name} cannot be counted here: {reason}", remedy=REMEDY)


def _as_model(function: Any) -> Any:
    """A Relax module whose `main` takes what the kernel takes and gives what it gives."""
    from tvm import relax

    builder = relax.BlockBuilder()
    *inputs, (shape, dtype) = arguments_of(function)
    params = [relax.Var(f"p{index}", relax.TensorType(sizes, kind)) for index, (sizes, kind) in enumerate(inputs)]
    with builder.function("main", params):
        with builder.dataflow():
            called = relax.call_tir(builder.add_func(function, "kernel"), params, relax.TensorType(shape, dtype))
            result = builder.emit_output(called)
        builder.emit_func_output(result)
    return builder.get()
