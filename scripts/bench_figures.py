#!/usr/bin/env python3
"""Whether figures and the choice hold on a busy machine: a device is built again and again, quiet and busy in turn.

    scripts/bench_figures.py examples/face/fleet.yaml [--device kiosk] [--rounds 20] [--quiet 20] [--load 4]

The first build fills a store; every round measures times and memory anew and takes the rest from there. Under load,
busy processes run beside it, `--load` for each processor. Run it where nothing else runs. Writes
benchmarks/figures.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench_record import ROOT, bar, commit, machine, versions

from compiler import BuildOptions, build_fleet
from compiler.store import MEASURED_STAGES, Store

FAR_OFF = 0.15
"""A ratio further than this from the quiet ones, and not called disturbed, is wrong."""

BUILD = (sys.executable, "-c", "from compiler.cli import main; main()", "build")
LAST_LINES = 30
"""Of a build's messages, where it delivered nothing."""

MEMORY_SPREAD_PCT = 2.0

PACKAGES = ("fleetc", "numpy", "onnxruntime", "openvino")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description="Measure one device again and again, quiet and under load.")
    parser.add_argument("fleet", type=Path)
    parser.add_argument("--device", default="kiosk")
    parser.add_argument("--rounds", type=int, default=20, help="busy ones")
    parser.add_argument(
        "--quiet", type=int, help="quiet ones, before the busy ones of the same number; as many by default"
    )
    parser.add_argument("--load", type=int, default=4, help="busy processes per processor")
    parser.add_argument("--cache", type=Path, help="a store to begin with; an empty one by default")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "figures.json")
    options = parser.parse_args(arguments)
    began = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="fleetc-") as name:
        base = BuildOptions(
            out=Path(name) / "dist", cache=options.cache or Path(name) / "cache", devices=(options.device,)
        )
        build_fleet(options.fleet, base)
        quiet = options.rounds if options.quiet is None else options.quiet
        rounds = list(_rounds(options.fleet, base, options.rounds, quiet=quiet, load=options.load))
    record = {
        **commit(),
        "machine": machine(),
        "versions": versions(PACKAGES),
        "date": time.strftime("%Y-%m-%d"),
        "load_average_before": round(began, 2),
        "device": options.device,
        "busy_processes": options.load * (os.cpu_count() or 1),
        "summary": _summary(rounds),
        "bars": _bars(rounds),
        "rounds": rounds,
    }
    options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"summary": record["summary"], "bars": record["bars"]}, indent=1))


def _rounds(fleet: Path, base: BuildOptions, count: int, *, quiet: int, load: int) -> Iterator[dict[str, Any]]:
    for number in range(1, max(count, quiet) + 1):
        for kind, most, processes in (("quiet", quiet, 0), ("busy", count, load * (os.cpu_count() or 1))):
            if number <= most:
                with busy(processes):
                    yield {"round": number, "kind": kind, **_measured(fleet, base)}


def _measured(fleet: Path, base: BuildOptions) -> dict[str, Any]:
    """One build whose times and memory are measured anew."""
    with tempfile.TemporaryDirectory(prefix="fleetc-") as name:
        cache, out = Path(name) / "cache", Path(name) / "dist"
        _stages_but_measured(base.cache, Store(cache))
        began = time.monotonic()
        command = [*BUILD, str(fleet), "--device", base.devices[0], "--cache", str(cache), "--out", str(out)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds, folder = time.monotonic() - began, out / base.devices[0]
        manifest = folder / "manifest.json"
        if not manifest.exists():
            return {"chosen": "", "trials": {}, "seconds": seconds, "failure": _failure(out, base.devices[0], ended)}
        found = json.loads(manifest.read_text(encoding="utf-8"))
    number = (found["decision"] or {}).get("trial")
    return {
        "chosen": " ".join(_name(one) for one in found["trials"] if one["number"] == number),
        "trials": {_name(one): _figures(one) for one in found["trials"] if one["speed"]},
        "final_races": found["final_races"],
        "seconds": seconds,
    }


def _failure(out: Path, device: str, ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Why a round delivered nothing: the exit code, the end of what it printed, and what `build.json` says."""
    path = out / "build.json"
    facts = json.loads(path.read_text(encoding="utf-8"))["devices"].get(device) if path.exists() else None
    return {"exit_code": ended.returncode, "stderr": ended.stderr.splitlines()[-LAST_LINES:], "device": facts}


def _name(trial: Mapping[str, Any]) -> str:
    """What was tried: more than one target may compete for a device."""
    return f"{trial['target']} {trial['precision']}"


def _stages_but_measured(root: Path, other: Store) -> None:
    """Everything of a store that another measurement would not change."""
    entries = (root / "entries").glob("*/*/entry.json")
    stages = {str(json.loads(path.read_text(encoding="utf-8"))["stage"]) for path in entries}
    Store(root).lend(frozenset(stages) - MEASURED_STAGES, other)


def _figures(trial: Mapping[str, Any]) -> dict[str, Any]:
    speed, memory = trial["speed"], trial["footprint"] or {}
    kept = {key: speed[key] for key in ("speedup", "low", "high", "value", "original", "disturbed")}
    return {**kept, "run_bytes": memory.get("run_bytes"), "status": trial["status"]}


def _summary(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kinds = {kind: [one for one in rounds if one["kind"] == kind] for kind in ("quiet", "busy")}
    return {kind: {"chosen": _counted(mine), "precisions": _by_precision(mine)} for kind, mine in kinds.items()}


def _counted(rounds: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    names = [one["chosen"] for one in rounds]
    return {name or "none": names.count(name) for name in sorted(set(names))}


def _by_precision(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in sorted({name for one in rounds for name in one["trials"]}):
        trials = [one["trials"][name] for one in rounds if name in one["trials"]]
        found[name] = {
            "speedup": _spread([one["speedup"] for one in trials]),
            "run_bytes": _spread([one["run_bytes"] for one in trials]),
            "disturbed": sum(bool(one["disturbed"]) for one in trials),
            "rounds": len(trials),
        }
    return found


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    return {"median": statistics.median(known), "min": min(known), "max": max(known)} if known else None


def _bars(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    quiet = _by_precision([one for one in rounds if one["kind"] == "quiet"])
    wrong = [
        name
        for one in rounds
        for name, trial in one["trials"].items()
        if name in quiet and not trial["disturbed"] and _off(trial["speedup"], quiet[name]["speedup"]) > FAR_OFF
    ]
    trials = [(quiet[name], trial) for one in rounds for name, trial in one["trials"].items() if name in quiet]
    spread = [_off(trial["run_bytes"], typical["run_bytes"]) for typical, trial in trials]
    choices = _counted(rounds)
    return [
        bar("rounds that delivered nothing", choices.get("none", 0), 0),
        bar(f"ratios off by more than {FAR_OFF:.0%} and not called disturbed", len(wrong), 0),
        bar("rounds that chose another build than most", len(rounds) - max(choices.values()), 0),
        bar("largest deviation of memory when run from its quiet median, %", 100 * max(spread), MEMORY_SPREAD_PCT),
    ]


def _off(value: float | None, spread: Mapping[str, float] | None) -> float:
    """How far a value is from the median, relative; 0 where there is none."""
    return 0.0 if value is None or not spread else abs(value / spread["median"] - 1)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute beside what is measured."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _spin() -> None:
    while True:
        sum(range(10000))


if __name__ == "__main__":
    main()
