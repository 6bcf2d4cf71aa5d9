"""Runs a model in OpenVINO or ONNX Runtime, alone or on all processors, and prints what it took.

    python x86_peer_run.py openvino|onnxruntime MODEL INPUT.npy SETTINGS latency THREADS COUNT
    python x86_peer_run.py openvino|onnxruntime MODEL INPUT.npy SETTINGS throughput SECONDS
    python x86_peer_run.py nncf MODEL.onnx SAMPLES.npz OUT.xml

`latency` prints the sorted milliseconds of single inferences, `throughput` the items a second that all processors get
through together. SETTINGS is a JSON object of the runtime's own. Nothing of fleetc is imported: a peer has an
environment of its own.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def main(kind: str, model: str, given: str, settings: str, *rest: str) -> None:
    """Runs and prints."""
    if kind == "nncf":
        quantize(model, given, settings)
        return
    tensor = np.load(given)
    open_with = {"openvino": open_openvino, "onnxruntime": open_onnxruntime}[kind]
    if rest[0] == "latency":
        infer = open_with(model, tensor, json.loads(settings), int(rest[1]))
        print(json.dumps(sorted(timed_ms(infer) for _ in range(int(rest[2])))))
    elif kind == "openvino":
        print(len(tensor) * openvino_runs_per_s(model, tensor, json.loads(settings), float(rest[1])))
    else:
        infer = open_with(model, tensor, json.loads(settings), 1)
        print(len(tensor) * threads_runs_per_s(infer, float(rest[1])))


def timed_ms(infer: Callable[[], object]) -> float:
    """Milliseconds of one inference."""
    started = time.perf_counter()
    infer()
    return 1e3 * (time.perf_counter() - started)


def open_openvino(model: str, tensor: np.ndarray, settings: dict[str, str], threads: int) -> Callable[[], object]:
    """OpenVINO with its hint LATENCY."""
    import openvino

    own = {"INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.compile_model(read_openvino(model, tensor), "CPU", settings | own).create_infer_request()
    request.set_input_tensor(openvino.Tensor(tensor))
    request.infer()
    infer: Callable[[], object] = request.infer
    return infer


def openvino_runs_per_s(model: str, tensor: np.ndarray, settings: dict[str, str], seconds: float) -> float:
    """Inferences a second of OpenVINO with its hint THROUGHPUT and as many requests as it asks for."""
    import openvino

    settings = {key: value for key, value in settings.items() if key not in ("NUM_STREAMS", "INFERENCE_NUM_THREADS")}
    compiled = openvino.compile_model(
        read_openvino(model, tensor), "CPU", settings | {"PERFORMANCE_HINT": "THROUGHPUT"}
    )
    queue = openvino.AsyncInferQueue(compiled)
    for _ in range(2 * len(queue)):
        queue.start_async({0: tensor})
    queue.wait_all()
    count, started = 0, time.perf_counter()
    while time.perf_counter() < started + seconds:
        queue.start_async({0: tensor}, share_inputs=True)
        count += 1
    queue.wait_all()
    return count / (time.perf_counter() - started)


def read_openvino(model: str, tensor: np.ndarray) -> Any:
    """The network, for inputs of the tensor's shape."""
    import openvino

    network = openvino.Core().read_model(model)
    network.reshape(list(tensor.shape))
    return network


def open_onnxruntime(model: str, tensor: np.ndarray, settings: dict[str, str], threads: int) -> Callable[[], object]:
    """ONNX Runtime on its CPU provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: tensor}
    session.run(None, feed)
    return lambda: session.run(None, feed)


def threads_runs_per_s(infer: Callable[[], object], seconds: float) -> float:
    """Inferences a second of one session that every processor calls."""
    counts, ends = [0] * (os.cpu_count() or 1), time.perf_counter() + seconds

    def work(place: int) -> None:
        while time.perf_counter() < ends:
            infer()
            counts[place] += 1

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(counts))]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def quantize(model: str, samples: str, out: str) -> None:
    """NNCF's int8 with its defaults."""
    import nncf
    import openvino

    rows = next(iter(np.load(samples).values()))
    network = openvino.Core().read_model(model)
    openvino.save_model(nncf.quantize(network, nncf.Dataset([row[None] for row in rows])), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
