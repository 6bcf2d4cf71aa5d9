#!/usr/bin/env python3
"""How fast ARM builds are, into benchmarks/arm.json: beside ncnn, MNN, TVM's default pipeline and ONNX Runtime.

    scripts/bench_arm.py                                      everything (hours: ResNet-50 is emulated many times)
    scripts/bench_arm.py --section instructions --model face  one section of one model; the others stay in the file
    scripts/bench_arm.py --section host --section tuning      what is timed: on a machine that does nothing else
    scripts/bench_arm.py --cache FOLDER                       keeps models, peers and counts for the next time

Needs QEMU and the arm64 libraries (scripts/install-emulator), apt-get and pip to fetch the peers, and llvm-mca for
the section `loop`. What is missing is told in the file. `docs/figures.md` says how each figure is obtained.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arm_ours
from arm_host import ROUNDS, compare_with_ort, write_profile
from arm_loop import hottest_loop
from arm_peers import count_default, count_peers
from arm_start import start_up
from bench_models import KINDS, BenchModel, prepare_model
from bench_record import ROOT, Figures, commit, machine, versions
from platformdirs import user_cache_path

from compiler.fleet.profile import load_profile, validate_options
from targets.arm_tvm.options import Options
from targets.arm_tvm.run.emulate import emulated_cpu

TOOLS = ("fleetc", "numpy", "onnx", "onnxruntime", "apache-tvm", "apache-tvm-ffi", "ziglang")
INSTRUCTIONS_AT_MOST = {"fp32": 40.6e6, "fp16": 31.7e6, "int8": 24e6}
"""Of the face model on cortex-a76."""
UNTUNED_AT_MOST, HOST_AT_MOST, PEAK_SHARE_AT_LEAST, TUNING_S, FROM_BEST = 1.3, 1.0, 0.8, 300.0, 1.05
TUNED = ("face",)
COUNTED = ("--trial-timeout", "300", "--retry")
"""Counts do not mind how slowly QEMU runs."""
ONLY_UNTUNED = ("--trials", "1")
"""Counts every kernel as it is built without a log."""
LONGER = "30m"
"""How long tuning may go on after the bar's time to find the best."""


@dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Args:
        models, cores: Names of models and of cores.
        cache: Folder that is kept between runs.
        rounds: Pairs of timed runs.
        tune_options: Further arguments of `fleetc tune`.
    """

    models: Sequence[str]
    cores: Sequence[str]
    cache: Path
    rounds: int
    tune_options: Sequence[str]


def main() -> None:
    """Runs the sections asked for and writes the file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "arm.json")
    parser.add_argument("--section", action="append", choices=list(SECTIONS), help="only this one; may be repeated")
    parser.add_argument("--model", action="append", choices=list(KINDS), help="only this one; may be repeated")
    parser.add_argument("--core", action="append", choices=list(arm_ours.PROFILES), help="only this one")
    parser.add_argument("--cache", type=Path, default=user_cache_path("fleetc-bench"), help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="pairs of timed runs (default: %(default)s)")
    parser.add_argument("--tune", default="--budget 5m", help="arguments of `fleetc tune` (default: %(default)s)")
    given = parser.parse_args()
    asked = Asked(
        given.model or list(KINDS),
        given.core or list(arm_ours.PROFILES),
        given.cache.resolve(),
        given.rounds,
        given.tune.split(),
    )
    recorded = json.loads(given.out.read_text("utf-8")) if given.out.exists() else {"sections": {}}
    for section in given.section or list(SECTIONS):
        for name, found in _measured(section, asked):
            merge(recorded["sections"].setdefault(section, {}), name, found)
            recorded["bars"] = judge(recorded["sections"])
            given.out.write_text(json.dumps(recorded, indent=1) + "\n", "utf-8")
    for one in recorded.get("bars", []):
        print(f"{'met' if one['is_met'] else 'NOT MET':8} {one['what']}: {one['found']} (bar {one['bar']})")


def _measured(section: str, asked: Asked) -> Iterator[tuple[str, Figures]]:
    measure, models = SECTIONS[section]
    for name in [name for name in asked.models if name in models]:
        print(f"{section} {name} …", file=sys.stderr)
        head = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **commit()}
        head |= {"machine": machine(), "versions": versions(TOOLS)}
        head["load_average_before"] = [round(one, 2) for one in os.getloadavg()]
        yield name, head | measure(prepare_model(name, asked.cache), asked)


def merge(models: Figures, name: str, found: Figures) -> None:
    """Puts a model's figures in the place of older ones; cores that were not asked for this time stay."""
    older = models.get(name, {}).get("cores", {})
    models[name] = found | ({"cores": {**older, **found["cores"]}} if "cores" in found else {})


def instructions(model: BenchModel, asked: Asked) -> Figures:
    """Guest instructions of one inference on each core: ours in every precision, untuned and tuned, and the peers."""
    found: Figures = {}
    for core in asked.cores:
        profile = load_profile(arm_ours.PROFILES[core])
        options, cpu = validate_options(Options, profile), emulated_cpu(core)
        ours = {name: _both(model, core, name, asked) for name in arm_ours.precisions_of(profile.name)}
        default = count_default(model, options, cpu, asked.cache)
        found[core] = {
            "emulated_cpu": cpu,
            "ours": ours,
            "tvm_default": default,
            **count_peers(model, cpu, asked.cache),
        }
    return {"cores": found}


def _both(model: BenchModel, core: str, precision: str, asked: Asked) -> Figures:
    """The build without a log, where its instructions go, and the build with a log of counts under the emulator."""
    profile = arm_ours.PROFILES[core]
    untuned = arm_ours.build(arm_ours.Build(model, profile, precision, asked.cache / "untuned"))
    wanted = arm_ours.Build(model, profile, precision, asked.cache / "tuned")
    is_tuned = model.name in TUNED
    trials = asked.tune_options if is_tuned else ONLY_UNTUNED
    told = arm_ours.tune(wanted, backend="emulator", options=(*trials, *COUNTED))
    found = {"untuned": untuned, "goes_to": arm_ours.shares(told, untuned.get("instructions"))}
    if is_tuned:
        return found | {"tuned": arm_ours.build(wanted) | {"tuning": told}}
    return found | {"tuned": {"unavailable": f"only {', '.join(TUNED)} is tuned here: counting trials takes long"}}


def host(model: BenchModel, asked: Asked) -> Figures:
    """Times on this machine against ONNX Runtime in fp32, one and two threads."""
    return compare_with_ort(model, asked.cache / "untuned", asked.rounds)


def tuning(model: BenchModel, asked: Asked) -> Figures:
    """Tuning for this machine from an empty log: what the bar's time gives, and what going on to the plateau gives."""
    cache = asked.cache / f"tuning-{time.time_ns()}"
    cache.mkdir(parents=True)
    wanted = arm_ours.Build(model, str(write_profile(cache)), "fp32", cache)
    first = arm_ours.tune(wanted, backend="host", options=("--budget", f"{TUNING_S:.0f}s"))
    on = arm_ours.tune(wanted, backend="host", options=("--budget", LONGER))
    ratio = (
        {"best_in_time_over_best": round(first["best"] / on["best"], 3)} if first.get("best") and on.get("best") else {}
    )
    return {"in_time": first, "to_the_plateau": on, **ratio}


def loop(model: BenchModel, asked: Asked) -> Figures:
    """The loop in which most instructions are executed, and its share of the core's peak by llvm-mca."""
    found: Figures = {}
    for core in asked.cores:
        for precision in arm_ours.precisions_of(arm_ours.PROFILES[core]):
            wanted = arm_ours.Build(model, arm_ours.PROFILES[core], precision, asked.cache / "untuned")
            built = arm_ours.build(wanted)
            found.setdefault(core, {})[precision] = (
                built if "unavailable" in built else hottest_loop(wanted.folder, model, emulated_cpu(core), asked.cache)
            )
    return {"cores": found}


def starting(model: BenchModel, asked: Asked) -> Figures:
    """Start-up instructions under QEMU, time to load and peak memory here, and where the weights are."""
    return {"cores": {core: start_up(model, core, asked.cache) for core in asked.cores}}


SECTIONS: dict[str, tuple[Callable[[BenchModel, Asked], Figures], tuple[str, ...]]] = {
    "instructions": (instructions, tuple(KINDS)),
    "host": (host, tuple(KINDS)),
    "loop": (loop, ("face",)),
    "start_up": (starting, ("face", "resnet50")),
    "tuning": (tuning, ("face",)),
}


def judge(sections: Figures) -> list[Figures]:
    """Every bar for which there is a figure, with how far it is from it; what could not be measured is not met."""
    return [*_instruction_bars(sections), *_host_bars(sections), *_loop_bars(sections), *_tuning_bars(sections)]


def _instruction_bars(sections: Figures) -> Iterator[Figures]:
    ours = _at(sections, "instructions", "face", "cores", "cortex-a76", "ours") or {}
    for precision, limit in INSTRUCTIONS_AT_MOST.items():
        counts = {kind: _at(ours, precision, kind, "instructions") for kind in ("untuned", "tuned")}
        known = [count for count in counts.values() if count]
        judged = _limit(f"face, cortex-a76, {precision}: instructions", min(known, default=None), limit)
        yield judged | ({} if judged["is_met"] else {"goes_to": _at(ours, precision, "goes_to")})
        ratio = counts["untuned"] / counts["tuned"] if len(known) == 2 else None
        yield _limit(f"face, cortex-a76, {precision}: untuned / tuned", ratio, UNTUNED_AT_MOST)


def _host_bars(sections: Figures) -> Iterator[Figures]:
    for threads in (1, 2):
        ratio = _at(sections, "host", "face", f"threads_{threads}", "ratio")
        yield _limit(f"face, host, fp32, {threads} threads: latency / ONNX Runtime's", ratio, HOST_AT_MOST)


def _loop_bars(sections: Figures) -> Iterator[Figures]:
    precisions = _at(sections, "loop", "face", "cores", "cortex-a76") or {"fp32": {}}
    for precision, figures in precisions.items():
        share = figures.get("share_of_peak")
        what = f"face, cortex-a76, {precision}: hottest loop's share of peak"
        is_met = share is not None and share >= PEAK_SHARE_AT_LEAST
        missed = None if share is None else max(0.0, round(PEAK_SHARE_AT_LEAST - share, 3))
        yield {"what": what, "found": share, "bar": PEAK_SHARE_AT_LEAST, "is_met": is_met, "missed_by": missed}


def _tuning_bars(sections: Figures) -> Iterator[Figures]:
    ratio = _at(sections, "tuning", "face", "best_in_time_over_best")
    what = f"face, host: best after {TUNING_S / 60:.0f} minutes of tuning / best at the plateau"
    yield _limit(what, ratio, FROM_BEST)


def _limit(what: str, found: float | None, limit: float) -> Figures:
    if found is None:
        return {"what": what, "found": None, "bar": limit, "is_met": False, "missed_by": None}
    missed = max(0.0, round(found / limit - 1, 3))
    return {"what": what, "found": round(found, 3), "bar": limit, "is_met": found <= limit, "missed_by": missed}


def _at(figures: Figures, *keys: str) -> Any:
    """What stands below the keys; None where one of them is absent."""
    found: Any = figures
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


if __name__ == "__main__":
    main()
