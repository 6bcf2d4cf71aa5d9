"""Runs an exported artifact in Triton's Python backend: needs numpy below 2 and the artifact's toolchain, not fleetc.

`fleetc export --triton --python` copies this file beside the model. It opens the model with the artifact's settings, as
the build did that was judged, and puts the requests that Triton hands over together into one batch.
"""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

INPUT_LIMIT = 2**30 - 1
"""OpenVINO computes 64-bit integers in 32 bits: the largest that may be given."""


class TritonPythonModel:
    """The model of one instance, as Triton's Python backend expects it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the model that stands beside this file."""
        self._triton = import_module("triton_python_backend_utils")  # there only inside of Triton
        config = json.loads(args["model_config"])
        folder = Path(__file__).parent
        self._is_batched = config["max_batch_size"] > 0
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        opens = _open_ir if (folder / "model.xml").exists() else _open_onnx
        self._run = opens(folder, settings, self._outputs)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers requests: all of them in one run, or one by one where the model takes no batches."""
        inputs = [
            {name: self._triton.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}
            for request in requests
        ]
        try:
            answers = self._run_together(inputs) if self._is_batched else [self._run(values) for values in inputs]
        except (RuntimeError, TypeError, ValueError) as error:
            failed = self._triton.InferenceResponse(error=self._triton.TritonError(str(error)))
            return [failed for _ in requests]
        return [self._response(answer) for answer in answers]

    def _run_together(self, inputs: list[dict[str, Any]]) -> list[list[Any]]:
        joined = {name: np.concatenate([values[name] for values in inputs]) for name in self._inputs}
        ends = np.cumsum([len(values[self._inputs[0]]) for values in inputs])[:-1]
        parts = [np.split(output, ends) for output in self._run(joined)]
        return [list(part) for part in zip(*parts)]  # noqa: B905  # Triton's Python may be older than `strict`

    def _response(self, outputs: list[Any]) -> Any:
        pairs = zip(self._outputs, outputs)  # noqa: B905
        tensors = [self._triton.Tensor(name, np.ascontiguousarray(array)) for name, array in pairs]
        return self._triton.InferenceResponse(tensors)


def _open_ir(folder: Path, settings: dict[str, str], outputs: list[str]) -> Any:
    import openvino

    here = len(os.sched_getaffinity(0))
    settings = {**settings, "INFERENCE_NUM_THREADS": str(min(int(settings["INFERENCE_NUM_THREADS"]), here))}
    network = openvino.Core().read_model(folder / "model.xml")
    order = [port.get_node().get_friendly_name() for port in network.inputs]
    request = openvino.Core().compile_model(network, "CPU", settings).create_infer_request()

    def run(inputs: dict[str, Any]) -> list[Any]:
        for name, array in inputs.items():
            is_wide = array.dtype.name in ("int64", "uint32", "uint64")
            if is_wide and array.size and np.abs(array.astype(np.float64)).max() > INPUT_LIMIT:
                raise ValueError(f"input '{name}' holds integers beyond {INPUT_LIMIT}: OpenVINO computes in 32 bits")
        results = request.infer([inputs[name] for name in order], share_inputs=True)
        return [results[place].copy() for place in range(len(outputs))]

    return run


def _open_onnx(folder: Path, settings: dict[str, int], outputs: list[str]) -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it would send the model's name and digests to its maker
    import onnxruntime

    here = len(os.sched_getaffinity(0))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(settings["intra_op_num_threads"], here)
    options.inter_op_num_threads = settings["inter_op_num_threads"]
    if not settings.get("is_optimized", 1):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(outputs, inputs)
