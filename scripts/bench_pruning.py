#!/usr/bin/env python3
"""Channel pruning, its repair and its recovery, into benchmarks/pruning.json; see benchmarks/README.md.

    scripts/bench_pruning.py [--faces FOLDER] [--recover-minutes 10] [--arm] [--out FILE]

FOLDER holds one folder per person with two or more photographs: every other person serves to prune, repair and recover
with, and the others judge. Without it scikit-image's faces and synthetic pairs take their place, and the file says so.
The second network is PP-OCR's classifier of upside-down lines (`pip install rapidocr`; left out where it is absent).
Recovery and torch-pruning need `pip install 'fleetc[train,bench]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from arm_ours import Build, build
from bench_models import picture_model
from bench_precision import WARM_UP, Contender, Process
from bench_record import ROOT, Figures, commit, machine
from pruning_subjects import SUBJECTS, Subject

from compiler.compress.prune import find_order, prune
from compiler.compress.prune.cut import cut_channels
from compiler.compress.prune.groups import find_ties
from compiler.compress.prune.prepare import prepare
from compiler.compress.quant import quantize
from compiler.compress.recover import Pair, Recipe, choose_taps, recover
from compiler.model.save import save_model
from compiler.passes.macs import count_macs

RATIOS = (0.1, 0.2, 0.3, 0.45, 0.6)
MULTIPLE = 8
TURNS = 7
RECOVERED = (0.45,)
"""Ratios that are recovered where `--recover-minutes` allows it: minutes each, so not all of them."""
COUNTED = 0.3
"""The ratio that is repaired with fewer samples, too."""
WITHIN = 2.0
"""Points of TAR@FAR=0.001 that may be lost."""
TOOLS = ("numpy", "onnxruntime", "openvino", "torch", "torch-pruning", "apache-tvm", "rapidocr")


def main() -> None:
    """Prunes, measures and writes the file, after every network anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, help="one folder per person")
    parser.add_argument(
        "--network", choices=[*SUBJECTS], action="append", help="only this one, the others stay in the file; repeatable"
    )
    parser.add_argument("--ratio", type=float, action="append", help="share of the work to save; may be repeated")
    parser.add_argument("--recover-minutes", type=float, default=10.0, help="of each recovery; 0 for none")
    parser.add_argument("--plain-minutes", type=float, default=3.0, help="of the plain loop it is compared with")
    parser.add_argument("--arm", action="store_true", help="count instructions of the face model on ARM, too")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "pruning.json")
    asked = parser.parse_args()
    result: Figures = {"networks": {}}
    if asked.network and asked.out.exists():
        result = json.loads(asked.out.read_text(encoding="utf-8"))
    for name in asked.network or SUBJECTS:
        head = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **commit(), "machine": machine()}
        head["versions"] = {name: version(name) for name in TOOLS if _is_there(name)}
        head["load_average_before"] = [round(one, 2) for one in os.getloadavg()]
        subject = SUBJECTS[name](asked.faces)
        if subject is None:
            result["networks"][name] = {"unavailable": "pip install rapidocr"}
            continue
        with tempfile.TemporaryDirectory(prefix="fleetc-bench-") as scratch:
            for found in _network(subject, asked, Path(scratch)):
                result["networks"][name] = head | found
                result["bars"] = [*_bars(result["networks"])]
                asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for bar in result.get("bars", ()):
        print(f"{'met   ' if bar['met'] else 'MISSED'} {bar['what']}: {bar['found']} (bar {bar['bar']})")


def _is_there(package: str) -> bool:
    return find_spec({"apache-tvm": "tvm"}.get(package, package.replace("-", "_"))) is not None


def _network(subject: Subject, asked: argparse.Namespace, scratch: Path) -> Iterator[Figures]:
    """What is known of a network so far, after each part of the work."""
    started = time.perf_counter()
    order = find_order(subject.model, subject.batches)
    found: Figures = {
        "protocol": subject.protocol,
        "samples": {"own": len(subject.own), "judged": len(subject.judged)},
        "seconds_of_the_order": round(time.perf_counter() - started, 1),
        "original": _size(subject.model, scratch / "original.onnx") | _judged(subject, subject.model),
        "pruned": [],
    }
    found["original"]["int8"] = _int8(subject, subject.model, scratch, "original")
    for ratio in asked.ratio or RATIOS:
        one = _ratio(subject, order, ratio, asked, scratch)
        found["pruned"].append(one)
        print(
            f"{subject.name} {ratio:.0%}: {json.dumps({k: v for k, v in one.items() if k != 'recovered'})[:400]}",
            flush=True,
        )
        yield found
    _time(found, scratch)
    yield found
    found["by_samples"] = [*_by_samples(subject, order)]
    yield found
    if asked.arm and subject.name == "face":
        _count(found, scratch)
        yield found


def _ratio(subject: Subject, order: Any, ratio: float, asked: argparse.Namespace, scratch: Path) -> Figures:
    started = time.perf_counter()
    pruned = prune(subject.model, order, subject.batches, ratio=ratio, multiple=MULTIPLE)
    seconds = time.perf_counter() - started
    ready = prepare(subject.model)
    ties = find_ties(ready)
    bare = cut_channels(ready, ties, pruned.plan.removed)
    path = scratch / f"pruned-{round(100 * ratio)}.onnx"
    one: Figures = {
        "asked": ratio,
        "macs_saved": round(pruned.plan.ratio, 4),
        "seconds_of_cut_and_repair": round(seconds, 1),
        **_size(pruned.model, path),
        "unrepaired": subject.judge(subject.outputs(bare)),
        "repaired": _judged(subject, pruned.model),
        "warnings": list(pruned.warnings),
    }
    last = pruned.model
    if find_spec("torch") is None:
        one["unavailable"] = "pip install 'fleetc[train]': no recovery, no torch-pruning"
        return one | {"int8": _int8(subject, last, scratch, str(ratio))}
    from pruning_peers import magnitude

    one["torch-pruning, magnitude"] = magnitude(subject, pruned.plan.ratio)
    if asked.recover_minutes and ratio in (asked.ratio or RECOVERED):
        taps = choose_taps(pruned.model, ties, pruned.plan.removed)
        pair = Pair(subject.model, pruned.model, taps)
        recipe = Recipe(seconds=60 * asked.recover_minutes)
        done = recover(pair, subject.batches, folder=scratch / path.stem, recipe=recipe)
        last = done.model
        one["recovered"] = _judged(subject, last) | done.to_dict()
        if asked.plain_minutes and ratio == min(asked.ratio or RECOVERED):
            one["plain loop"] = _plain(subject, pruned.model, taps, recipe, asked.plain_minutes, scratch)
    return one | {"int8": _int8(subject, last, scratch, str(ratio))}


def _judged(subject: Subject, model: ir.Model) -> Figures:
    """How good a model is on people it has not seen, and beside that on those it was pruned with."""
    figures = subject.judge(subject.outputs(model))
    familiar = subject.familiar
    return figures if familiar is None else figures | {"familiar": familiar.judge(familiar.outputs(model))}


def _int8(subject: Subject, model: ir.Model, scratch: Path, name: str) -> Figures:
    """The model quantized for OpenVINO by its own samples: judged, and left to be raced."""
    if find_spec("openvino") is None:
        return {"unavailable": "pip install 'fleetc[openvino]'"}
    from targets.intel_openvino.quantized import INT8

    found = quantize(model, list(subject.batches()), INT8)
    return _size(found.model, scratch / f"int8-{name}.onnx") | _judged(subject, found.model)


def _by_samples(subject: Subject, order: Any) -> Iterator[Figures]:
    """One ratio, with channels chosen by all samples and repaired by fewer: whether more samples would help."""
    whole = subject.own
    for share in (4, 2, 1):
        few = replace(subject, own=whole[: len(whole) // share])
        pruned = prune(subject.model, order, few.batches, ratio=COUNTED, multiple=MULTIPLE)
        judged = subject.judge(subject.outputs(pruned.model))
        yield {"samples": len(few.own), "macs_saved": round(pruned.plan.ratio, 4), **judged}


def _plain(subject: Subject, pruned: ir.Model, taps: Any, recipe: Recipe, minutes: float, scratch: Path) -> Figures:
    """A plain loop from the pruned model on, for some minutes; `recovered` is what it is compared with."""
    from pruning_peers import plain_loop

    from compiler.compress.recover.samples import gather

    short = replace(recipe, seconds=60 * minutes)
    return {"plain": plain_loop(subject, pruned, gather(subject.batches(), scratch / "plain"), taps, short)}


def _size(model: ir.Model, path: Path) -> Figures:
    save_model(model, path)
    weights = sum(value.const_value.size for value in model.graph.initializers.values() if value.const_value)
    return {"macs": count_macs(model), "parameters": weights, "bytes": path.stat().st_size}


def _time(found: Figures, scratch: Path) -> None:
    """Latency and throughput of the original and of every ratio, in turns; ratios are of the same turn's original."""
    places = {"original": scratch / "original.onnx"}
    places |= {str(one["asked"]): scratch / f"pruned-{round(100 * one['asked'])}.onnx" for one in found["pruned"]}
    kinds = ["onnxruntime", *(["openvino"] if find_spec("openvino") else [])]
    for kind in kinds:
        figures = _race({name: Contender(kind, path, "f32") for name, path in places.items()}, scratch)
        found["original"][kind] = figures["original"]
        for one in found["pruned"]:
            one[kind] = figures[str(one["asked"])]
    _time_int8(found, scratch)


def _time_int8(found: Figures, scratch: Path) -> None:
    """int8 under OpenVINO against the float original under ONNX Runtime, in turns."""
    rows = {"original": found["original"], **{str(one["asked"]): one for one in found["pruned"]}}
    rows = {name: one for name, one in rows.items() if "unavailable" not in one["int8"]}
    contenders = {"original": Contender("onnxruntime", scratch / "original.onnx", "f32")}
    contenders |= {f"int8 {name}": Contender("openvino", scratch / f"int8-{name}.onnx", "f32") for name in rows}
    figures = _race(contenders, scratch) if rows else {}
    for name, one in rows.items():
        one["int8"]["openvino"] = figures[f"int8 {name}"]


def _race(contenders: dict[str, Contender], scratch: Path) -> dict[str, Figures]:
    model = ir.load(next(iter(contenders.values())).path)
    shape = [size if isinstance(size, int) else 1 for size in model.graph.inputs[0].shape or ()]
    np.save(scratch / "one.npy", np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32))
    running = {name: Process(one) for name, one in contenders.items()}
    fastest: dict[str, list[float]] = {name: [] for name in contenders}
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(TURNS):
        for name, process in running.items():
            fastest[name].append(min(process.ask("latency", runs=30, inputs=str(scratch / "one.npy"))[WARM_UP:]))
            if turn % 2 == 0:
                rates[name].append(max(process.ask("throughput", seconds=1.0).values()))
    for process in running.values():
        process.close()
    return {
        name: {
            "latency_ms": round(float(np.median(fastest[name])), 3),
            "times_as_fast": round(float(np.median(np.divide(fastest["original"], fastest[name]))), 3),
            "items_per_s": round(max(rates[name]), 1),
            "throughput_gain": round(float(np.median(np.divide(rates[name], rates["original"]))), 3),
        }
        for name in contenders
    }


def _count(found: Figures, scratch: Path) -> None:
    """Instructions per inference of what fleetc builds for a Raspberry Pi 5, under the emulator."""
    for one in (found["original"], *found["pruned"]):
        stem = f"pruned-{round(100 * one['asked'])}" if "asked" in one else "original"
        model = picture_model(stem, scratch / f"arm-{stem}", 150, 255.0)
        model.folder.mkdir()
        model.source.write_bytes((scratch / f"{stem}.onnx").read_bytes())
        np.savez(model.folder / "samples.npz", image=model.samples())
        one["arm"] = build(Build(model, "raspberry-pi-5", "fp32", scratch / "cache"))


def _bars(networks: Figures) -> Iterator[Figures]:
    """The bars of pruning that this file can judge, on the face network."""
    pruned = networks.get("face", {}).get("pruned", [])
    if not pruned:
        return
    what = "MACs saved at 2 points of TAR@FAR=0.001"
    yield _bar(f"{what} without training", _most(pruned, "repaired"), 0.30)
    yield _bar(
        f"{what} without training, on the people it was pruned with", _most(pruned, "repaired", "familiar"), 0.30
    )
    yield _bar(f"{what} with recovery", _most(pruned, "recovered"), 0.45)
    yield _bar(f"{what} with recovery, on the people it was pruned with", _most(pruned, "recovered", "familiar"), 0.45)
    everything = [networks["face"]["original"]["int8"], *(one["int8"] for one in pruned)]
    for words, *place in (("",), (", on the people it was pruned with", "familiar")):
        rates = [one["openvino"]["throughput_gain"] for one in everything if "openvino" in one and _holds(one, *place)]
        yield _bar(f"throughput of int8 / ONNX Runtime float32 at 2 points{words}", max(rates, default=0.0), 4.0)
    for kind in ("onnxruntime", "openvino"):
        timed = [one for one in pruned if kind in one]
        gains = [(one[kind]["throughput_gain"] - 1) / (1 / (1 - one["macs_saved"]) - 1) for one in timed]
        what = f"throughput gained with {kind}, as a share of what the MACs promise, at the worst ratio"
        yield _bar(what, min(gains, default=0.0), 0.7)
    for one in (one for one in pruned if "plain loop" in one):
        plain, ours = one["plain loop"]["plain"], one["recovered"]
        yield _bar(
            "samples per second of recovery / a plain loop's", ours["samples_per_s"] / plain["samples_per_s"], 2.0
        )
        end = plain["checks"][-1]
        reached = [check["elapsed_s"] for check in ours["checks"] if -check["value"] <= end["error"]]
        yield _bar(
            "seconds a plain loop takes to the error it ends with / seconds recovery takes to it",
            end["elapsed_s"] / min(reached) if reached else 0.0,
            2.0,
        )


def _most(pruned: list[Figures], form: str, *place: str) -> float:
    """The greatest share of the work that is saved inside the limit."""
    return max((one["macs_saved"] for one in pruned if form in one and _holds(one[form], *place)), default=0.0)


def _holds(figures: Figures, *place: str) -> bool:
    for name in place:
        figures = figures.get(name, {})
    return bool(figures.get("tar_drop_points", float("inf")) <= WITHIN)


def _bar(what: str, found: float, bar: float) -> Figures:
    return {"what": what, "found": round(found, 3), "bar": bar, "at": "least", "met": found >= bar}


if __name__ == "__main__":
    main()
