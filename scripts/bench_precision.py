#!/usr/bin/env python3
"""Lower precision against its peers on one face model, into benchmarks/precision.json; see benchmarks/README.md.

    scripts/bench_precision.py --faces FOLDER [--model face.onnx] [--out FILE]

FOLDER holds one folder per person with two or more photographs. Contenders: ONNX Runtime in float32 and with its own
int8 quantizer, OpenVINO in float32 and bfloat16, OpenVINO with NNCF's defaults (`pip install nncf`; left out where it
is absent), and what `fleetc build` chose for this machine. All calibrate on the same photographs. Each runs in a
process of its own; latency and throughput are measured in turns, block by block. "fleetc at 99 %" is what the same
command chose when the limit was a hundredth of the float model's metric instead of the default of two points.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bench_quantizers import quantize_ort
from bench_record import commit, machine
from make_face_model import main as make_face_model
from precision_search import FAR, KEPT_PCT, SAMPLES, face_fleet, search, strict_search

from compiler.evaluate import Preprocess, Task, find_task, open_dataset
from compiler.fleet.data import Evaluation
from compiler.model.numerics import Arrays
from compiler.model.spec import TensorSpec

ROOT = Path(__file__).resolve().parent.parent
CONTENDER = str(Path(__file__).with_name("precision_contender.py"))
WARM_UP = 5
SPEC = TensorSpec("image", "float32", (1, 3, 150, 150))
ONE_NODE = '<ir_version: 8, opset_import: ["" : 13]> one_node (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }'
TOOLS = ("onnxruntime", "openvino", "nncf", "numpy", "onnx")

Figures = dict[str, Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Contender:
    """A runtime with a model: the runtime's name, the file it loads, and OpenVINO's precision hint."""

    kind: str
    path: Path
    hint: str = ""

    @property
    def bytes(self) -> int:
        """Bytes of the model's file and of the weights beside it."""
        weights = self.path.with_suffix(".bin")
        return self.path.stat().st_size + (weights.stat().st_size if weights.exists() else 0)


class Process:
    """A contender that is loaded and waits."""

    def __init__(self, contender: Contender) -> None:
        command = [sys.executable, CONTENDER, contender.kind, str(contender.path), contender.hint]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()

    def ask(self, work: str, **arguments: Any) -> Any:
        """Sends a request and waits for its answer."""
        assert self._child.stdin is not None  # noqa: S101  it was opened as a pipe
        self._child.stdin.write(json.dumps({"do": work, **arguments}) + "\n")
        self._child.stdin.flush()
        return self._line()

    def close(self) -> None:
        """Ends the process."""
        self._child.communicate()

    def _line(self) -> Any:
        assert self._child.stdout is not None  # noqa: S101
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError("a contender ended before it answered")
        return json.loads(line)


def main() -> None:
    """Makes the contenders, measures them, and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, required=True, help="one folder per person")
    parser.add_argument("--model", type=Path, help="the face model; made where none is named")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "precision.json")
    parser.add_argument("--rounds", type=int, default=9, help="turns of every contender (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement of throughput")
    arguments = parser.parse_args()
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="fleetc-bench-") as name:
        scratch = Path(name)
        model = arguments.model or _face_model(scratch)
        images, labels = _photographs(arguments.faces)
        fleet = face_fleet(model.absolute(), arguments.faces.absolute(), scratch)
        found_here = search(fleet, scratch)
        contenders = _peers(model, images, scratch) | {"fleetc": _ours(scratch / "dist" / "here")}
        strict = strict_search(fleet, scratch)
        if strict["built"]:
            contenders["fleetc at 99 %"] = _ours(scratch / "strict" / "strict")
        found = _measure(contenders, images, labels, scratch, arguments.rounds, arguments.seconds)
    result: Figures = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **commit(),
        "machine": machine(),
        "load_average_before": [round(one, 2) for one in load],
        "versions": dict(_versions()),
        "photographs": {"origin": arguments.faces.name, "count": len(images), "calibration": SAMPLES},
        "contenders": found,
        "search": found_here,
        "search_at_99_pct": strict,
    }
    result["bars"] = _bars(result)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for bar in result["bars"]:
        print(f"{'met   ' if bar['met'] else 'MISSED'} {bar['what']}: {bar['found']} (bar {bar['bar']})")


def _face_model(scratch: Path) -> Path:
    path = scratch / "face.onnx"
    if make_face_model([str(path)]):
        raise SystemExit("the face model could not be made")
    return path


def _photographs(folder: Path) -> tuple[Floats, npt.NDArray[Any]]:
    """Every photograph as an input (N, 3, 150, 150), and whom it shows."""
    data = open_dataset(folder, [SPEC], preprocess=Preprocess(margin_pct=10), labelled=True)
    batches = [np.asarray(batch["image"], np.float32) for batch in data.batches(32)]
    return np.concatenate(batches), np.asarray(data.labels)


def _ours(artifact: Path) -> Contender:
    payload = artifact / "payload"
    config = json.loads((payload / "config.json").read_text(encoding="utf-8"))
    return Contender("openvino", payload / "model.xml", config["INFERENCE_PRECISION_HINT"])


def _peers(model: Path, images: Floats, scratch: Path) -> dict[str, Contender]:
    calibration = images[np.linspace(0, len(images) - 1, SAMPLES).round().astype(int)]
    samples: list[Arrays] = [{SPEC.name: image[None]} for image in calibration]
    found = {
        "onnxruntime fp32": Contender("onnxruntime", model),
        "onnxruntime int8": Contender("onnxruntime", quantize_ort(model, samples, scratch)),
        "openvino fp32": Contender("openvino", _convert(model, scratch / "fp32.xml"), "f32"),
        "openvino bf16": Contender("openvino", _convert(model, scratch / "bf16.xml", half=True), "bf16"),
    }
    if (nncf := _quantize_nncf(model, calibration, scratch)) is not None:
        found["openvino + nncf"] = Contender("openvino", nncf, "f32")
    return found


def _convert(model: Path, path: Path, *, half: bool = False) -> Path:
    import openvino as ov

    ov.save_model(_fixed(model), path, compress_to_fp16=half)
    return path


def _fixed(model: Path) -> Any:
    """The model as OpenVINO reads it, for one photograph at a time."""
    import openvino as ov

    network = ov.Core().read_model(model)
    network.reshape(list(SPEC.shape))
    return network


def _quantize_nncf(model: Path, calibration: Floats, scratch: Path) -> Path | None:
    try:
        import nncf
    except ImportError:
        return None
    import openvino as ov

    data = nncf.Dataset([image[None] for image in calibration])
    ov.save_model(nncf.quantize(_fixed(model), data), scratch / "nncf.xml", compress_to_fp16=False)
    return scratch / "nncf.xml"


def _measure(
    contenders: Mapping[str, Contender], images: Floats, labels: npt.NDArray[Any], scratch: Path, rounds: int, s: float
) -> dict[str, Figures]:
    np.save(scratch / "one.npy", images[:1])
    np.save(scratch / "all.npy", images)
    with _running(contenders) as running:
        latencies: dict[str, list[list[float]]] = {name: [] for name in contenders}
        rates: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, process in running.items():
                latencies[name].append(process.ask("latency", runs=40, inputs=str(scratch / "one.npy"))[WARM_UP:])
        for _ in range(max(3, rounds // 3)):
            for name, process in running.items():
                rates[name].append(process.ask("throughput", seconds=s))
        outputs = {name: _outputs(process, scratch) for name, process in running.items()}
    task = find_task(Evaluation(task="verification", path=scratch, far=(FAR,)))
    reference = outputs["onnxruntime fp32"]
    return {
        name: {
            "artifact_bytes": one.bytes,
            "memory": _memory(one, scratch),
            **_latency(latencies[name], latencies["onnxruntime fp32"]),
            **_throughput(rates[name]),
            **_accuracy(task, reference, outputs[name], labels),
        }
        for name, one in contenders.items()
    }


@contextmanager
def _running(contenders: Mapping[str, Contender]) -> Iterator[dict[str, Process]]:
    processes = {name: Process(one) for name, one in contenders.items()}
    try:
        yield processes
    finally:
        for process in processes.values():
            process.close()


def _outputs(process: Process, scratch: Path) -> Floats:
    process.ask("outputs", inputs=str(scratch / "all.npy"), path=str(scratch / "out.npy"))
    found: Floats = np.load(scratch / "out.npy")
    return found


def _memory(contender: Contender, scratch: Path) -> Figures:
    """Peak resident memory of a process that loads the model and runs it, the least of three; and less one node's."""
    peaks = [_peak(contender, scratch / "one.npy") for _ in range(3)]
    np.save(scratch / "four.npy", np.zeros((1, 4), np.float32))
    empty = [_peak(Contender(contender.kind, _one_node(scratch)), scratch / "four.npy") for _ in range(3)]
    return {"peak_bytes": min(peaks), "model_bytes": min(peaks) - min(empty)}


def _peak(contender: Contender, inputs: Path) -> int:
    process = Process(contender)
    try:
        process.ask("latency", runs=1, inputs=str(inputs))
        return int(process.ask("peak"))
    finally:
        process.close()


def _one_node(scratch: Path) -> Path:
    import onnx.parser

    path = scratch / "one-node.onnx"
    if not path.exists():
        onnx.save(onnx.parser.parse_model(ONE_NODE), path)
    return path


def _latency(blocks: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> Figures:
    """Percentiles of all runs; and against ONNX Runtime in float32 the ratio of the fastest runs of the same turn."""
    runs = [time_ms for block in blocks for time_ms in block]
    ratios = [min(theirs) / min(ours) for ours, theirs in zip(blocks, base, strict=True)]
    return {
        "latency_ms": {
            "p50": round(statistics.median(runs), 3),
            "p90": round(float(np.percentile(runs, 90)), 3),
            "fastest": round(min(runs), 3),
            "fastest_of_each_turn": [round(min(block), 3) for block in blocks],
        },
        "latency_ratio": round(statistics.median(ratios), 3),
    }


def _throughput(turns: Sequence[Mapping[str, float]]) -> Figures:
    """The best way to serve, by its best turn: what else the machine does only takes away."""
    best = {way: max(turn[way] for turn in turns) for way in turns[0]}
    way = max(best, key=lambda name: best[name])
    every = {name: [round(turn[name], 1) for turn in turns] for name in best}
    return {"items_per_s": round(best[way], 1), "served": way, "items_per_s_of_each_turn": every}


def _accuracy(task: Task, reference: Floats, found: Floats, labels: npt.NDArray[Any]) -> Figures:
    drop = task.drop({"embedding": reference}, {"embedding": found}, labels, limit_pct=2.0)
    return {
        "tar_pct": round(drop.candidate.value_pct, 2),
        "tar_drop_points": round(drop.drop_pct, 2),
        "tar_drop_interval": [None if end is None else round(end, 2) for end in (drop.low_pct, drop.high_pct)],
    }


def _bars(result: Figures) -> list[Figures]:
    found = result["contenders"]
    ours, base, nncf = found["fleetc"], found["onnxruntime fp32"], found.get("openvino + nncf")
    strict = found.get("fleetc at 99 %", base)
    faster, strictly = (one["items_per_s"] / base["items_per_s"] for one in (ours, strict))
    metric = 100 * strict["tar_pct"] / base["tar_pct"]
    original = found["openvino fp32"]["memory"]["model_bytes"]
    saved = 100 * (1 - ours["memory"]["model_bytes"] / original)
    bars = [
        _bar("throughput against ONNX Runtime float32", faster, 2.5),
        _bar("points of TAR@FAR=0.001 lost", ours["tar_drop_points"], 2.0, most=True),
        _bar(
            "artifact against the float32 model's file",
            ours["artifact_bytes"] / base["artifact_bytes"],
            0.27,
            most=True,
        ),
        _bar("percent of run memory saved against OpenVINO float32", saved, 40.0),
        _bar("seconds of the whole search for one device", result["search"]["first_device_s"], 600.0, most=True),
        _bar("40 -> 100 images/s: speed-up over ONNX Runtime float32", strictly, 2.5),
        _bar("40 -> 100 images/s: percent of the metric kept", metric, KEPT_PCT),
    ]
    if nncf:
        rate = ours["items_per_s"] / nncf["items_per_s"]
        bars.insert(1, _bar("throughput against OpenVINO + NNCF's defaults", rate, 1.0))
    return bars


def _bar(what: str, value: float, bar: float, *, most: bool = False) -> Figures:
    met = value <= bar if most else value >= bar
    return {"what": what, "found": round(value, 3), "bar": bar, "at": "most" if most else "least", "met": met}


def _versions() -> Iterator[tuple[str, str]]:
    for name in TOOLS:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "absent"


if __name__ == "__main__":
    main()
