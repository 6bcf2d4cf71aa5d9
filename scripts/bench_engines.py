"""Dask, which the build server uses, beside Ray: start, memory and the same attempts, as the part `engines` of a file.

python scripts/bench_engines.py --ray-python X/bin/python [--out benchmarks/server.json]

Ray lives in an environment of its own: `python -m venv X; X/bin/pip install ray psutil`. An attempt here is what the
server sends to a worker: one JSON text to a function, which starts a process and waits for it. Each engine is measured
three times, in a process of its own, with two slots on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from bench_record import Figures, commit, machine

RUNS = 3
COMMON = """
import json, os, subprocess, sys, time
import psutil
def work(call):
    return subprocess.run(["true"], check=True).returncode + len(json.loads(call))
def memory():
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    return len(family), round(sum(one.memory_full_info().pss for one in family) / 2**20, 1)
began = time.perf_counter()
CALLS = [json.dumps({"attempt": str(n), "token": "x" * 43}) for n in range(100)]
"""
DASK = """
import distributed
imported = time.perf_counter()
cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0")
client = distributed.Client(cluster)
client.wait_for_workers(1)
started = time.perf_counter()
client.submit(work, CALLS[0], pure=False).result()
first = time.perf_counter()
client.gather([client.submit(work, call, pure=False) for call in CALLS])
done = time.perf_counter()
"""
RAY = """
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
imported = time.perf_counter()
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
remote = ray.remote(work)
started = time.perf_counter()
ray.get(remote.remote(CALLS[0]))
first = time.perf_counter()
ray.get([remote.remote(call) for call in CALLS])
done = time.perf_counter()
"""
REPORT = """
processes, pss = memory()
points = {"import_s": imported - began, "start_s": started - imported, "first_s": first - started,
          "hundred_s": done - first}
figures = {name: round(value, 3) for name, value in points.items()}
print(json.dumps({**figures, "processes": processes, "pss_mib": pss, "version": VERSION}))
"""


def main() -> int:
    """Measures both in turn, and writes the part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray-python", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    load = [round(one, 2) for one in os.getloadavg()]
    engines = {
        "dask": (Path(sys.executable), DASK, "distributed.__version__"),
        "ray": (options.ray_python, RAY, "ray.__version__"),
    }
    runs: dict[str, list[Figures]] = {name: [] for name in engines}
    for _ in range(RUNS):  # in turn: what else the machine does meets both
        for name, (python, program, version) in engines.items():
            runs[name].append(measure(python, COMMON + program + REPORT.replace("VERSION", version)))
    part = {**commit(), "machine": machine(), "load_average_before": load, **runs}
    value = json.loads(options.out.read_text("utf-8")) if options.out and options.out.is_file() else {}
    text = json.dumps({**value, "engines": part}, indent=1) + "\n"
    if options.out is not None:
        options.out.write_text(text, "utf-8")
    print(json.dumps(part, indent=1))
    return 0


def measure(python: Path, program: str) -> Figures:
    """One engine in a process of its own."""
    done = subprocess.run([python, "-P", "-c", program], check=True, capture_output=True, text=True, timeout=300)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    sys.exit(main())
