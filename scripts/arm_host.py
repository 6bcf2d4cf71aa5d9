"""The same schedules compiled for this machine, against ONNX Runtime: times, because instructions are not cycles."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from arm_ours import Build, build
from bench_models import BenchModel
from bench_record import Figures

from compiler.target import host_isa

ROUNDS = 11
INFERENCES = 40
FEATURES = ("avx", "fma", "f16c", "amx", "bmi")
ORT = """import json, sys, time
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feed = {session.get_inputs()[0].name: numpy.load(sys.argv[2])}
session.run(None, feed)
times = []
for _ in range(int(sys.argv[4])):
    start = time.perf_counter()
    session.run(None, feed)
    times.append((time.perf_counter() - start) * 1e3)
print(json.dumps(sorted(times)))"""
PROFILE = """schema: 1
name: bench-host
target: tvm
target_options: {{mtriple: x86_64-linux-gnu, mcpu: {mcpu}, mattr: [{mattr}]}}
cpu: {{model: {mcpu}, cores: {cores}, isa: [{isa}]}}
provenance: {{cpu: this machine}}
"""


def write_profile(folder: Path) -> Path:
    """A profile of this machine: the core LLVM takes it for, with the vector extensions it really has."""
    import tvm  # noqa: F401  # registers what is asked for
    import tvm_ffi

    name = str(tvm_ffi.get_global_func("tvm.codegen.llvm.GetHostCPUName")())
    features = {
        str(key): bool(on) for key, on in tvm_ffi.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")().items()
    }
    mattr = [("+" if on else "-") + key for key, on in sorted(features.items()) if key.startswith(FEATURES)]
    isa = [flag for flag in sorted(host_isa()) if flag.startswith(FEATURES)]
    path = folder / "bench-host.yaml"
    cores = len(os.sched_getaffinity(0))
    path.write_text(PROFILE.format(mcpu=name, mattr=", ".join(mattr), cores=cores, isa=", ".join(isa)), "utf-8")
    return path


def compare_with_ort(model: BenchModel, cache: Path, rounds: int) -> Figures:
    """Medians of both in turns, with one and with two threads, and the ratio of each pair.

    Args:
        model: Built in fp32 for this machine.
        cache: fleetc's cache folder.
        rounds: Pairs of runs.
    """
    cache.mkdir(parents=True, exist_ok=True)
    wanted = Build(model, str(write_profile(cache)), "fp32", cache)
    built = build(wanted)
    if "unavailable" in built:
        return built
    given = model.folder / "in.npy"
    np.save(given, model.item())
    found: Figures = {"artifact": built}
    for threads in (1, 2):
        turns = [(_ours_ms(wanted.folder, given, threads), _ort_ms(model, given, threads)) for _ in range(rounds)]
        found[f"threads_{threads}"] = summarize(turns)
    return found


def summarize(turns: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Figures:
    """Of each turn's times, ours and theirs: medians over all turns, and median and quartiles of the turns' ratios.

    `fastest_ratio` is that of the fastest inferences of all: what other work on the machine disturbs least.
    """
    pairs = [(statistics.median(ours), statistics.median(theirs)) for ours, theirs in turns]
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    ours_ms, theirs_ms = (statistics.median(side) for side in zip(*pairs, strict=True))
    fastest_ms = [min(min(times) for times in side) for side in zip(*turns, strict=True)]
    return {
        "ours_ms": round(ours_ms, 3),
        "onnxruntime_ms": round(theirs_ms, 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
        "fastest_ms": [round(one, 3) for one in fastest_ms],
        "fastest_ratio": round(fastest_ms[0] / fastest_ms[1], 3),
        "pairs_ms": [[round(one, 3) for one in pair] for pair in pairs],
    }


def _ours_ms(folder: Path, given: Path, threads: int) -> list[float]:
    command = [str(folder / "run"), "--repeat", str(INFERENCES), str(given), str(given.with_name("host.npy"))]
    environment = {"TVM_NUM_THREADS": str(threads)}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return [float(time_us) / 1e3 for time_us in json.loads(told)["latency_us"]["sorted"]]


def _ort_ms(model: BenchModel, given: Path, threads: int) -> list[float]:
    command = [sys.executable, "-c", ORT, str(model.border), str(given), str(threads), str(INFERENCES)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(time_ms) for time_ms in json.loads(told)]
