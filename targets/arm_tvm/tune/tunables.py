"""The kernels of a model that can be tuned, and what measures them: each trial is compiled and run in a harness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compiler.target import (
    Backend,
    Choice,
    CompilerError,
    DeviceType,
    Evidence,
    HardwareProfile,
    Measurement,
    TargetPlan,
    TargetUnavailable,
    ToolchainFailed,
    Tunable,
    scratch_folder,
)
from targets.arm_tvm.bundle.runtime_libraries import TVM_VERSION
from targets.arm_tvm.graph.lower import last_line
from targets.arm_tvm.options import Options
from targets.arm_tvm.tune.emulator_harness import EmulatorHarness
from targets.arm_tvm.tune.harness import BoardHarness, Harness, HostHarness, smallest_kernel
from targets.arm_tvm.tune.spaces import find_spaces

if TYPE_CHECKING:
    import onnx_ir as ir


def list_tunables(model: ir.Model, options: Options, precision: str = "fp32") -> tuple[Tunable, ...]:
    """Every kernel of our families that has more than one choice, in the order of the graph."""
    return tuple(
        Tunable(space.name, space.digest, space.choices, count, count * space.work)
        for space, count in find_spaces(model, options, precision).values()
        if len(space.choices) > 1
    )


class KernelMeasurer:
    """Builds one kernel per trial, for the profile's processor, and measures it where the back-end says.

    Args:
        model: The border model.
        plan: How it is built.
        profile: The device's.
        backend: Where trials are measured.

    Raises:
        TargetUnavailable: The back-end is not there, or does not run what this toolchain builds.
    """

    def __init__(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile, backend: Backend) -> None:
        self._harness = _open_harness(plan, profile, backend, _weights_bytes(model))
        self.device, self.evidence = self._harness.device, self._harness.evidence
        self._spaces = find_spaces(model, plan.options, plan.precision)
        if backend.kind == "rpc":
            self._greet(backend, plan.options)

    device: DeviceType
    evidence: Evidence

    def measure(self, kernel: Tunable, choice: Choice) -> Measurement:
        """Measures one execution of a kernel.

        Raises:
            TargetUnavailable: There is no board or no emulator any more.
            ToolchainFailed: TVM does not compile the choice, or it does not run.
        """
        space, _ = self._spaces[kernel.workload]
        if dict(choice) not in space.choices:
            raise ToolchainFailed(f"{dict(choice)} is no choice of {kernel.name}")
        return Measurement(self._values(space.emit(choice)), self.evidence)

    def _values(self, function: Any) -> tuple[float, ...]:
        with scratch_folder() as place:
            try:
                built = self._harness.compile(function, place)
            except CompilerError:
                raise
            except Exception as error:  # TVM raises whatever its passes raise
                raise ToolchainFailed(f"TVM does not compile the kernel: {last_line(error)}") from error
            return self._harness.values(function, built)

    def _greet(self, backend: Backend, options: Options) -> None:
        """Checks that the board runs code of this toolchain, with the smallest kernel."""
        try:
            self._values(smallest_kernel())
        except ToolchainFailed as error:
            raise TargetUnavailable(
                f"the board under key '{backend.key}' does not run what this toolchain builds for "
                f"{options.mtriple} {options.mcpu}: {error.what}",
                where=backend.tracker,
                remedy=f"Start the server there with TVM {TVM_VERSION}, on a board of the profile's kind.",
            ) from error


def _open_harness(plan: TargetPlan, profile: HardwareProfile, backend: Backend, weights: int) -> Harness:
    if backend.kind == "emulator":
        return EmulatorHarness(plan, profile)
    if backend.kind == "host":
        return HostHarness(plan, profile, weights)
    return BoardHarness(plan, profile, backend, weights)


def _weights_bytes(model: ir.Model) -> int:
    weights = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in weights if tensor is not None)
