"""Harnesses that time compiled kernels: on this machine, and on a board behind TVM's tracker.

Between two runs of a kernel as many bytes are copied as the model has weights. So it finds its own weights as in the
model, behind those of all other kernels, and not in the cache where its last run left them.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from compiler.target import (
    Backend,
    DeviceType,
    Evidence,
    HardwareProfile,
    TargetPlan,
    TargetUnavailable,
    ToolchainFailed,
    detect_profile,
    host_isa,
    missing_isa,
    profile_device,
)
from targets.arm_tvm.bundle.link import link_model
from targets.arm_tvm.bundle.runtime_libraries import TVM_VERSION
from targets.arm_tvm.graph.kernel_objects import write_objects
from targets.arm_tvm.graph.lower import last_line
from targets.arm_tvm.graph.tir_passes import register_pipeline
from targets.arm_tvm.kernels.integer.dot_products import dot_of
from targets.arm_tvm.options import Options
from targets.arm_tvm.run.amx import request_tiles
from targets.arm_tvm.run.emulate import host_arch

RUNS = 51
"""Measured values of one trial, each of one run: a mean of several would be of warm weights. What other work disturbs
is far from the middle one."""

LARGEST_COPY_BYTES = 1 << 29
"""More than any cache holds; larger models need no more."""

CONNECT_S = 5.0
"""After how long a tracker that does not answer is called absent."""
BIG_CORES = 1
"""TVM's thread pool on the fastest cores, as bundles use it."""

Function = Callable[..., Any]
Arguments = list[tuple[tuple[int, ...], str]]


class Harness(Protocol):
    """Runs compiled kernels and measures them."""

    @property
    def device(self) -> DeviceType:
        """The device type that its figures hold for."""

    @property
    def evidence(self) -> Evidence:
        """How its figures were obtained."""

    def compile(self, function: Any, folder: Path) -> Path:
        """Compiles a TIR function into an existing folder; gives the path that `values` takes."""

    def values(self, function: Any, built: Path) -> tuple[float, ...]:
        """Costs of one execution, measured once or several times, in the unit of the evidence.

        Raises:
            TargetUnavailable: Nothing can be measured here any more.
            ToolchainFailed: The kernel does not run.
        """


class HostHarness:
    """This machine's processor, in microseconds.

    Args:
        plan: How kernels are built, and on how many threads they run.
        profile: What they are built for.
        weights_bytes: Of the model's weights.

    Raises:
        TargetUnavailable: This machine lacks instructions of the profile.
    """

    evidence = Evidence.HOST

    def __init__(self, plan: TargetPlan, profile: HardwareProfile, weights_bytes: int) -> None:
        _refuse_host(profile, plan.options)
        if dot_of(plan.options.arch, plan.options.mcpu, plan.options.mattr) == "amx_int8":
            request_tiles()
        self._plan, self.device = plan, profile_device(detect_profile())
        self._weights_bytes = weights_bytes

    def compile(self, function: Any, folder: Path) -> Path:
        """A library with the function `kernel`."""
        return compile_kernel(function, self._plan, folder)

    def values(self, function: Any, built: Path) -> tuple[float, ...]:
        """Microseconds, `RUNS` of them."""
        return _timed(None, built, arguments_of(function), self._plan.threads, self._weights_bytes)


class BoardHarness:
    """A board behind TVM's tracker, in microseconds; one connection per trial, since a kernel that crashes ends it.

    Args:
        plan, profile, weights_bytes: As of `HostHarness`.
        backend: Tracker, key, and how long a trial may take.
    """

    evidence = Evidence.DEVICE

    def __init__(self, plan: TargetPlan, profile: HardwareProfile, backend: Backend, weights_bytes: int) -> None:
        self._plan, self._backend, self.device = plan, backend, profile_device(profile)
        self._weights_bytes = weights_bytes

    def compile(self, function: Any, folder: Path) -> Path:
        """A library with the function `kernel`."""
        return compile_kernel(function, self._plan, folder)

    def values(self, function: Any, built: Path) -> tuple[float, ...]:
        """Microseconds, `RUNS` of them; raises TargetUnavailable where there is no board any more."""
        with self._session() as session:
            return _timed(session, built, arguments_of(function), self._plan.threads, self._weights_bytes)

    @contextmanager
    def _session(self) -> Iterator[Any]:
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
        # TVM itself tries again for a long time where no tracker answers.
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


def arguments_of(function: Any) -> Arguments:
    """Shape and element type of every argument of a TIR function."""
    return [(tuple(int(size) for size in parameter.shape), str(parameter.dtype)) for parameter in function.params]


def random_arguments(arguments: Arguments) -> list[np.ndarray[Any, Any]]:
    """Random values for these arguments; always the same."""
    random = np.random.default_rng(0)
    return [random.standard_normal(shape).astype(dtype) for shape, dtype in arguments]


def smallest_kernel() -> Any:
    """A TIR function of one vector: a check that kernels run at all, and the cost of a call without a kernel."""
    from tvm import te

    source = te.placeholder((16,), name="x")
    return te.create_prim_func([source, te.compute((16,), lambda i: source[i] + 1.0, name="y")])


def compile_kernel(function: Any, plan: TargetPlan, folder: Path) -> Path:
    """A library whose function `kernel` is the TIR function."""
    import tvm

    options: Options = plan.options
    module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
    target = tvm.target.Target(options.target)
    # As in a build: what is measured must be what is delivered.
    objects = write_objects(tvm.compile(module, target=target, tir_pipeline=register_pipeline()), options, folder)
    link_model(objects, folder / "kernel.so", cache_dir=plan.cache_dir)
    return folder / "kernel.so"


def _timed(session: Any, library: Path, arguments: Arguments, threads: int, copied_bytes: int) -> tuple[float, ...]:
    try:
        return _time(session, library, arguments, threads, copied_bytes)
    except Exception as error:  # the runtime raises whatever the kernel or the connection breaks with
        raise ToolchainFailed(f"the kernel does not run: {last_line(error)}") from error


def _time(session: Any, library: Path, arguments: Arguments, threads: int, copied_bytes: int) -> tuple[float, ...]:
    import tvm

    module, find, device = _loaded(session, library)
    find("runtime.config_threadpool")(BIG_CORES, threads)
    tensors = [tvm.runtime.tensor(array, device) for array in random_arguments(arguments)]
    copied = min(copied_bytes, LARGEST_COPY_BYTES)
    timed = module.time_evaluator("kernel", device, number=1, repeat=RUNS, cache_flush_bytes=copied)
    return tuple(seconds * 1e6 for seconds in timed(*tensors).results)


def _loaded(session: Any, library: Path) -> tuple[Any, Function, Any]:
    import tvm

    if session is None:
        return tvm.runtime.load_module(str(library)), tvm.get_global_func, tvm.cpu()
    session.upload(bytearray(library.read_bytes()), library.name)
    return session.load_module(library.name), session.get_function, session.cpu()
