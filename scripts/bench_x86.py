#!/usr/bin/env python3
"""Models on this machine, built by the target `tvm`, beside OpenVINO and ONNX Runtime, into benchmarks/x86.json.

    scripts/bench_x86.py                                   all of DEFAULT, in int8 and fp32
    scripts/bench_x86.py --model face --precision int8 --rounds 40
    scripts/bench_x86.py --model face --precision bf16     beside OpenVINO in bf16
    scripts/bench_x86.py --nncf ENVIRONMENT/bin/python     with NNCF's int8 beside ours (nncf and openvino are there)
    scripts/bench_x86.py --loops                           adds to rows that are there where ours spends its time
    scripts/bench_x86.py --prune auto --faces FOLDER --nncf ENVIRONMENT/bin/python

The last measures the face model alone, as `fleetc build` chooses it with and without `--prune auto` inside the limit of
2 points of TAR on the photographs of FOLDER (one folder per person), beside NNCF's int8 unpruned, with what each
loses on them.

Short runs of all in turn. Latency is of one item, on one and on two threads; throughput is of all processors, at the
best of the batch sizes 1 and 8 (1 alone where a network cannot be reshaped). OpenVINO runs with the hint that is made
for either, ONNX Runtime with as many calls at a time as there are processors, and ours as one process with one thread
for each. All of them may use every instruction set that this processor has, AMX included. What is compared is the
median of the quotients of neighbouring runs and, for latency, the fastest inference of each, which other work on the
machine disturbs least. `share_of_peak` is the model's multiply-accumulates over what one thread can do in that time by
the instruction that ours uses, on registers alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import x86_faces
from arm_host import write_profile
from arm_ours import FLEETC
from bench_models import BenchModel, prepare_model
from bench_quantizers import quantize_ort
from bench_record import ROOT, Figures, commit, machine, versions
from platformdirs import user_cache_path
from x86_loop import hot_loops
from x86_peak import measure_peak

from compiler.passes.macs import count_macs
from compiler.target import host_isa

TOOLS = ("fleetc", "numpy", "openvino", "onnxruntime", "apache-tvm", "apache-tvm-ffi", "ziglang")
ROUNDS = 11
RUN_S = 0.4
"""Seconds of one run: long beside a start, short beside the minutes in which a busy host changes."""

SAMPLED_S = 3.0
"""Seconds of inferences in which loops are looked for."""

THREADS = (1, 2)
DEFAULT = ("face", "mobilenet", "resnet50", "ocr", "encoder")
PEER = ROOT / "scripts" / "x86_peer_run.py"
BF16 = json.dumps({"INFERENCE_PRECISION_HINT": "bf16"})
FLEET = """schema: 1
model: {model}
calibration: {{path: {samples}}}
devices:
  board: {{profile: {profile}, dims: {dims}, precision: {precision}}}
"""


@dataclass(frozen=True)
class Contender:
    """What is measured.

    Args:
        name: Who.
        latency_ms: Threads, count → sorted milliseconds of single inferences of one item.
        items_per_s: Batch size, seconds → items a second on all processors.
    """

    name: str
    latency_ms: Callable[[int, int], list[float]]
    items_per_s: Callable[[int, float], float]


def main() -> None:
    """Builds, measures, and writes the file after each model and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "x86.json")
    parser.add_argument("--model", nargs="*", default=DEFAULT)
    parser.add_argument("--precision", nargs="*", default=["int8", "fp32"])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of short runs (default: %(default)s)")
    parser.add_argument("--nncf", help="the Python of an environment with nncf and openvino")
    parser.add_argument("--prune", choices=["auto"], help="the face model, pruned inside the accuracy limit")
    parser.add_argument("--faces", type=Path, help="photographs that judge it, one folder per person")
    parser.add_argument("--cache", type=Path, default=user_cache_path("fleetc-bench"), help="(default: %(default)s)")
    parser.add_argument("--build-only", action="store_true", help="builds everything and measures nothing")
    parser.add_argument(
        "--loops", action="store_true", help="adds to rows that are measured where ours spends its time"
    )
    given = parser.parse_args()
    if given.prune and not (given.faces and given.nncf):
        parser.error("--prune needs --faces and --nncf")
    cache = given.cache.resolve()
    runs = json.loads(given.out.read_text("utf-8"))["runs"] if given.out.exists() else {}
    for name, row in _rows(given, cache):
        runs[name] = runs.get(name, {}) | row if given.loops else row
        print(name, json.dumps(row, indent=1))
        if not given.build_only:
            given.out.write_text(json.dumps(head() | {"runs": runs}, indent=1) + "\n", "utf-8")


def _rows(given: argparse.Namespace, cache: Path) -> Iterator[tuple[str, Figures]]:
    """Each row's name and figures, as soon as it is measured; without times where builds alone are asked for."""

    def timed(model: BenchModel, precision: str, contenders: Sequence[Contender]) -> Figures:
        if given.build_only:
            return {}
        found = measure(contenders, given.rounds, model.batches)
        return with_shares(found, macs_of(model), measure_peak(precision, host_isa(), cache))

    if given.loops:
        for name in given.model:
            model = prepare_model(name, cache)
            for precision in given.precision:
                yield f"{name} {precision}", _loops(model, build(model, "tvm", precision, 1, cache))
        return
    if given.prune:
        model = prepare_model("face", cache)
        faces = x86_faces.prepare_faces(model, given.faces)
        contenders, losses = _pruned_contenders(faces, given.prune, cache, given.nncf)
        yield f"face, prune {given.prune}", {"accuracy": losses, **timed(model, "int8", contenders)}
        return
    for name in given.model:
        model = prepare_model(name, cache)
        for precision in given.precision:
            yield f"{name} {precision}", timed(model, precision, list(_contenders(model, precision, cache, given.nncf)))


def _loops(model: BenchModel, folder: Path) -> Figures:
    """Where a bundle spends its time, with what it was built from."""
    inputs = _write_inputs(model)
    count = max(3, int(1e3 * SAMPLED_S / min(_ours({1: folder}, inputs).latency_ms(1, 3))))
    return {"loops": {**commit(), **hot_loops(folder, inputs[1], count)}}


def head() -> Figures:
    """When, what and where."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **commit(),
        "machine": machine(),
        "versions": versions(TOOLS),
        "flags": [flag for flag in sorted(host_isa()) if "vnni" in flag or "bf16" in flag or flag.startswith("amx")],
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def macs_of(model: BenchModel) -> int | None:
    """Multiply-accumulates of one item; None where a shape is not known."""
    return count_macs(ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(model.border), data_prop=True)))


def with_shares(found: Figures, macs: int | None, peak: Figures) -> Figures:
    """The figures with each contender's share of the peak on one thread, by its fastest inference."""
    latency = dict(found["latency, threads 1"])
    if macs and (gmacs_per_s := peak.get("gmacs_per_s")):
        for name, row in latency.items():
            if "fastest_ms" in row:
                latency[name] = row | {"share_of_peak": round(macs / 1e6 / row["fastest_ms"] / gmacs_per_s, 3)}
    return found | {"latency, threads 1": latency, "macs": macs, "peak, threads 1": peak}


def measure(contenders: Sequence[Contender], rounds: int, batches: Sequence[int]) -> Figures:
    """Latency and throughput of all in turn; ours is the first."""
    found: Figures = {}
    for threads in THREADS:
        counts = {one.name: max(3, int(1e3 * RUN_S / min(one.latency_ms(threads, 3)))) for one in contenders}
        turns = [{one.name: one.latency_ms(threads, counts[one.name]) for one in contenders} for _ in range(rounds)]
        medians = [{name: statistics.median(times) for name, times in turn.items()} for turn in turns]
        fastest = {name: min(min(turn[name]) for turn in turns) for name in turns[0]}
        found[f"latency, threads {threads}"] = {
            name: {"median_ms": _median(medians, name), "fastest_ms": round(fastest[name], 3)} for name in fastest
        } | {
            f"ours over {name}": _quotients(medians, contenders[0].name, name)
            | {"of the fastest": round(fastest[contenders[0].name] / fastest[name], 3)}
            for name in list(fastest)[1:]
        }
    best = [
        {one.name: max(one.items_per_s(batch, RUN_S) for batch in batches) for one in contenders} for _ in range(rounds)
    ]
    found["throughput"] = {name: {"items_per_s": _median(best, name)} for name in best[0]} | {
        f"ours over {name}": _quotients(best, contenders[0].name, name) for name in list(best[0])[1:]
    }
    return found


def _median(turns: Sequence[Mapping[str, float]], name: str) -> float:
    return round(statistics.median(turn[name] for turn in turns), 3)


def _quotients(turns: Sequence[Mapping[str, float]], ours: str, other: str) -> Figures:
    ratios = sorted(turn[ours] / turn[other] for turn in turns)
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"median": round(statistics.median(ratios), 3), "quartiles": [round(low, 3), round(high, 3)]}


def _contenders(model: BenchModel, precision: str, cache: Path, nncf: str | None) -> Iterator[Contender]:
    """Everybody who computes the model in a precision; ours by the target `tvm` first."""
    inputs = _write_inputs(model)
    yield _ours({batch: build(model, "tvm", precision, batch, cache) for batch in model.batches}, inputs)
    folder = build(model, "openvino", precision, 1, cache) / "payload"
    settings = (folder / "config.json").read_text("utf-8")
    yield _peer("fleetc, openvino", "openvino", sys.executable, folder / "model.xml", settings, inputs)
    if precision == "fp32":
        exact = json.dumps({"INFERENCE_PRECISION_HINT": "f32"})
        yield _peer("openvino", "openvino", sys.executable, model.border, exact, inputs)
        yield _peer("openvino bf16", "openvino", sys.executable, model.border, BF16, inputs)
        yield _peer("onnxruntime", "onnxruntime", sys.executable, model.source, "{}", inputs)
        return
    if precision == "bf16":
        yield _peer("openvino bf16", "openvino", sys.executable, model.border, BF16, inputs)
        return
    if nncf:
        path = _quantize_nncf(model, nncf, model.folder / "samples.npz", "nncf.xml")
        yield _peer("openvino, nncf", "openvino", sys.executable, path, "{}", inputs)
    if (quantized := _ort_int8(model)) is not None:
        yield _peer("onnxruntime", "onnxruntime", sys.executable, quantized, "{}", inputs)


def _pruned_contenders(faces: x86_faces.Faces, prune: str, cache: Path, nncf: str) -> tuple[list[Contender], Figures]:
    """The face model by `tvm`, pruned and not, and by NNCF, calibrated alike; and what each loses on photographs."""
    model, inputs = faces.model, _write_inputs(faces.model)
    pruned, whole = (
        {batch: _build_faces(faces, how, batch, cache) for batch in model.batches} for how in (prune, "off")
    )
    path = _quantize_nncf(model, nncf, faces.calibration, "nncf-faces.xml")
    contenders = [
        _ours(pruned, inputs),
        _ours(whole, inputs, "ours, unpruned"),
        _peer("openvino, nncf", "openvino", sys.executable, path, "{}", inputs),
    ]
    expected = faces.expected()
    losses = {
        f"{name}, batch {batch}": faces.loss(expected, x86_faces.run_build(folder, faces.dataset))
        | x86_faces.chosen_in(folder)
        for name, folders in (("ours", pruned), ("ours, unpruned", whole))
        for batch, folder in folders.items()
    }
    return contenders, losses | {"openvino, nncf": faces.loss(expected, x86_faces.run_openvino(path, faces.dataset))}


def _write_inputs(model: BenchModel) -> dict[int, Path]:
    """Batch size → a file with that many items."""
    inputs = {batch: model.folder / f"in-{batch}.npy" for batch in model.batches}
    for batch, path in inputs.items():
        np.save(path, np.repeat(model.item(), batch, axis=0))
    return inputs


def _quantize_nncf(model: BenchModel, nncf: str, samples: Path, name: str) -> Path:
    """NNCF's int8 in a file of that name beside the model; made where it is absent."""
    path = model.folder / name
    if not path.exists():
        command = [nncf, str(PEER), "nncf", str(model.border), str(samples), str(path)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return path


def _ort_int8(model: BenchModel) -> Path | None:
    """What ONNX Runtime's quantizer makes; None where it fails, or makes what ONNX Runtime does not open."""
    quantized = model.folder / "ort-int8.onnx"
    try:
        if not quantized.exists():
            quantize_ort(model.source, [{model.input: row[None]} for row in model.samples()], model.folder)
        onnxruntime.InferenceSession(str(quantized), providers=["CPUExecutionProvider"])
    except Exception as error:  # it ends with whatever it meets in a network
        print(f"{model.name}: ONNX Runtime's int8: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    return quantized


def build(model: BenchModel, target: str, precision: str, batch: int, cache: Path) -> Path:
    """The folder of an artifact for this machine."""
    profile = write_profile(cache)
    if target == "openvino":
        lines = [line for line in profile.read_text("utf-8").splitlines() if not line.startswith("target")]
        profile = cache / "bench-host-openvino.yaml"
        profile.write_text("\n".join([*lines, "target: openvino", ""]), "utf-8")
    paths = {"model": model.source.resolve(), "samples": (model.folder / "samples.npz").resolve()}
    dims = json.dumps(model.dims(batch))
    text = FLEET.format(**paths, profile=profile, dims=dims, precision=precision)
    return _deliver(text, cache / "dist" / f"x86-{model.name}-{target}-{precision}-{batch}", cache)


def _build_faces(faces: x86_faces.Faces, prune: str, batch: int, cache: Path) -> Path:
    """The folder of what a search chooses for this machine of the face model by `tvm` inside the accuracy limit."""
    dims = json.dumps(faces.model.dims(batch))
    text = faces.fleet(prune=prune, profile=write_profile(cache), dims=dims)
    return _deliver(text, cache / "dist" / f"x86-face-tvm-prune-{prune}-{batch}", cache)


def _deliver(fleet: str, folder: Path, cache: Path) -> Path:
    """Builds the one device, `board`, of a fleet file; the folder of its artifact."""
    path = folder.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(fleet, "utf-8")
    command = [FLEETC, "build", str(path), "--out", str(folder), "--cache", str(cache), "--json"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{path}: {ended.stdout[-1500:]}")
    return folder / "board"


def _ours(folders: Mapping[int, Path], inputs: Mapping[int, Path], name: str = "ours") -> Contender:
    """The bundle's own program: one process for latency, one for each processor for throughput."""

    def start(batch: int, threads: int, count: int, before: Sequence[str] = ()) -> subprocess.Popen[str]:
        program, given = folders[batch] / "run", inputs[batch]
        command = [*before, str(program), "--repeat", str(count), str(given), os.devnull]
        environment = {**os.environ, "TVM_NUM_THREADS": str(threads)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def times_ms(process: subprocess.Popen[str]) -> list[float]:
        told, _ = process.communicate()
        if process.returncode:
            sys.exit(f"{process.args!r} ended with exit code {process.returncode}")
        return [float(time_us) / 1e3 for time_us in json.loads(told)["latency_us"]["sorted"]]

    def items_per_s(batch: int, seconds: float) -> float:
        single_ms = min(times_ms(start(batch, 1, 3)))
        count = max(3, int(1e3 * seconds / single_ms))
        processors = sorted(os.sched_getaffinity(0))
        running = [start(batch, 1, count, ("taskset", "-c", str(processor))) for processor in processors]
        return sum(1e3 * batch / statistics.fmean(times_ms(process)) for process in running)

    return Contender(name, lambda threads, count: times_ms(start(1, threads, count)), items_per_s)


def _peer(name: str, kind: str, python: str, model: Path, settings: str, inputs: Mapping[int, Path]) -> Contender:
    """A runtime in a process of its own."""

    def run(batch: int, *rest: object) -> str:
        command = [python, str(PEER), kind, str(model), str(inputs[batch]), settings, *map(str, rest)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def latency_ms(threads: int, count: int) -> list[float]:
        return [float(time_ms) for time_ms in json.loads(run(1, "latency", threads, count))]

    return Contender(name, latency_ms, lambda batch, seconds: float(run(batch, "throughput", seconds)))


if __name__ == "__main__":
    main()
