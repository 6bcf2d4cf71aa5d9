#!/usr/bin/env python3
"""What a build costs, measured, into benchmarks/build.json: fleet builds cold, warm and changed, and the portable half.

    scripts/bench_build.py                             everything but the demo
    scripts/bench_build.py --section fleet --runs 9    one section, the others stay as they are in the file
    scripts/bench_build.py --section demo              a clone of this commit, installed and built from nothing

Each section says when and at which commit it ran and what load the machine had; `benchmarks/README.md` explains it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench_record import ROOT, Figures, bar, commit, machine, versions
from process_cost import MEASURED, Cost, run_measured

from compiler.fleet.machine import available_cpus
from compiler.store import BORDER_STAGES, StageName

FACE = ROOT / "examples" / "face"
FLEETC = str(Path(sys.executable).with_name("fleetc"))
TOOLS = (
    *("onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime", "numpy"),
    *("openvino", "apache-tvm", "apache-tvm-ffi", "ziglang", "tensorrt-rtx-cu12"),
)
CHANGED_DEVICE, CHANGED_PROFILE = "door-camera", "raspberry-pi-5"
PORTABLE_STAGES = (*BORDER_STAGES, StageName.IMPORTANCE, StageName.CALIBRATE, StageName.SENSITIVITY)
TRANSFORMER_FLEET = """schema: 1
model: encoder.onnx
devices:
  kiosk: {profile: intel-n100, batch: 1, dims: {sequence: 128}}
"""
ONNXSIM = """import sys, onnx, onnxsim
model, _ = onnxsim.simplify(onnx.load(sys.argv[1]))
onnx.save(model, sys.argv[2], save_as_external_data=sys.argv[3] == "external")"""


def main() -> None:
    """Runs the sections asked for and writes the file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "build.json")
    parser.add_argument("--section", action="append", choices=list(SECTIONS), help="only this one; may be repeated")
    parser.add_argument("--runs", type=int, default=5, help="runs of what takes seconds (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="folder for caches and models, 6 GB (default: the temporary one)")
    arguments = parser.parse_args()
    recorded = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory(prefix="fleetc-bench-", dir=arguments.scratch) as name:
        for section in arguments.section or [name for name in SECTIONS if name != "demo"]:
            print(f"{section} …", file=sys.stderr)
            head = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **commit()}
            load = os.getloadavg()
            found = SECTIONS[section](Path(name), arguments.runs)
            head["load_average_before"] = [round(one, 2) for one in load]
            recorded["machine"], recorded["versions"] = machine(), versions(("fleetc", *TOOLS))
            recorded["measured"] = MEASURED
            recorded.setdefault("sections", {})[section] = head | found
            arguments.out.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    _print_bars(recorded["sections"])


def start_up(scratch: Path, runs: int) -> Figures:
    """The command with nothing to do, and what a build imports before it starts."""
    commands = {
        "version": [FLEETC, "--version"],
        "plan": [FLEETC, "plan", str(FACE / "fleet.yaml")],
        "imports_of_build": [sys.executable, "-c", "import compiler.cli, compiler.driver"],
    }
    found = {name: _summary([run_measured(command) for _ in range(runs)]) for name, command in commands.items()}
    bars = [
        bar(f"fleetc {name}: wall s", found[name]["wall_s"]["median"], 0.6, stated=False)
        for name in ("version", "plan")
    ]
    return {**found, "bars": bars}


def fleet(scratch: Path, runs: int) -> Figures:
    """The face fleet: from nothing, with toolchains fetched, again, and with one profile changed."""
    first = _build(scratch, FACE / "fleet.yaml")
    for stage in ("entries", "locks", "tmp"):
        shutil.rmtree(scratch / "cache" / stage, ignore_errors=True)
    cold = _build(scratch, FACE / "fleet.yaml")
    warm = [_build(scratch, FACE / "fleet.yaml") for _ in range(runs)]
    imports = _summary([run_measured([sys.executable, "-c", "import compiler.cli, compiler.driver"]) for _ in range(3)])
    warm_s = statistics.median(run["wall_s"] for run in warm) - imports["wall_s"]["median"]
    changed = _build(scratch, _fleet_with_changed_profile(scratch))
    rebuilt = [name for name, device in changed["devices"].items() if device["stages_made"]]
    first_s = max(0.0, first["wall_s"] - cold["wall_s"])
    portable = [device["portable_s"] for device in cold["devices"].values()]
    own = [device["own_s"] for device in cold["devices"].values()]
    return {
        "first_build": first,
        "cold": cold,
        "toolchain_first_use_s": round(first_s, 1),
        "warm": {**_spread(warm, "wall_s"), "runs": warm, "imports_s": imports["wall_s"]["median"]},
        "one_profile_changed": {**changed, "changed": CHANGED_DEVICE, "rebuilt": rebuilt},
        "bars": [
            bar("warm rebuild after start-up: s", warm_s, 2.0),
            bar("devices rebuilt after one profile changed", len(rebuilt), 1) | {"rebuilt": rebuilt},
            bar("portable half of the face model within a cold build: s", max(portable), 10.0),
            bar("own time per device beside vendor tools, verification and portable half: s", max(own), 2.0),
        ],
    }


def first_result(scratch: Path, runs: int) -> Figures:
    """The face fleet from an empty store: wall time, CPU time, the first artifact, and seconds by stage; then again.

    The cache folder is empty too: downloads and the toolchains' own first use are part of it. Quiet machine only.
    """
    began, jobs = time.time(), available_cpus()
    cold = _build(scratch, FACE / "fleet.yaml", cache="first-result", jobs=jobs)
    finished = {path.parent.name: path.stat().st_mtime - began for path in (scratch / "dist").glob("*/manifest.json")}
    stages: Counter[str] = Counter()
    for device in cold["devices"].values():
        stages.update(device["seconds"])
    warm = [_build(scratch, FACE / "fleet.yaml", cache="first-result", jobs=jobs)["wall_s"] for _ in range(runs)]
    return {
        "jobs": jobs,
        "cold": cold,
        "delivered_after_s": {name: round(seconds, 1) for name, seconds in sorted(finished.items())},
        "stage_s": {stage: round(seconds, 1) for stage, seconds in stages.most_common()},
        "warm_wall_s": warm,
        "bars": [
            bar("six device classes from an empty store: wall s", cold["wall_s"], 180.0),
            bar("the same: CPU s of the process tree", cold["cpu_s"], 260.0),
            bar("the first artifact: s", min(finished.values()), 30.0),
        ],
    }


def portable_face(scratch: Path, runs: int) -> Figures:
    """The portable half of the face model against onnxsim alone."""
    return _against_onnxsim(FACE / "fleet.yaml", FACE / "face.onnx", scratch, runs)


def portable_transformer(scratch: Path, runs: int) -> Figures:
    """The same on a synthetic transformer of 1 GB; few runs, since each one takes its time."""
    model = scratch / "encoder.onnx"
    script = ROOT / "scripts" / "make_transformer_model.py"
    subprocess.run([sys.executable, script, model, "--size-mb", "1000"], check=True, stdout=subprocess.DEVNULL)
    (scratch / "transformer.yaml").write_text(TRANSFORMER_FLEET, encoding="utf-8")
    return _against_onnxsim(scratch / "transformer.yaml", model, scratch, min(runs, 3))


def demo(scratch: Path, runs: int) -> Figures:
    """`scripts/demo` in a clone of this commit: virtual environment, installation, model, builds; an empty cache."""
    clone = scratch / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    cost = run_measured(["./scripts/demo"], cwd=clone, env=os.environ | {"FLEETC_CACHE": str(scratch / "demo-cache")})
    table = cost.stdout.splitlines()[-14:]
    bars = [bar("whole demo, installation included: s", cost.wall_s, 360.0)]
    return {**cost.figures(), "stdout": table, "bars": bars}


SECTIONS: Mapping[str, Callable[[Path, int], Figures]] = {
    "start_up": start_up,
    "first_result": first_result,
    "fleet": fleet,
    "portable_face": portable_face,
    "portable_transformer": portable_transformer,
    "demo": demo,
}


def _build(scratch: Path, fleet_file: Path, *, cache: str = "cache", jobs: int = 1) -> Figures:
    """One run of `fleetc build`, and what each device took in it; seconds of stages are comparable with one job."""
    out = scratch / "dist"
    shutil.rmtree(out, ignore_errors=True)
    where = ["--out", str(out), "--cache", str(scratch / cache), "--jobs", str(jobs), "--json"]
    cost = run_measured([FLEETC, "build", str(fleet_file), *where])
    seconds = {one["device"]: one["seconds"] for one in json.loads(cost.stdout)["devices"]}
    devices = {name: _device(out / name, seconds[name]) for name in seconds}
    return {
        **cost.figures(),
        "vendor_tools_s": round(sum(device["vendor_s"] for device in devices.values()), 3),
        "verification_s": round(sum(device["verification_s"] for device in devices.values()), 3),
        "outside_devices_s": round(cost.wall_s - sum(sum(one.values()) for one in seconds.values()), 3),
        "devices": devices,
    }


def _device(folder: Path, seconds: Mapping[str, float]) -> Figures:
    """Seconds of one device by whose they are; see benchmarks/README.md."""
    measurements = json.loads((folder / "measurements.json").read_text(encoding="utf-8"))
    made = [stage["stage"] for stage in measurements["stages"] if not stage["from_store"]]
    is_rewritten, is_compiled = StageName.REWRITE in made, StageName.COMPILE in made
    portable, compiled = sum(seconds.get(stage, 0.0) for stage in PORTABLE_STAGES), seconds[StageName.COMPILE]
    own = seconds[StageName.DELIVER] + (0.0 if is_rewritten else portable) + (0.0 if is_compiled else compiled)
    return {
        "stages_made": made,
        "seconds": dict(seconds),
        "vendor_s": compiled if is_compiled else 0.0,
        "verification_s": round(seconds[StageName.REFERENCE] + seconds[StageName.VERIFY], 3),
        "portable_s": round(portable, 3) if is_rewritten else 0.0,
        "own_s": round(own, 3),
    }


def _fleet_with_changed_profile(scratch: Path) -> Path:
    """A copy of the face fleet in which one device's profile states less memory."""
    folder = scratch / "changed"
    folder.mkdir(exist_ok=True)
    for name in ("face.onnx", "faces.npz"):
        shutil.copyfile(FACE / name, folder / name)
    profile = (ROOT / "profiles" / f"{CHANGED_PROFILE}.yaml").read_text(encoding="utf-8")
    (folder / "changed.yaml").write_text(profile.replace("memory_mib: 8192", "memory_mib: 4096"), encoding="utf-8")
    text = (FACE / "fleet.yaml").read_text(encoding="utf-8")
    fleet_file = folder / "fleet.yaml"
    fleet_file.write_text(text.replace(f"profile: {CHANGED_PROFILE}}}", "profile: ./changed.yaml}"), encoding="utf-8")
    return fleet_file


def _against_onnxsim(fleet_file: Path, model: Path, scratch: Path, runs: int) -> Figures:
    """Our portable half and onnxsim on one model, taken in turns."""
    size = sum(file.stat().st_size for file in model.parent.glob(f"{model.name}*"))
    save = "external" if size > 1 << 28 else "inside"
    ours: list[Cost] = []
    theirs: list[Cost] = []
    for _ in range(runs):
        ours.append(run_measured([sys.executable, str(ROOT / "scripts" / "bench_portable.py"), str(fleet_file)]))
        target = scratch / "simplified.onnx"
        theirs.append(run_measured([sys.executable, "-c", ONNXSIM, str(model), str(target), save]))
        for file in scratch.glob("*.onnx*"):
            if file.name != model.name and not file.name.startswith(model.name):
                file.unlink()
    mine, other = _summary(ours), _summary(theirs)
    steps = [json.loads(one.stdout) for one in ours]
    half = [step["read_s"] + step["bind_s"] + step["border_s"] for step in steps]
    ratio = mine["peak_rss_bytes"]["median"] / size
    bars = [bar("peak resident memory of the portable half / size of the model", ratio, 1.5)]
    if size < 1 << 28:  # a small model cannot outweigh an interpreter; the bar is about models
        bars = [bar("portable half: s", statistics.median(half), 10.0)]
    return {
        "model_bytes": size,
        "portable": mine,
        "portable_steps": steps,
        "read_bind_rewrite_s": {"median": round(statistics.median(half), 3), "runs": [round(one, 3) for one in half]},
        "onnxsim": other,
        "portable_over_onnxsim": {
            name: round(mine[name]["median"] / other[name]["median"], 3) for name in MEASURED if name in mine
        },
        "portable_over_model": {
            name: round(mine[name]["median"] / size, 3) for name in ("peak_rss_bytes", "peak_private_bytes")
        },
        "bars": bars,
    }


def _summary(costs: Sequence[Cost]) -> Figures:
    """Median and spread of every figure, and all runs."""
    runs = [cost.figures() for cost in costs]
    return {name: _spread(runs, name) for name in MEASURED} | {"runs": runs}


def _spread(runs: Sequence[Figures], name: str) -> Figures:
    values = [run[name] for run in runs]
    return {"median": round(statistics.median(values), 3), "min": min(values), "max": max(values)}


def _print_bars(sections: Figures) -> None:
    for name, section in sections.items():
        for one in section["bars"]:
            word = "met" if one["is_met"] else "NOT MET"
            print(f"{word:8} {name}: {one['what']}: {one['found']} (at most {one['at_most']})")


if __name__ == "__main__":
    main()
