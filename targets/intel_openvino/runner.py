"""An IR compiled and executed on this machine."""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.target import (
    Array,
    Arrays,
    Artifact,
    Cpu,
    DataError,
    Evidence,
    HardwareProfile,
    LayerTime,
    ToolchainFailed,
    available_cpus,
    missing_isa,
)
from targets.intel_openvino.isa import OWN, impose_isa, refuse_half_precision
from targets.intel_openvino.toolchain import INPUT_LIMIT, first_lines, input_name, layer_types, openvino

_PROFILED_RUNS = 20


class CompiledRunner:
    """An IR compiled for this machine; `note` says what its figures are not."""

    evidence = Evidence.HOST

    def __init__(self, artifact: Artifact, host: frozenset[str]) -> None:
        flags = _strings(artifact.facts.get("isa"))
        limited = impose_isa(flags, host, _own_kernels(artifact))
        refuse_half_precision(artifact.precision, host)
        self.note = "; ".join(filter(None, (limited, _note(artifact, flags, host))))
        self._outputs = [spec.name for spec in artifact.outputs]
        self._inputs = {spec.name: spec.dtype for spec in artifact.inputs}
        self._unused = set(_strings(artifact.facts.get("unused_inputs")))
        self._artifact = artifact
        compiled, self._order = _compile(artifact)
        self._request = compiled.create_infer_request()

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Raises DataError if the inputs do not fit the model."""
        self._check(inputs)
        try:
            outputs = self._request.infer([inputs[name] for name in self._order], share_inputs=True)
        except (RuntimeError, TypeError, ValueError) as error:
            raise DataError(f"OpenVINO does not run these inputs: {first_lines(error)}") from error
        return {name: outputs[index].copy() for index, name in enumerate(self._outputs)}

    def _check(self, inputs: Arrays) -> None:
        """Raises DataError if the inputs do not fit the model."""
        dtypes = {name: array.dtype.name for name, array in inputs.items() if name not in self._unused}
        if dtypes != self._inputs:
            raise DataError(f"the model takes {_listed(self._inputs)}; given: {_listed(dtypes)}")
        _refuse_wide(inputs)

    def layer_times(self, inputs: Arrays) -> list[LayerTime]:
        """Mean microseconds of each kernel, and the layers that were fused into it, by OpenVINO's own profiling."""
        compiled, order = _compile(self._artifact, PERF_COUNT="YES")
        request = compiled.create_infer_request()
        for _ in range(_PROFILED_RUNS):
            request.infer([inputs[name] for name in order], share_inputs=True)
        infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
        return [
            LayerTime(tuple(_text(info, "originalLayersNames").split(",")), float(time), _text(info, "primitiveType"))
            for info in infos
            if (time := _text(info, "execTimeMcs")).isdigit()
        ]

    def close(self) -> None:
        """Frees the compiled model."""
        del self._request


def _own_kernels(artifact: Artifact) -> frozenset[str]:
    """Layers whose kernels follow no limit; builds of earlier releases do not say."""
    known = artifact.facts.get(OWN)
    return frozenset(_strings(known)) if known is not None else layer_types(artifact.root / artifact.files[0])


def _refuse_wide(inputs: Arrays) -> None:
    """OpenVINO would take their lower 32 bits."""
    for name, array in inputs.items():
        if (
            array.dtype.name in ("int64", "uint32")
            and array.size
            and int(np.abs(array.astype(np.float64)).max()) > INPUT_LIMIT
        ):
            raise DataError(
                f"input '{name}' holds integers beyond ±{INPUT_LIMIT}, and OpenVINO computes in 32 bits",
                remedy="Use target `onnxruntime` for this model.",
            )


def _listed(dtypes: dict[str, str]) -> str:
    return ", ".join(f"{name} ({dtype})" for name, dtype in sorted(dtypes.items()))


def _text(info: Any, key: str) -> str:
    return str(info[key].astype(str)) if key in info else ""


def _compile(artifact: Artifact, **properties: str) -> tuple[Any, list[str]]:
    """The IR compiled with the artifact's settings for one request at a time; and its inputs' order."""
    config = {**_config_of(artifact), **properties}
    # One request at a time needs one stream: where there are more, each is cold when it is first used.
    threads = min(_threads_of_request(config), available_cpus())
    config |= {"INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1"}
    try:
        core = openvino().Core()
        network = core.read_model(artifact.root / artifact.files[0])
        return core.compile_model(network, "CPU", config), [input_name(port) for port in network.inputs]
    except RuntimeError as error:
        raise ToolchainFailed(f"OpenVINO does not compile the IR: {first_lines(error)}") from error


def _config_of(artifact: Artifact) -> dict[str, str]:
    """What the device passes to `compile_model`."""
    config: dict[str, str] = dict(artifact.facts["config"])  # type: ignore[call-overload]  # JSON that `build` wrote
    return config


def _threads_of_request(config: dict[str, str]) -> int:
    """Threads that a request has on the device, which gives each stream its share."""
    return max(1, int(config["INFERENCE_NUM_THREADS"]) // max(1, int(config["NUM_STREAMS"])))


def _note(artifact: Artifact, flags: list[str], host: frozenset[str]) -> str:
    return "; ".join(filter(None, (_threads_note(artifact), _isa_note(flags, host))))


def _threads_note(artifact: Artifact) -> str:
    """What a time says where the device's threads do not all fit this machine; empty where they do."""
    threads, cpus = _threads_of_request(_config_of(artifact)), available_cpus()
    if threads <= cpus:
        return ""
    return f"it ran on {cpus} threads, as many as this machine has, not on the device's {threads}: times are not those"


def _isa_note(flags: list[str], host: frozenset[str]) -> str:
    cpu = Cpu(model="the device's", cores=1, isa=tuple(flags))
    missing = missing_isa(HardwareProfile(schema=1, name="device", target="openvino", cpu=cpu), host)
    if not missing:
        return ""
    return f"this machine lacks {', '.join(missing)} of the device: results hold for both, speed is this machine's"


def _strings(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []
