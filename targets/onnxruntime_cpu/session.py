"""ONNX Runtime sessions on the CPU, with the settings of an artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.target import Array, Arrays, DataError, Evidence, TensorSpec, UnsupportedModel, available_cpus


class SessionRunner:
    """A delivered model, opened on this machine with its settings; `note` says what its figures are not."""

    evidence = Evidence.HOST

    def __init__(self, model: Path, config: Path, note: str) -> None:
        self.note = note
        self._session = open_session(model, json.loads(config.read_text(encoding="utf-8")))
        self._names = [value.name for value in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Raises DataError if the inputs do not fit the model."""
        try:
            return dict(zip(self._names, self._session.run(self._names, dict(inputs)), strict=True))
        except _refusals() as error:
            raise DataError(f"ONNX Runtime does not run these inputs: {error}") from error

    def close(self) -> None:
        """Frees the session."""
        del self._session


def open_session(model: Path, config: Mapping[str, int]) -> Any:
    """A session with all graph optimizations, on no more threads than this machine has processors.

    Raises:
        UnsupportedModel: ONNX Runtime refuses the model.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = min(config["intra_op_num_threads"], available_cpus())
    options.inter_op_num_threads = config["inter_op_num_threads"]
    options.log_severity_level = 4  # what is wrong comes as an exception; its copy on stderr would be noise
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except _refusals() as error:
        raise UnsupportedModel(f"ONNX Runtime refuses the model: {error}") from error


def spec_of(value: Any) -> TensorSpec:
    """An input or output of a session; raises UnsupportedModel for a sequence or an optional value."""
    if not value.type.startswith("tensor("):
        raise UnsupportedModel(f"'{value.name}' is a {value.type}; targets take and give tensors only")
    kind = {"float": "float32", "double": "float64"}.get(value.type[7:-1], value.type[7:-1])
    return TensorSpec(value.name, kind, tuple("?" if size is None else size for size in value.shape))


def _refusals() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.NotImplemented,
        state.RuntimeException,
        ValueError,
    )
