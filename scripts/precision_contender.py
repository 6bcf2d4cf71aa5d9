#!/usr/bin/env python3
"""One runtime with one model in a process of its own, which does what its standard input says; for bench_precision.py.

    scripts/precision_contender.py onnxruntime|openvino MODEL [HINT]

Requests are JSON lines, and so are the answers: {"do": "latency", "runs": 50}, {"do": "throughput", "seconds": 3},
{"do": "outputs", "inputs": "in.npy", "path": "out.npy"}, {"do": "peak"}. Between requests the process sleeps.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
THREADS = 2


class Contender(Protocol):
    """A loaded model."""

    def infer(self, image: Floats) -> Floats:
        """One inference."""

    def items_per_s(self, seconds: float) -> dict[str, float]:
        """Images per second of every way to serve many requests that is worth trying."""


class OnnxRuntime:
    """ONNX Runtime on all threads, and for throughput also one session per thread."""

    def __init__(self, path: str, hint: str) -> None:
        self._path = path
        self._session = self._open(THREADS)
        (self._input,) = self._session.get_inputs()
        self._shape = [size if isinstance(size, int) else 1 for size in self._input.shape]

    def _open(self, threads: int) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        return ort.InferenceSession(self._path, options, providers=["CPUExecutionProvider"])

    def infer(self, image: Floats) -> Floats:
        """One inference on all threads."""
        found: Floats = self._session.run(None, {self._input.name: image})[0]
        return found

    def items_per_s(self, seconds: float) -> dict[str, float]:
        """All threads on one request at a time, and one single-threaded session per thread side by side."""
        image = np.full([1, *self._shape[1:]], 100, np.float32)
        sessions = [self._open(1) for _ in range(THREADS)]
        feeds = {self._input.name: image}
        found = {"one after another": _count([lambda: self.infer(image)], seconds)}
        runs: list[Callable[[], object]] = [lambda session=one: session.run(None, feeds) for one in sessions]  # type: ignore[misc]
        return found | {"a session per thread": _count(runs, seconds)}


class OpenVino:
    """OpenVINO with the latency hint, and for throughput with the other one."""

    def __init__(self, path: str, hint: str) -> None:
        import openvino as ov

        self._ov, self._core, self._hint = ov, ov.Core(), hint
        self._network = self._core.read_model(path)
        self._network.reshape([1 if size.is_dynamic else size for size in self._network.input(0).partial_shape])
        self._request = self._compile("LATENCY", NUM_STREAMS="1").create_infer_request()

    def _compile(self, mode: str, **more: str) -> Any:
        config = {"INFERENCE_NUM_THREADS": str(THREADS), "PERFORMANCE_HINT": mode, **more}
        config["INFERENCE_PRECISION_HINT"] = self._hint or "f32"
        return self._core.compile_model(self._network, "CPU", config)

    def infer(self, image: Floats) -> Floats:
        """One inference on all threads."""
        self._request.infer([image], share_inputs=True)
        return np.array(self._request.get_output_tensor(0).data, np.float32)

    def items_per_s(self, seconds: float) -> dict[str, float]:
        """OpenVINO's throughput mode with its own number of requests in flight."""
        compiled = self._compile("THROUGHPUT")
        image = np.full([int(size) for size in compiled.input(0).shape], 100, np.float32)
        queue = self._ov.AsyncInferQueue(compiled)
        for _ in range(4 * len(queue)):
            queue.start_async([image])
        queue.wait_all()
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            queue.start_async([image])
            done += 1
        queue.wait_all()
        return {"throughput mode": done / (time.perf_counter() - started)}


def main() -> None:
    """Loads the model, says so, and answers until its input closes."""
    kind, path, hint = (*sys.argv[1:], "")[:3]
    contender: Contender = OpenVino(path, hint) if kind == "openvino" else OnnxRuntime(path, hint)
    print(json.dumps({"loaded": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(contender, json.loads(line))), flush=True)


def _answer(contender: Contender, request: dict[str, Any]) -> Any:
    work = request["do"]
    if work == "latency":
        image = np.load(request["inputs"])
        return [_milliseconds(contender, image) for _ in range(request["runs"])]
    if work == "throughput":
        return contender.items_per_s(request["seconds"])
    if work == "outputs":
        images = np.load(request["inputs"])
        np.save(request["path"], np.concatenate([contender.infer(images[i : i + 1]) for i in range(len(images))]))
        return True
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))


def _milliseconds(contender: Contender, image: Floats) -> float:
    started = time.perf_counter()
    contender.infer(image)
    return (time.perf_counter() - started) * 1e3


def _count(runs: list[Callable[[], object]], seconds: float) -> float:
    """Calls per second of all functions together, each in a thread of its own."""
    counts = [0] * len(runs)
    end = time.perf_counter() + seconds

    def work(index: int) -> None:
        while time.perf_counter() < end:
            runs[index]()
            counts[index] += 1

    started = time.perf_counter()
    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
