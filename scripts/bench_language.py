#!/usr/bin/env python3
"""How near a decoder stays to its float form by the bytes of its weights, beside peers, into benchmarks/language.json.

    scripts/make_language_model.py examples/language
    python -m venv peers && peers/bin/pip install nncf==3.4.0 openvino==2026.4.1
    pip install --target llama --no-deps ik-llama-cpp-python==0.1.5
    PYTHONPATH=.:llama scripts/bench_language.py examples/language --work /tmp/language --nncf peers/bin/python

Three kinds of text: formats are chosen and weights fitted on `calibration.txt`; `evaluation.txt` (of the same manual)
and `other.txt` (of another domain) choose nothing and judge. Ours is judged as it is delivered: weights packed as
target onnxruntime packs them, run by ONNX Runtime with its optimizations. Bytes are of all weights, with scales and
zero points. Peers whose packages are absent are left out, and named. What a run finished lies in the work folder.
Speed is measured by bench_language_speed.py, into a section of the same file.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
from bench_record import bar, commit, machine, versions
from decoder_graph import DecoderSize
from language_judge import DIVERGENCE, MORE, Figures, Judge, Run, by_reference, feeds_of, windows
from language_peers import Peer, find_quantizer, llama_peers, nncf_peers, onnxruntime_peer, run_session

from compiler.compress.weight_only import (
    Budget,
    WeightOptions,
    choose_weights,
    fit_weights,
    measure_weights,
    round_activations,
)
from compiler.model.decoder import find_decoder
from compiler.model.frontend import describe_inputs
from compiler.model.numerics import Array
from compiler.model.save import save_model
from compiler.target.scheme import BlockFormat, WeightChoices
from targets.onnxruntime_cpu.blocks import pack_weights
from targets.onnxruntime_cpu.rules import WEIGHTS

CALIBRATION, JUDGED = 24, 12
ROOT = Path(__file__).resolve().parent.parent
JUDGES = "evaluation.txt"

_WIDE = BlockFormat(8, 64, symmetric=True)
_NARROW = [BlockFormat(4, 32), BlockFormat(4, 64), BlockFormat(3, 32), BlockFormat(5, 32), BlockFormat(5, 64)]
ANY = WeightChoices(
    (*_NARROW, BlockFormat(6, 32), BlockFormat(6, 64), _WIDE),
    (_WIDE, BlockFormat(7, 64), BlockFormat(6, 64), BlockFormat(5, 32), BlockFormat(4, 32)),
)
"""All that the quantizer makes; no target runs 3, 5 and 7 bits, so that these are judged as border models."""

SETS = {"onnxruntime": WEIGHTS.weights or ANY, "any": ANY}
PACKED = {
    "float32": "packed, activations in float32: int4-weights",
    "int8": "packed, activations in int8: int4-weights-int8, which is delivered where it holds the limits",
}
"""Forms of ours that an artifact has, in the order in which they are made: roundings stay in the model."""

BUDGETS = (92.0, 105.5, 112.0, 136.5, 143.0)
"""MB of weights: those of the bars, and what llama.cpp's Q6_K and Q8_0 take."""

BARS = {92.0: (DIVERGENCE, 0.05), 105.5: (DIVERGENCE, 0.02), 112.0: (MORE, 1.0)}


def ours(
    model: ir.Model, calibration: Array, name: str, budgets: list[float], work: Path
) -> Iterator[tuple[Figures, Run]]:
    """Our quantizer at every budget, with a set of formats."""
    decoder, inputs = find_decoder(model), describe_inputs(model)
    folder, how = work / name, WeightOptions(batches=len(calibration))
    folder.mkdir(parents=True, exist_ok=True)
    costs = folder / "costs.json"

    def feeds() -> Iterator[Mapping[str, Array]]:
        return feeds_of(calibration, inputs, decoder)

    reads = folder / "reads"
    if not costs.exists():
        kept = {"folder": folder, "result": costs, "reads": reads}
        measure_weights(model, feeds(), SETS[name], how, logits=decoder.logits, tell=_tell, **kept)
    for budget in budgets:
        started, place = time.monotonic(), folder / f"{budget:g}"
        is_begun = place.exists()
        plan = choose_weights(costs, budget=Budget(int(budget * 1e6)), times={}, scheme=name)
        made = fit_weights(model, feeds(), plan.formats, how, folder=place, reads=reads, tell=_tell)
        row: Figures = {
            "who": f"fleetc, formats of {name}",
            "budget_mb": budget,
            "bytes": plan.bytes,
            "formats": dict(Counter(str(choice.format) for choice in plan.choices)),
            "expected KL": round(plan.kl, 5),
        }
        if not is_begun:  # else it is the rest of an earlier run's
            row["seconds"] = round(time.monotonic() - started)
        if name == "onnxruntime":
            for activations, note in PACKED.items():
                if activations == "int8":
                    round_activations(made)
                path = place / f"{activations}.onnx"
                packed, *files = save_model(pack_weights(made), path, external_above_bytes=0)
                yield (
                    row | {"file_bytes": sum(file.stat().st_size for file in (packed, *files)), "note": note},
                    (run_session(packed)),
                )
        else:
            yield row | {"note": "border model, activations in float"}, by_reference(made)


def peers(options: argparse.Namespace, model: ir.Model, calibration: Array) -> Iterator[Peer | str]:
    """Every peer that is installed; of the others, what is missing."""
    source, work = options.folder / "smollm2.onnx", options.work / "peers"
    work.mkdir(parents=True, exist_ok=True)
    yield onnxruntime_peer(source, work)
    program = find_quantizer()
    if program is None or find_spec("gguf") is None:
        yield "llama.cpp: pip install gguf; pip install --no-deps ik-llama-cpp-python"
    else:
        yield from llama_peers(model, size_of(model), program, work)
    if options.nncf is None:
        yield "NNCF: --nncf names no interpreter"
    else:
        rows = work / "calibration.npy"
        np.save(rows, calibration)
        yield from nncf_peers(source, rows, options.nncf, work)


def size_of(model: ir.Model) -> DecoderSize:
    """The size of a decoder that `decoder_graph` wrote."""
    shapes = {name: tuple(value.shape.numpy()) for name, value in model.graph.initializers.items() if value.shape}
    past = next(value.shape for value in model.graph.inputs if str(value.name).startswith("past") and value.shape)
    _, heads, _, head = (size if isinstance(size, int) else 0 for size in past)
    layers = sum(name.endswith("q_proj.weight") for name in shapes)
    vocabulary, width = shapes["model.embed_tokens.weight"]
    hidden = shapes["model.layers.0.mlp.up_proj.weight"][1]
    return DecoderSize(layers, width, width // head, heads, hidden, vocabulary)


def best_at(rows: list[Figures], limit: int) -> str:
    """Who has the lowest divergence of all whose weights take no more than a limit."""
    fitting = [row for row in rows if row.get("bytes", limit + 1) <= limit]
    return str(min(fitting, key=lambda row: row["texts"][JUDGES][DIVERGENCE][0])["who"]) if fitting else ""


def _tell(text: str) -> None:
    print(text, flush=True)


def _write(place: Path, rows: list[Figures], absent: list[str]) -> None:
    before = json.loads(place.read_text("utf-8")) if place.exists() else {}
    record = {
        **commit(),
        "machine": machine(),
        "load average": [round(number, 1) for number in os.getloadavg()],
        "versions": versions(["onnxruntime", "openvino", "numpy"]),
        "left out": absent,
        "rows": rows,
        # of a run of its own: bench_language_speed.py
        **({"speed": before["speed"]} if "speed" in before else {}),
    }
    place.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def _with_bar(row: Figures) -> Figures:
    if row.get("budget_mb") in BARS and row["note"] in PACKED.values():
        what, limit = BARS[row["budget_mb"]]
        figure = row["texts"][JUDGES][what]
        figure = figure[0] if isinstance(figure, list) else figure
        row["bar"] = bar(f"{what} at {row['budget_mb']:g} MB", figure, limit)
    return row


def main() -> None:
    """Quantizes the model for every set of formats and budget, and by every peer; judges each, and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what make_language_model.py wrote")
    parser.add_argument("--work", type=Path, required=True, help="where finished parts are kept")
    parser.add_argument("--budgets-mb", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--formats", nargs="+", choices=SETS, default=["onnxruntime"])
    parser.add_argument("--nncf", type=Path, help="the interpreter of an environment with nncf and openvino")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/language.json")
    options = parser.parse_args()
    model, tokenizer = ir.load(options.folder / "smollm2.onnx"), options.folder / "tokenizer.json"
    calibration = windows(options.folder / "calibration.txt", tokenizer, CALIBRATION)
    judges = {name: Judge(model, windows(options.folder / name, tokenizer, JUDGED)) for name in (JUDGES, "other.txt")}
    rows: list[Figures] = []
    absent: list[str] = []

    def judge(row: Figures, run: Run) -> None:
        row["texts"] = {name: judge.figures(run) for name, judge in judges.items()}
        rows.append(_with_bar(row))
        _tell(json.dumps(row))
        _write(options.out, rows, absent)

    judge({"who": "float32", "bytes": size_of(model).weight_bytes}, by_reference(model))
    for name in options.formats:
        for row, run in ours(model, calibration, name, options.budgets_mb, options.work):
            judge(row, run)
    for peer in peers(options, model, calibration):
        if isinstance(peer, str):
            absent.append(peer)
        else:
            judge({"who": peer.name, "bytes": peer.bytes, "note": peer.note}, peer.run)
    for row in rows:
        row["lowest KL at these bytes"] = best_at(rows, row["bytes"])
    _write(options.out, rows, absent)


if __name__ == "__main__":
    main()
