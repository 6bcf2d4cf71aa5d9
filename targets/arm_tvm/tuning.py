"""The kernels of a model that can be tuned, and what measures them: this machine, or a board behind TVM's tracker."""

from __future__ import annotations

import logging
import math
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.artifact import Evidence
from compiler.detect import detect_profile, host_isa, missing_isa
from compiler.errors import TargetUnavailable, ToolchainFailed
from compiler.profile import HardwareProfile
from compiler.target import Backend, TargetPlan
from compiler.tune import Choice, DeviceType, Measurement, Tunable, profile_device
from targets.arm_tvm.composites import find_composites
from targets.arm_tvm.emulate import host_arch
from targets.arm_tvm.integer.isa import dot_of
from targets.arm_tvm.link import link_model
from targets.arm_tvm.lower import import_relax, last_line, write_objects
from targets.arm_tvm.machine import machine_of
from targets.arm_tvm.options import Options
from targets.arm_tvm.runtime import TVM_VERSION
from targets.arm_tvm.schedules.families import FAMILIES, all_choices
from targets.arm_tvm.schedules.workload import ConvWorkload

if TYPE_CHECKING:
    import onnx_ir as ir

REPEATS = 10
"""Values of one trial."""

REPEAT_MS = 10
"""Time one value is the mean of, at least: shorter ones measure the clock."""

CONNECT_S = 5.0
BIG_CORES = 1
"""TVM's thread pool on the fastest cores, as bundles use it."""

Function = Callable[..., Any]


def list_tunables(model: ir.Model, options: Options) -> tuple[Tunable, ...]:
    """Every workload that a kernel family takes and that has more than one choice, in the order of the graph."""
    machine = machine_of(options)
    tunables = []
    for workload, count in _workloads(model, options).items():
        choices = all_choices(workload, machine)
        if len(choices) > 1:
            given = tuple(choice.to_dict() for choice in choices)
            tunables.append(Tunable(_name(workload), workload.digest, given, count, count * choices[0].cost))
    return tuple(tunables)


def _workloads(model: ir.Model, options: Options) -> Counter[ConvWorkload]:
    from tvm import relax

    module = import_relax(model, dot_of(options.arch, options.mcpu, options.mattr))
    main = relax.transform.FoldConstant()(module)["main"]
    return Counter(composite.workload for composite in find_composites(main, machine_of(options)).values())


def _name(work: ConvWorkload) -> str:
    kind = "depthwise" if work.groups > 1 else "conv"
    rows, columns = work.kernel
    size = f"{work.channels}->{work.filters} on {work.height}x{work.width}"
    if work.layout == "rows":
        return f"product {work.channels}->{work.filters} of {work.width} rows"
    stride = f"/{work.strides[0]}" if work.strides != (1, 1) else ""
    return " ".join([f"{kind} {rows}x{columns}{stride} {size}", *(step.split()[0] for step in work.epilogue)])


class KernelMeasurer:
    """Builds one kernel per trial, for the profile's processor, and times it where the back-end says.

    Args:
        model: The border model.
        plan: How it is built.
        profile: The device's.
        backend: `host` or `rpc`.

    Raises:
        TargetUnavailable: The back-end is not there, or does not run what this toolchain builds.
    """

    def __init__(self, model: ir.Model, plan: TargetPlan, profile: HardwareProfile, backend: Backend) -> None:
        self._options: Options = plan.options
        self._machine, self._plan, self._backend = machine_of(self._options), plan, backend
        self._known = {work.digest: work for work in _workloads(model, self._options)}
        if backend.kind == "host":
            _refuse_host(profile, self._options)
            self.device, self.evidence = profile_device(detect_profile()), Evidence.HOST
        elif backend.kind == "rpc":
            self.device, self.evidence = profile_device(profile), Evidence.DEVICE
            self._greet()
        else:
            raise TargetUnavailable(
                f"target 'tvm' has no back-end '{backend.kind}': single kernels are not counted under the emulator",
                remedy="Use --backend host for a profile of this machine, or a board with --tracker and --key.",
            )

    device: DeviceType
    evidence: Evidence

    def measure(self, kernel: Tunable, choice: Choice) -> Measurement:
        """Microseconds of one execution, threads as planned.

        Raises:
            TargetUnavailable: There is no board any more.
            ToolchainFailed: TVM does not compile the choice, or it does not run.
        """
        workload = self._known[kernel.workload]
        found = [one for one in all_choices(workload, self._machine) if one.to_dict() == dict(choice)]
        if not found:
            raise ToolchainFailed(f"{dict(choice)} is no choice of {kernel.name}")
        function = FAMILIES[found[0].family].emit(workload, found[0], self._machine)
        return Measurement(tuple(self._times_us(function)), self.evidence)

    def _times_us(self, function: Any) -> list[float]:
        arguments = _arguments(function)
        with tempfile.TemporaryDirectory(prefix="fleetc-") as name:
            library = Path(name) / "kernel.so"
            try:
                self._compile(function, library)
            except Exception as error:  # TVM raises whatever its passes raise
                raise ToolchainFailed(f"TVM does not compile the kernel: {last_line(error)}") from error
            with self._session() as session:
                try:
                    return _time(session, library, arguments, self._plan.threads)
                except Exception as error:  # the runtime raises whatever the kernel or the connection breaks with
                    raise ToolchainFailed(f"the kernel does not run: {last_line(error)}") from error

    def _compile(self, function: Any, library: Path) -> None:
        import tvm

        module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
        executable = tvm.compile(module, target=tvm.target.Target(self._options.target))
        objects = write_objects(executable, self._options, library.parent)
        link_model(objects, library, cache_dir=self._plan.cache_dir)

    def _greet(self) -> None:
        """Runs the smallest kernel: what cannot run it can run none."""
        from tvm import te

        source = te.placeholder((16,), name="x")
        function = te.create_prim_func([source, te.compute((16,), lambda i: source[i] + 1.0, name="y")])
        try:
            self._times_us(function)
        except ToolchainFailed as error:
            raise TargetUnavailable(
                f"the board under key '{self._backend.key}' does not run what this toolchain builds for "
                f"{self._options.mtriple} {self._options.mcpu}: {error.what}",
                where=self._backend.tracker,
                remedy=f"Start the server there with TVM {TVM_VERSION}, on a board of the profile's kind.",
            ) from error

    @contextmanager
    def _session(self) -> Iterator[Any]:
        """This process, or one connection to a board: a kernel that takes it along takes no other trial."""
        if self._backend.kind == "host":
            yield None
            return
        tracker = find_board(self._backend)
        try:
            yield tracker.request(self._backend.key, session_timeout=math.ceil(self._backend.trial_s), max_retry=1)
        except (RuntimeError, OSError) as error:
            raise TargetUnavailable(
                f"the board under key '{self._backend.key}' gives no session: {last_line(error)}",
                where=self._backend.tracker,
                remedy=f"Start the server there again, with TVM {TVM_VERSION}; the log keeps what was measured.",
            ) from error
        finally:
            tracker.close()


def find_board(backend: Backend) -> Any:
    """A connection to the tracker that knows boards under the key.

    Raises:
        TargetUnavailable: No tracker answers there, or it knows no such board.
    """
    host, _, port = backend.tracker.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        logging.getLogger("RPCServer").setLevel(logging.ERROR)
        from tvm import rpc

        tracker = rpc.connect_tracker(host.strip("[]"), int(port))
        boards = {str(server["key"]).removeprefix("server:") for server in tracker.summary()["server_info"]}
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise TargetUnavailable(
            f"no tracker answers: {last_line(error)}",
            where=backend.tracker,
            remedy="Start `python -m tvm.exec.rpc_tracker` there, or check --tracker.",
        ) from error
    if backend.key not in boards:
        raise TargetUnavailable(
            f"the tracker knows no board under key '{backend.key}'; it knows {', '.join(sorted(boards)) or 'none'}",
            where=backend.tracker,
            remedy=f"On the board: `python -m tvm.exec.rpc_server --tracker {backend.tracker} --key {backend.key}`.",
        )
    return tracker


def _refuse_host(profile: HardwareProfile, options: Options) -> None:
    missing = missing_isa(profile, host_isa())
    if options.arch != host_arch() or missing:
        why = f"it lacks {', '.join(missing[:8])}" if options.arch == host_arch() else f"it is {host_arch()}"
        raise TargetUnavailable(
            f"this machine cannot run kernels of {profile.name}: {why}",
            remedy="Measure on a board: --tracker HOST:PORT --key K; or --import the log of a machine that can.",
        )


def _arguments(function: Any) -> list[tuple[tuple[int, ...], str]]:
    """Shape and element type of every argument."""
    return [(tuple(int(size) for size in one.shape), str(one.dtype)) for one in function.params]


def _time(session: Any, library: Path, arguments: list[tuple[tuple[int, ...], str]], threads: int) -> list[float]:
    import tvm

    module, find, device = _loaded(session, library)
    find("runtime.config_threadpool")(BIG_CORES, threads)
    random = np.random.default_rng(0)
    tensors = [tvm.runtime.tensor(random.standard_normal(shape).astype(dtype), device) for shape, dtype in arguments]
    timed = module.time_evaluator("kernel", device, number=1, repeat=REPEATS, min_repeat_ms=REPEAT_MS)
    return [seconds * 1e6 for seconds in timed(*tensors).results]


def _loaded(session: Any, library: Path) -> tuple[Any, Function, Any]:
    import tvm

    if session is None:
        return tvm.runtime.load_module(str(library)), tvm.get_global_func, tvm.cpu()
    session.upload(bytearray(library.read_bytes()), library.name)
    return session.load_module(library.name), session.get_function, session.cpu()
