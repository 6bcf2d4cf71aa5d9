#!/usr/bin/env python3
"""The face model on this machine, by the target `tvm` and by `openvino`, into benchmarks/x86.json.

    scripts/bench_x86.py                                  int8 and fp32, batches 1 and 8, on one and on two threads
    scripts/bench_x86.py --precision int8 --batch 1 --threads 1 --rounds 40

Short runs of both in turn; what is compared is the fastest inference of each, which other work on the machine disturbs
least, and the median of the quotients of neighbouring runs. OpenVINO computes with all the instruction sets that this
processor has, AMX included, and with its hint LATENCY.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from arm_host import summarize, write_profile
from arm_models import BenchModel, prepare_model
from arm_ours import FLEETC
from bench_record import ROOT, Figures, commit, machine, versions
from platformdirs import user_cache_path

TOOLS = ("fleetc", "numpy", "openvino", "apache-tvm", "apache-tvm-ffi", "ziglang")
ROUNDS, INFERENCES = 15, 60
FLEET = """schema: 1
model: {model}
calibration: {{path: {samples}}}
devices:
  board: {{profile: {profile}, batch: {batch}, precision: {precision}}}
"""
OPENVINO = """import json, sys, time
import numpy, openvino
folder, given, threads, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
settings = json.load(open(folder + "/payload/config.json"))
settings |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY"}
compiled = openvino.Core().compile_model(folder + "/payload/model.xml", "CPU", settings)
request = compiled.create_infer_request()
request.set_input_tensor(openvino.Tensor(numpy.load(given)))
request.infer()
times = []
for _ in range(count):
    start = time.perf_counter()
    request.infer()
    times.append((time.perf_counter() - start) * 1e3)
print(json.dumps(sorted(times)))"""


def main() -> None:
    """Builds, measures, and writes the file after each combination."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "x86.json")
    parser.add_argument("--precision", nargs="*", default=["int8", "fp32"])
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="pairs of timed runs (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=user_cache_path("fleetc-bench"), help="(default: %(default)s)")
    given = parser.parse_args()
    model = prepare_model("face", given.cache.resolve())
    figures = json.loads(given.out.read_text("utf-8"))["runs"] if given.out.exists() else {}
    for precision in given.precision:
        for batch in given.batch:
            folders = {
                name: build(model, name, precision, batch, given.cache.resolve()) for name in ("tvm", "openvino")
            }
            for threads in given.threads:
                name = f"{precision} batch {batch} threads {threads}"
                figures[name] = measure(model, folders, batch, threads, given.rounds)
                print(name, {key: figures[name][key] for key in ("fastest_ms", "fastest_ratio", "ratio")})
                head = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **commit()}
                head |= {"machine": machine(), "versions": versions(TOOLS), "flags": vector_flags()}
                head |= {"load_average": [round(value, 2) for value in os.getloadavg()]}
                given.out.write_text(json.dumps(head | {"runs": figures}, indent=1) + "\n", "utf-8")


def vector_flags() -> list[str]:
    """This processor's instruction sets for integers of eight bits."""
    line = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    return [flag for flag in line.split() if "vnni" in flag or flag.startswith("amx")]


def build(model: BenchModel, target: str, precision: str, batch: int, cache: Path) -> Path:
    """The folder of an artifact for this machine."""
    profile = write_profile(cache)
    if target == "openvino":
        lines = [line for line in profile.read_text("utf-8").splitlines() if not line.startswith("target")]
        profile = cache / "bench-host-openvino.yaml"
        profile.write_text("\n".join([*lines, "target: openvino", ""]), "utf-8")
    folder = cache / "dist" / f"x86-{target}-{precision}-{batch}"
    fleet = folder.with_suffix(".yaml")
    fleet.parent.mkdir(parents=True, exist_ok=True)
    paths = {"model": model.source.resolve(), "samples": (model.folder / "samples.npz").resolve()}
    fleet.write_text(FLEET.format(**paths, profile=profile, precision=precision, batch=batch), "utf-8")
    command = [FLEETC, "build", str(fleet), "--out", str(folder), "--cache", str(cache), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{target} {precision}: {(ended.stdout + ended.stderr)[-1500:]}")
    return folder / "board"


def measure(model: BenchModel, folders: dict[str, Path], batch: int, threads: int, rounds: int) -> Figures:
    """Times of both in turn, on cores that are theirs alone."""
    given = model.folder / f"in-{batch}.npy"
    np.save(given, np.repeat(model.picture(), batch, axis=0))
    count = max(INFERENCES // batch, 5)
    turns = [
        (ours_ms(folders["tvm"], given, threads, count), openvino_ms(folders["openvino"], given, threads, count))
        for _ in range(rounds)
    ]
    found = summarize(turns)
    found["openvino_ms"] = found.pop("onnxruntime_ms")
    return found


def ours_ms(folder: Path, given: Path, threads: int, count: int) -> list[float]:
    """Times of single inferences of a bundle, sorted."""
    command = [str(folder / "run"), "--repeat", str(count), str(given), str(given.with_name("host.npy"))]
    environment = {"TVM_NUM_THREADS": str(threads)}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return [float(time_us) / 1e3 for time_us in json.loads(told)["latency_us"]["sorted"]]


def openvino_ms(folder: Path, given: Path, threads: int, count: int) -> list[float]:
    """Times of single inferences of an IR, sorted."""
    command = [sys.executable, "-c", OPENVINO, str(folder), str(given), str(threads), str(count)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ)).stdout
    return [float(time_ms) for time_ms in json.loads(told)]


if __name__ == "__main__":
    main()
