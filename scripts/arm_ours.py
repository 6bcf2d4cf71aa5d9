"""What `fleetc build` makes of a benchmark model for one core: instructions, parity, start-up and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_models import BenchModel
from bench_record import Figures

from compiler.fleet.profile import load_profile
from compiler.target import find_target

FLEETC = str(Path(sys.executable).with_name("fleetc"))
PROFILES = {"cortex-a76": "raspberry-pi-5", "cortex-a72": "raspberry-pi-4"}
EMULATE_S = "7200"
"""Counts are wanted however long QEMU takes: ResNet-50 in floats takes minutes an inference."""

_COUNTED_TWICE = 0.02
"""By so much kernels alone may come to more than the whole: each starts and ends by itself."""

DEAREST = 6
"""How many kernels are named one by one."""
FLEET = """schema: 1
model: {model}
calibration: {{path: {samples}}}
devices:
  board: {{profile: {profile}, dims: {dims}, precision: {precision}}}
"""


@dataclass(frozen=True)
class Build:
    """One build asked for.

    Args:
        model: What is built.
        profile: A built-in profile, or the path of one.
        precision: Which.
        cache: fleetc's cache folder; a log of tuning in it is used.
    """

    model: BenchModel
    profile: str
    precision: str
    cache: Path

    @property
    def folder(self) -> Path:
        """Where the artifact is delivered."""
        name = f"{self.model.name}-{Path(self.profile).stem}-{self.precision}"
        return self.cache / "dist" / name / "board"


def precisions_of(profile: str) -> tuple[str, ...]:
    """What the target offers on a profile, by itself or not; but for formats that are chosen by answers."""
    loaded = load_profile(profile)
    rules = find_target(loaded.target).capability(loaded).precisions
    return tuple(rule.name for rule in rules if not (rule.scheme and rule.scheme.rounds_activations))


def build(wanted: Build) -> Figures:
    """Builds and verifies; figures of the artifact, or why there is none.

    The artifact's instructions are those `fleetc build` counted: one thread, half the difference of runs with 1 and 3.
    """
    fleet = _write_fleet(wanted)
    command = [FLEETC, "build", str(fleet), "--out", str(wanted.folder.parent), "--cache", str(wanted.cache), "--json"]
    command += ["--emulate-seconds", EMULATE_S]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        return {"unavailable": _reason(ended)}
    manifest = json.loads((wanted.folder / "manifest.json").read_text("utf-8"))
    measurements = json.loads((wanted.folder / "measurements.json").read_text("utf-8"))
    points = manifest["verdict"]["parity"]["points"]
    worst = min((stats["sqnr_db"] for point in points for stats in point["outputs"].values()), default=None)
    return {
        "instructions": measurements.get("instructions"),
        "sqnr_db": worst,
        "parity": manifest["verdict"]["parity"]["status"],
        "bytes": sum(file.stat().st_size for file in (wanted.folder / "payload").rglob("*") if file.is_file()),
    }


def _write_fleet(wanted: Build) -> Path:
    fleet = wanted.folder.parent.with_suffix(".yaml")
    fleet.parent.mkdir(parents=True, exist_ok=True)
    paths = {"model": wanted.model.source.resolve(), "samples": (wanted.model.folder / "samples.npz").resolve()}
    rest = {"profile": wanted.profile, "precision": wanted.precision, "dims": json.dumps(wanted.model.dims())}
    fleet.write_text(FLEET.format(**paths, **rest), "utf-8")
    return fleet


def _reason(ended: subprocess.CompletedProcess[str]) -> str:
    try:
        devices = json.loads(ended.stdout)["devices"]
        return " ".join(str(device["error"] or device["reason"]) for device in devices)[:500]
    except (ValueError, KeyError, TypeError):
        return (ended.stdout + ended.stderr).strip()[-500:]


def tune(wanted: Build, *, backend: str, options: Sequence[str] = ()) -> Figures:
    """Runs `fleetc tune` for a build, into the log of its cache.

    Args:
        wanted: What would be built.
        backend: `emulator` (trials are instruction counts) or `host` (times).
        options: Further arguments.

    Returns:
        `wall_s`; `untuned` and `best`, what the analytic and the best choices took in all, in `unit`; how many trials
        were made; what stopped the kernels. Or why there is nothing.
    """
    asked = ["--profile", "board", "--precision", wanted.precision, "--backend", backend]
    command = [FLEETC, "tune", str(_write_fleet(wanted)), *asked, "--cache", str(wanted.cache), "--json", *options]
    started = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    wall_s = round(time.perf_counter() - started, 1)
    if ended.returncode:
        return {"unavailable": (ended.stdout + ended.stderr).strip()[-500:], "wall_s": wall_s}
    return {"wall_s": wall_s, **sum_kernels(json.loads(ended.stdout))}


def sum_kernels(told: Figures) -> Figures:
    """What all kernels of a tuned model take together, each as often as the model has it, and the dearest of them."""
    kernels = [one for one in told["kernels"] if one["best"] and one["untuned"]]
    dearest = sorted(kernels, key=lambda one: -one["count"] * one["untuned"])[:DEAREST]
    return {
        "unit": told["unit"],
        "evidence": told["evidence"],
        "kernels": len(told["kernels"]),
        "trials": sum(one["tried"] for one in told["kernels"]),
        "untuned": round(sum(one["count"] * one["untuned"] for one in kernels), 1),
        "best": round(sum(one["count"] * one["best"]["median"] for one in kernels), 1),
        "not_counted": len(told["kernels"]) - len(kernels),
        "stopped": sorted({one["stopped"] for one in told["kernels"]}),
        "dearest": [{name: one[name] for name in ("kernel", "count", "untuned")} for one in dearest],
    }


def shares(told: Figures, instructions: float | None) -> Figures:
    """Where a build's instructions go: kernel → share of all; `the rest` is TVM's own kernels and its machine, and
    kernels of ours that there was no time to count."""
    if not instructions or "dearest" not in told:
        return {"unavailable": told.get("unavailable", "the build's instructions are not known")}
    if told["untuned"] > instructions * (1 + _COUNTED_TWICE):
        return {"unavailable": "the kernels that are counted are those of the float model, and the build has others"}
    kernels = {f"{one['kernel']} x{one['count']}": one["count"] * one["untuned"] for one in told["dearest"]}
    others = told["untuned"] - sum(kernels.values())
    missing = f", kernels that were not counted among it: {told['not_counted']}" if told["not_counted"] else ""
    parts = {**kernels, "other kernels with choices": others, f"the rest{missing}": instructions - told["untuned"]}
    return {name: round(part / instructions, 3) for name, part in parts.items()}
