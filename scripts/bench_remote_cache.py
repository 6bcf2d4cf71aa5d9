#!/usr/bin/env python3
"""What a shared cache saves, into benchmarks/remote_cache.json: a build with an empty store, alone and with it.

    scripts/bench_remote_cache.py                                      a small model for two devices
    scripts/bench_remote_cache.py --fleet examples/face/fleet.yaml     the demo's fleet

A server process on this machine holds the cache: the network in between costs nothing here. Four steps, each a command:
`cold` builds with an empty store, `push` puts its entries into the cache, `remote` builds with another empty store and
the cache, and `local` builds once more with what is then there.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
from bench_record import ROOT, Figures, bar, commit, machine, versions
from process_cost import MEASURED, run_measured

from compiler.store import Store, file_digest
from compiler.store.keys import generate_key, write_key_pair

FLEETC = [sys.executable, "-c", "from compiler.cli import main; main()"]
TOOLS = ("fleetc", "openvino", "apache-tvm", "onnxruntime", "cryptography", "urllib3", "uvicorn")
LEAST_GAIN = 10.0
"""A build with an empty store and the cache is to be so many times faster than one without."""

SERVER = """import sys, uvicorn
from pathlib import Path
from compiler.store.keys import read_private_key
from compiler.store.remote import FolderBlobs
from compiler.store.remote.handler import CacheApp
app = CacheApp(FolderBlobs(Path(sys.argv[1])), read_private_key(Path(sys.argv[2])))
uvicorn.run(app, fd=int(sys.argv[3]), log_level="warning", lifespan="off")"""

SMALL_FLEET = """schema: 1
model: small.onnx
calibration: {path: samples.npz}
limits: {accuracy_drop_pct: 20, memory_reduction_pct: 40}
devices:
  kiosk: {profile: intel-n100}
  door-camera: {profile: raspberry-pi-5}
"""
SMALL_MODEL = """<ir_version: 10, opset_import: ["" : 20]>
small (float[1, 3, 64, 64] x) => (float[1, 10] y) {
    c0 = Conv <pads = [1, 1, 1, 1]> (x, w0)
    r0 = Relu(c0)
    c1 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r0, w1)
    r1 = Relu(c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2)
    r2 = Relu(c2)
    c3 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r2, w3)
    r3 = Relu(c3)
    p = GlobalAveragePool(r3)
    f = Flatten(p)
    y = MatMul(f, v)
}"""
SHAPES = {
    "w0": (32, 3, 3, 3),
    "w1": (64, 32, 3, 3),
    "w2": (64, 64, 3, 3),
    "w3": (128, 64, 3, 3),
    "v": (128, 10),
}


def main() -> None:
    """Runs the four steps and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "remote_cache.json")
    parser.add_argument("--fleet", type=Path, help="fleet file (default: a small model for two devices)")
    arguments = parser.parse_args()
    head = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **commit()}
    head["load_average_before"] = [round(load, 2) for load in os.getloadavg()]
    with tempfile.TemporaryDirectory(prefix="fleetc-bench-") as name:
        fleet = arguments.fleet or write_small_fleet(Path(name))
        figures = measure(Path(name), fleet)
    described = {"machine": machine(), "versions": versions(TOOLS), "measured": MEASURED}
    arguments.out.write_text(json.dumps({**head, **described, **figures}, indent=1) + "\n", encoding="utf-8")
    for one in figures["bars"]:
        print(f"{'met' if one['is_met'] else 'MISSED'}: {one['what']}: {one['found']}, at most {one['at_most']}")


def measure(scratch: Path, fleet: Path) -> Figures:
    """The four steps, and whether all three builds are the same."""
    key = scratch / "lab.pem"
    write_key_pair(generate_key(), key)
    with serve(scratch / "blobs", key) as url:
        shared = ["--remote-cache", url, "--trusted-key", str(key.with_suffix(".pub"))]
        cold = build(scratch, fleet, "cold")
        push = run_measured(
            [*FLEETC, "cache", "push", url, "--key", str(key), "--cache", str(scratch / "cold"), "--json"]
        )
        remote = build(scratch, fleet, "remote", *shared)
        local = build(scratch, fleet, "remote", *shared)
    steps = {"cold": cold, "push": {**push.figures(), **json.loads(push.stdout)}, "remote": remote, "local": local}
    manifests = {step: steps[step].pop("manifests") for step in ("cold", "remote", "local")}
    made = [stage for step in ("remote", "local") for stage in steps[step]["stages_made"]]
    info = Store(scratch / "cold").info()
    ratios = {name: cold[name] / remote[name] for name in ("wall_s", "cpu_s")}
    return {
        "fleet": str(fleet.relative_to(ROOT)) if fleet.is_relative_to(ROOT) else "a small model for two devices",
        "store": {"entries": info.entries, "bytes": info.bytes},
        **steps,
        "cold_over_remote": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "same_manifests": all(of_step == manifests["cold"] for of_step in manifests.values()),
        "bars": [
            bar("remote build over cold build, wall time", remote["wall_s"] / cold["wall_s"], 1 / LEAST_GAIN),
            bar("remote build over cold build, processor time", remote["cpu_s"] / cold["cpu_s"], 1 / LEAST_GAIN),
            bar("stages made by a build with the shared cache", len(made), 0),
        ],
    }


def build(scratch: Path, fleet: Path, cache: str, *more: str) -> Figures:
    """One build: its cost, the stages it made itself, and the digest of each manifest."""
    out = scratch / "dist"
    cost = run_measured(
        [*FLEETC, "build", str(fleet), "-o", str(out), "--cache", str(scratch / cache), "--json", *more]
    )
    made = [
        f"{path.parent.name}: {stage['stage']}"
        for path in sorted(out.glob("*/measurements.json"))
        for stage in json.loads(path.read_text(encoding="utf-8"))["stages"]
        if not stage["from_store"]
    ]
    manifests = {path.parent.name: file_digest(path) for path in sorted(out.glob("*/manifest.json"))}
    return {**cost.figures(), "stages_made": made, "manifests": manifests}


@contextmanager
def serve(folder: Path, key: Path) -> Iterator[str]:
    """A cache server as a process of its own; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", SERVER, str(folder), str(key), str(listener.fileno())]
        with subprocess.Popen(command, pass_fds=[listener.fileno()]) as process:
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                process.terminate()


def write_small_fleet(folder: Path) -> Path:
    """Four convolutions and a classifier with random weights, samples for them, and two devices."""
    random = np.random.default_rng(0)
    proto = onnx.parser.parse_model(SMALL_MODEL)
    for name, shape in SHAPES.items():
        fan_in = np.prod(shape[1:]) if len(shape) == 4 else shape[0]
        weights = (random.normal(size=shape) * np.sqrt(2 / fan_in)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    onnx.save(proto, folder / "small.onnx")
    np.savez(folder / "samples.npz", x=random.normal(size=(64, 3, 64, 64)).astype(np.float32))
    (folder / "fleet.yaml").write_text(SMALL_FLEET, encoding="utf-8")
    return folder / "fleet.yaml"


if __name__ == "__main__":
    main()
