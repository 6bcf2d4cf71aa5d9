"""OpenVINO's own choice: how many requests run side by side, on how many threads, timed on this machine's processor.

The whole model is one kernel. For latency every choice answers one request at a time; for throughput as many as it has
streams, and the figure is the time per request.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.target import (
    Backend,
    Choice,
    DeviceType,
    Evidence,
    HardwareProfile,
    Measurement,
    TargetPlan,
    TargetUnavailable,
    ToolchainFailed,
    Tunable,
    available_cpus,
    detect_profile,
    graph_digest,
    host_isa,
    missing_isa,
    profile_device,
    scratch_folder,
)
from targets.intel_openvino.convert import write_ir
from targets.intel_openvino.isa import impose_isa
from targets.intel_openvino.toolchain import first_lines, layer_types, openvino

if TYPE_CHECKING:
    import onnx_ir as ir

# the first requests allocate memory, and cores that were idle run slowly
WARM_UP_S = 0.2
MEASURED_S = 1.0
"""Time spent on one trial's values: long enough for a median that two runs agree on."""

MIN_ROUNDS, MAX_ROUNDS = 10, 400


def list_tunables(model: ir.Model, plan: TargetPlan, default: Choice) -> tuple[Tunable, ...]:
    """The model as one kernel; the settings of the untuned build are its first choice."""
    hint = plan.options.performance_hint
    others = _choices(int(default["INFERENCE_NUM_THREADS"]), throughput=hint == "throughput")
    fixed = plan.options.threads is not None
    allowed = (
        choice for choice in others if not fixed or choice["INFERENCE_NUM_THREADS"] == default["INFERENCE_NUM_THREADS"]
    )
    choices = (default, *(choice for choice in allowed if choice != default))
    ranges = sorted((name, sizes.min, sizes.opt, sizes.max) for name, sizes in plan.dims.items())
    digest = hashlib.sha256(f"{graph_digest(model)} {ranges} {hint}".encode()).hexdigest()
    return (Tunable(f"whole model, {hint}", digest, choices),)


def _choices(threads: int, *, throughput: bool) -> Iterator[Choice]:
    """All cores first, then fewer: small models lose more by meeting at the end of each layer than they gain."""
    sizes = sorted({threads, *(2**power for power in range(threads.bit_length()) if 2**power <= threads)}, reverse=True)
    for count in sizes:
        streams = [stream_count for stream_count in sizes if stream_count <= count] if throughput else [1]
        for stream in streams:
            yield {"INFERENCE_NUM_THREADS": str(count), "NUM_STREAMS": str(stream)}


class HostMeasurer:
    """Compiles the model with one choice and times it here.

    Args:
        model: The border model.
        plan: How it is built.
        profile: The device's: this machine must have its instructions.
        config: The settings that are not chosen.

    Raises:
        TargetUnavailable: The back-end is another than the host, or this processor lacks instructions of the device.
    """

    evidence = Evidence.HOST

    def __init__(
        self,
        model: ir.Model,
        plan: TargetPlan,
        profile: HardwareProfile,
        backend: Backend,
        config: dict[str, str],
    ) -> None:
        _refuse(profile, backend)
        self._plan, self._config, self._trial_s = plan, config, backend.trial_s
        self._core = openvino().Core()
        with scratch_folder() as folder:  # OpenVINO keeps its mapping of the weights
            path = folder / "ir" / "model.xml"
            path.parent.mkdir()
            write_ir(model, plan, path)
            self._network = self._core.read_model(path)
            self.device = _device(profile, layer_types(path))

    def measure(self, kernel: Tunable, choice: Choice) -> Measurement:
        """Microseconds per request, one value per round of requests.

        Raises:
            ToolchainFailed: OpenVINO does not compile or run the model with this choice.
        """
        config = {**self._config, **{name: str(value) for name, value in choice.items()}}
        threads, cores = int(config["INFERENCE_NUM_THREADS"]), available_cpus()
        if threads > cores:
            raise ToolchainFailed(f"{threads} threads cannot be timed on the {cores} processors of this machine")
        try:
            compiled = self._core.compile_model(self._network, "CPU", config)
            inputs = [_sample(port, self._plan) for port in self._network.inputs]
            count = int(config["NUM_STREAMS"]) if config["PERFORMANCE_HINT"] == "THROUGHPUT" else 1
            requests = [compiled.create_infer_request() for _ in range(count)]
            return Measurement(tuple(_times_us(requests, inputs, self._trial_s)), self.evidence)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ToolchainFailed(f"OpenVINO does not run the model with {config}: {first_lines(error)}") from error


def _device(profile: HardwareProfile, layers: frozenset[str]) -> DeviceType:
    """This machine, with the instruction sets that it shares with the device: kernels use no others."""
    device: DeviceType = profile_device(detect_profile())
    flags = set(profile.cpu.isa if profile.cpu else ())
    impose_isa(flags, host_isa(), layers)
    return replace(device, isa=tuple(flag for flag in device.isa if flag in flags)) if flags else device


def _refuse(profile: HardwareProfile, backend: Backend) -> None:
    if backend.kind != "host":
        raise TargetUnavailable(
            f"OpenVINO is tuned on a processor, not by back-end '{backend.kind}'",
            remedy="Run `fleetc tune --backend host` on the device or a machine like it, and --export its log.",
        )
    missing = missing_isa(profile, host_isa())
    if missing:
        raise TargetUnavailable(
            f"this machine lacks {', '.join(missing[:8])} of {profile.name}: its times would say nothing of the device",
            remedy="Run `fleetc tune` on the device or a machine like it, and move its log with --export and --import.",
        )


def _times_us(requests: list[Any], inputs: list[Any], limit_s: float) -> Iterator[float]:
    _round(requests, inputs)
    started = time.perf_counter()
    while time.perf_counter() - started < min(WARM_UP_S, limit_s / 10):
        _round(requests, inputs)
    started = time.perf_counter()
    for done in range(MAX_ROUNDS):
        spent = time.perf_counter() - started
        if (done >= MIN_ROUNDS and spent > MEASURED_S) or (done and spent > limit_s / 2):
            return
        yield _round(requests, inputs)


def _round(requests: list[Any], inputs: list[Any]) -> float:
    """Every request once, all at a time; microseconds per request."""
    started = time.perf_counter_ns()
    for request in requests:
        request.start_async(inputs, share_inputs=True)
    for request in requests:
        request.wait()
    return (time.perf_counter_ns() - started) / 1e3 / len(requests)


def _sample(port: Any, plan: TargetPlan) -> Any:
    """Input of the optimal sizes: numbers for floating point, ones for what may be an index or a mask."""
    dtype = port.get_element_type().to_dtype()
    opt = {(sizes.min, sizes.max): sizes.opt for sizes in plan.dims.values()}
    sizes = [
        size.get_length() if size.is_static else opt.get((size.get_min_length(), size.get_max_length()), 1)
        for size in port.get_partial_shape()
    ]
    if np.issubdtype(dtype, np.floating):
        return np.random.default_rng(0).standard_normal(sizes).astype(dtype)
    return np.ones(sizes, dtype)
