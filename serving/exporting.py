"""What other servers are told of an artifact: Triton's config.pbtxt and OpenVINO Model Server's config.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from compiler.target import Artifact, CompilerError, DataError, TensorSpec, combine
from serving.protocol import DATATYPES, Signature

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""What both servers take for a folder and for a part of a URL."""

WIDE = frozenset({"int64", "uint32", "uint64"})
"""Integers that OpenVINO computes in 32 bits."""

BFLOAT16_ISA = frozenset({"amx_bf16", "avx512_bf16"})
"""With one of these OpenVINO's CPU plugin computes float32 in bfloat16 unless it is told otherwise."""

NATIVE_PRECISION: Mapping[str, Mapping[str, str]] = {"f32": {}, "bf16": {"HINT_BF16": "YES"}}
"""What Triton's backend for OpenVINO is told of a precision; others it cannot be told."""

OPENVINO_KEYS = ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT")
"""Settings that Triton's backend for OpenVINO passes on."""

UNOPTIMIZED = "2"
"""Level of graph optimization at which Triton's backend for ONNX Runtime turns all of it off."""

ONNX_TARGETS = ("onnxruntime", "reference")


class Backend(StrEnum):
    """Triton's backends that can open an artifact."""

    OPENVINO = "openvino"
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    PYTHON = "python"


@dataclass(frozen=True)
class Batching:
    """How requests are put together.

    Args:
        largest: Items of the largest batch; 0 where the model takes no batches.
        preferred: Sizes that are worth waiting for, ascending.
        delay_us: How long the first request may wait for others, in microseconds.
    """

    largest: int
    preferred: tuple[int, ...] = ()
    delay_us: int = 0


def choose_batching(signature: Signature, service_s: Mapping[int, float], *, slo_s: float) -> Batching:
    """Batch sizes by what runs were measured to take.

    A size is preferred if an item costs less in it than in each smaller size, and if a request that arrives when such a
    batch has just begun is still answered in time: two runs fit into `slo_s`. What is left of that time may be spent on
    waiting, but no more than the run of a single item, which would have been the answer without waiting.
    """
    low, largest = signature.sizes.get(signature.batch, (1, 0))
    if not signature.batch or low > 1 or any(len(spec.shape) < 2 for spec in (*signature.inputs, *signature.outputs)):
        return Batching(0)
    preferred: list[int] = []
    best_s = service_s.get(1, float("inf"))
    for size, seconds in sorted(service_s.items()):
        if 1 < size <= largest and seconds / size < best_s and 2 * seconds <= slo_s:
            preferred.append(size)
        best_s = min(best_s, seconds / size)
    if not preferred:
        return Batching(largest)
    spare_s = min(slo_s - 2 * service_s[preferred[-1]], service_s.get(1, service_s[preferred[0]]))
    return Batching(largest, tuple(preferred), round(spare_s * 1e6))


def choose_backend(artifact: Artifact, *, is_python: bool) -> Backend:
    """Triton's backend for an artifact.

    Raises:
        DataError: None of them opens it, or computes as the build did that was judged.
    """
    where = str(artifact.root)
    if artifact.target in ONNX_TARGETS:
        return Backend.PYTHON if is_python else Backend.ONNXRUNTIME
    if artifact.target == "openvino":
        if not is_python:
            _raise(_native_openvino_problems(artifact))
        return Backend.PYTHON if is_python else Backend.OPENVINO
    if artifact.target == "tensorrt":
        if artifact.facts.get("library") != "tensorrt":
            raise DataError(
                "the engine is TensorRT-RTX's, which Triton's TensorRT backend does not open",
                where=where,
                remedy="Build with `library: tensorrt` among the profile's `target_options`, or use `fleetc serve`.",
            )
        if is_python:
            raise DataError(
                "the Python backend runs OpenVINO and ONNX Runtime only", where=where, remedy="Leave it out."
            )
        return Backend.TENSORRT
    raise _no_server(artifact, "Triton", "`openvino`, `onnxruntime` or `tensorrt`")


def _no_server(artifact: Artifact, server: str, targets: str) -> DataError:
    is_arm = artifact.target == "tvm"
    return DataError(
        f"{server} has no backend for artifacts of target '{artifact.target}'",
        where=str(artifact.root),
        remedy="An ARM bundle runs by itself: ./run input.npy output.npy on the board."
        if is_arm
        else f"Build the device with target {targets}, or use `fleetc serve`.",
    )


def _native_openvino_problems(artifact: Artifact) -> list[CompilerError]:
    where, hint = str(artifact.root), str(_config(artifact).get("INFERENCE_PRECISION_HINT"))
    isa = artifact.facts.get("isa")
    flags = BFLOAT16_ISA & {str(flag) for flag in isa} if isinstance(isa, list) else set()
    problems: list[CompilerError] = list(_wide_problems(artifact, "Use --python, which refuses larger ones."))
    remedy = "Use --python, which opens the model with every setting of the artifact."
    if hint not in NATIVE_PRECISION:
        problems.append(
            DataError(f"Triton's openvino backend cannot be told to compute in {hint}", where=where, remedy=remedy)
        )
    if hint == "f32" and flags:
        problems.append(
            DataError(
                f"the device has {', '.join(sorted(flags))}: Triton's openvino backend would compute in bfloat16, and "
                "the build was judged in float32",
                where=where,
                remedy=remedy,
            )
        )
    return problems


def _wide_problems(artifact: Artifact, remedy: str) -> list[DataError]:
    return [
        DataError(
            f"input '{spec.name}' is {spec.dtype}: OpenVINO computes it in 32 bits, and this server refuses no larger "
            "integer",
            where=str(artifact.root),
            remedy=remedy,
        )
        for spec in artifact.inputs
        if spec.dtype in WIDE
    ]


def _raise(problems: Sequence[CompilerError]) -> None:
    if problems:
        raise combine(problems)


def _config(artifact: Artifact) -> dict[str, Any]:
    config = artifact.facts.get("config")
    return dict(config) if isinstance(config, Mapping) else {}


def settings_of(artifact: Artifact) -> dict[str, Any]:
    """What the Python backend opens the model with."""
    if artifact.target == "reference":
        return {"intra_op_num_threads": 1, "inter_op_num_threads": 1, "is_optimized": 0}
    return _config(artifact)


def triton_config(
    name: str, artifact: Artifact, backend: Backend, signature: Signature, batching: Batching
) -> dict[str, Any]:
    """The fields of Triton's `ModelConfig`, by their names; `to_text` writes them.

    Raises:
        DataError: A tensor without dimensions, which Triton has no config for.
    """
    tensors = (*signature.inputs, *signature.outputs)
    _raise(
        [
            DataError(f"'{spec.name}' has no dimensions, and Triton takes no such tensor", where=str(artifact.root))
            for spec in tensors
            if not spec.shape
        ]
    )
    config: dict[str, Any] = {"name": name}
    # Triton's TensorRT backend is the one that is still chosen by platform
    config |= {"platform": "tensorrt_plan"} if backend is Backend.TENSORRT else {"backend": str(backend)}
    config["max_batch_size"] = batching.largest
    config["input"] = [_tensor(spec, is_batched=batching.largest > 0) for spec in signature.inputs]
    config["output"] = [_tensor(spec, is_batched=batching.largest > 0) for spec in signature.outputs]
    config["instance_group"] = [{"count": 1, "kind": _Word("KIND_GPU" if backend is Backend.TENSORRT else "KIND_CPU")}]
    if batching.largest:
        config["dynamic_batching"] = {
            "preferred_batch_size": list(batching.preferred),
            "max_queue_delay_microseconds": batching.delay_us,
        }
    if backend is Backend.ONNXRUNTIME and artifact.target == "reference":
        config["optimization"] = {"graph": {"level": _Word(UNOPTIMIZED)}}
    config["parameters"] = [
        {"key": key, "value": {"string_value": value}} for key, value in _parameters(artifact, backend).items()
    ]
    return config


def _parameters(artifact: Artifact, backend: Backend) -> dict[str, str]:
    settings = settings_of(artifact)
    if backend is Backend.OPENVINO:
        own = {key: str(settings[key]) for key in OPENVINO_KEYS if key in settings}
        return {**own, **NATIVE_PRECISION[str(settings["INFERENCE_PRECISION_HINT"])]}
    if backend is Backend.ONNXRUNTIME:
        return {f"{kind}_op_thread_count": str(settings[f"{kind}_op_num_threads"]) for kind in ("intra", "inter")}
    return {}


class _Word(str):
    """A name of an enumeration or a number: written without quotes."""

    __slots__ = ()


def _tensor(spec: TensorSpec, *, is_batched: bool) -> dict[str, Any]:
    dims = [size if isinstance(size, int) else -1 for size in spec.shape[is_batched:]]
    return {"name": spec.name, "data_type": _Word(f"TYPE_{DATATYPES[spec.dtype]}"), "dims": dims}


def to_text(config: Mapping[str, Any], *, indent: str = "") -> str:
    """A message in protobuf's text format: repeated messages one after another, repeated numbers in brackets."""
    return "".join(line for key, value in config.items() for line in _field(key, value, indent))


def _field(key: str, value: Any, indent: str) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{indent}{key} {{\n{to_text(value, indent=indent + '  ')}{indent}}}\n"]
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return [line for item in value for line in _field(key, item, indent)]
    if isinstance(value, list):
        return [f"{indent}{key}: {json.dumps(value)}\n"] if value else []
    if isinstance(value, str) and not isinstance(value, _Word):
        return [f"{indent}{key}: {json.dumps(value, ensure_ascii=False)}\n"]
    return [f"{indent}{key}: {value}\n"]


def ovms_config(name: str, artifact: Artifact) -> dict[str, Any]:
    """The config of OpenVINO Model Server for a folder that holds the model under its name.

    Raises:
        DataError: The server does not open the artifact, or would not compute as the build did.
    """
    if artifact.target != "openvino":
        raise _no_server(artifact, "OpenVINO Model Server", "`openvino`")
    _raise(_wide_problems(artifact, "Use --triton with --python, which refuses larger ones, or `fleetc serve`."))
    settings = _config(artifact)
    model = {
        "name": name,
        "base_path": name,  # relative to this file
        "target_device": "CPU",
        # a request for each stream keeps all of them busy; more would only wait inside of the server
        "nireq": int(settings["NUM_STREAMS"]),
        "plugin_config": settings,
    }
    return {"model_config_list": [{"config": model}]}
