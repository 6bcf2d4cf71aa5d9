#!/usr/bin/env python3
"""How near a decoder stays to its float form by the bytes of its weights, into benchmarks/language.json.

    scripts/make_language_model.py examples/language
    scripts/bench_language.py examples/language --work /tmp/language --budgets-mb 92 105.5 112

Formats are those that the target onnxruntime reads (4, 6 and 8 bits), and all that the quantizer makes (3 to 8 bits,
which no target runs so far). Bytes are of all weights, with scales and zero points (`BlockFormat.bytes_of`). Figures
are of border models under ONNX Runtime: all tokens of windows of 256, of the text that judges and, with `--other`, of a
text of another domain. What a run finished lies in the work folder, and is not computed again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from bench_record import bar, commit, machine, versions

from compiler.compress.weight_only import WeightOptions, measure_weights, quantize_weights
from compiler.evaluate.bootstrap import Measured, Values, Weights, interval, resampled
from compiler.evaluate.generation import divergences, log_softmax
from compiler.evaluate.text import empty_cache, read_tokens, token_inputs
from compiler.model.decoder import find_decoder
from compiler.model.frontend import describe_inputs
from compiler.model.frontend.extract import extract_prefix
from compiler.model.numerics import Array, Arrays
from compiler.model.reference import Unoptimized
from compiler.target.scheme import BlockFormat, WeightChoices
from targets.onnxruntime_cpu.rules import WEIGHTS

WINDOW = 256
CALIBRATION, JUDGED = 24, 12
ROOT = Path(__file__).resolve().parent.parent

_WIDE = BlockFormat(8, 64, symmetric=True)
_NARROW = [BlockFormat(4, 32), BlockFormat(4, 64), BlockFormat(3, 32), BlockFormat(5, 32), BlockFormat(5, 64)]
ANY = WeightChoices(
    (*_NARROW, BlockFormat(6, 32), BlockFormat(6, 64), _WIDE),
    (_WIDE, BlockFormat(7, 64), BlockFormat(6, 64), BlockFormat(5, 32), BlockFormat(4, 32)),
)
SETS = {"onnxruntime": WEIGHTS.weights or ANY, "any": ANY}
BARS = {92.0: ("KL in nats a token", 0.05), 105.5: ("KL in nats a token", 0.02), 112.0: ("more perplexity in %", 1.0)}

Figures = dict[str, Any]


class Judge:
    """The float model's logits for every window of a text.

    Args:
        model: In float32.
        rows: Token ids (windows, tokens).
    """

    def __init__(self, model: ir.Model, rows: Array) -> None:
        self._rows, self._decoder = rows, find_decoder(model)
        self._inputs = describe_inputs(model)
        self._expected = [logits.astype(np.float16) for logits in self._logits(model)]

    def _logits(self, model: ir.Model) -> Iterator[Array]:
        session = Unoptimized(extract_prefix(model, [self._decoder.logits]))
        for feeds in feeds_of(self._rows, self._inputs, self._decoder):
            yield session.run(feeds)[self._decoder.logits][0]

    def figures(self, model: ir.Model) -> Figures:
        """Perplexity, divergence and agreement, with 95 % intervals over windows."""
        own, base, kl, same = [], [], [], []
        for ids, wanted, logits in zip(self._rows, self._expected, self._logits(model), strict=True):
            expected, places = wanted.astype(np.float32), np.arange(len(ids) - 1)
            own.append(-log_softmax(logits[:-1])[places, ids[1:]].mean())
            base.append(-log_softmax(expected[:-1])[places, ids[1:]].mean())
            kl.append(divergences(expected, logits).mean())
            same.append(100 * (expected.argmax(1) == logits.argmax(1)).mean())
        more = 100 * (np.exp(np.mean(own) - np.mean(base)) - 1)
        return {
            "perplexity": round(float(np.exp(np.mean(own))), 4),
            "more perplexity in %": round(float(more), 3),
            "KL in nats a token": _with_interval(np.array(kl, np.float64), 5),
            "same top token in %": _with_interval(np.array(same, np.float64), 2),
        }


def feeds_of(rows: Array, inputs: Any, decoder: Any) -> Iterator[Arrays]:
    """Windows with an empty cache."""
    cache = empty_cache(inputs, decoder)
    return ({**token_inputs(row[None], 0, inputs, decoder), **cache} for row in rows)


def windows(path: Path, tokenizer: Path, count: int) -> Array:
    """Windows spread evenly over a text (windows, tokens)."""
    ids = read_tokens(path, tokenizer)
    starts = np.arange(count) * ((len(ids) - WINDOW) // count)
    return np.stack([ids[start : start + WINDOW] for start in starts])


def _with_interval(values: Values, places: int) -> list[float]:
    def mean(weights: Weights) -> Values:
        means: Values = (weights @ values) / weights.sum(axis=1)
        return means

    low, high = interval(resampled([Measured(float(values.mean()), {}, len(values), len(values), mean)])[0])
    return [round(number, places) for number in (float(values.mean()), low, high)]


def _write(place: Path, rows: list[Figures]) -> None:
    record = {**commit(), "machine": machine(), "versions": versions(["onnxruntime", "numpy"]), "rows": rows}
    place.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def main() -> None:
    """Quantizes the model for every set of formats and budget, judges each, and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="smollm2.onnx, tokenizer.json, calibration.txt, evaluation.txt")
    parser.add_argument("--work", type=Path, required=True, help="where finished parts are kept")
    parser.add_argument("--budgets-mb", type=float, nargs="+", default=sorted(BARS))
    parser.add_argument("--formats", nargs="+", choices=SETS, default=["any", "onnxruntime"])
    parser.add_argument("--other", type=Path, help="a text of another domain")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/language.json")
    options = parser.parse_args()
    model, tokenizer = ir.load(options.folder / "smollm2.onnx"), options.folder / "tokenizer.json"
    decoder, inputs = find_decoder(model), describe_inputs(model)
    calibration = windows(options.folder / "calibration.txt", tokenizer, CALIBRATION)
    texts = {"evaluation.txt": options.folder / "evaluation.txt"}
    texts |= {options.other.name: options.other} if options.other else {}
    judges = {name: Judge(model, windows(path, tokenizer, JUDGED)) for name, path in texts.items()}
    rows = [{"formats": "float32", "texts": {name: judge.figures(model) for name, judge in judges.items()}}]
    for name in options.formats:
        folder = options.work / name
        folder.mkdir(parents=True, exist_ok=True)
        costs, how = folder / "costs.json", WeightOptions(batches=CALIBRATION)
        if not costs.exists():
            feeds = feeds_of(calibration, inputs, decoder)
            measure_weights(
                model, feeds, SETS[name], how, logits=decoder.logits, folder=folder, result=costs, tell=print
            )
        for budget in options.budgets_mb:
            started = time.monotonic()
            made = quantize_weights(
                model,
                feeds_of(calibration, inputs, decoder),
                costs,
                how,
                budget_bytes=int(budget * 1e6),
                scheme=name,
                folder=folder / f"{budget:g}",
                tell=lambda text: None,
            )
            row: Figures = {
                "formats": name,
                "budget_mb": budget,
                "bytes": made.plan.bytes,
                "weights in each format": dict(Counter(str(choice.format) for choice in made.plan.choices)),
                "expected KL": round(made.plan.kl, 5),
                "seconds": round(time.monotonic() - started),
                "texts": {text: judge.figures(made.model) for text, judge in judges.items()},
            }
            if budget in BARS:
                what, limit = BARS[budget]
                figure = row["texts"]["evaluation.txt"][what]
                found = figure[0] if isinstance(figure, list) else figure
                row["bar"] = bar(f"{what} at {budget:g} MB", found, limit)
            print(json.dumps(row, indent=1), flush=True)
            rows.append(row)
            _write(options.out, rows)


if __name__ == "__main__":
    main()
