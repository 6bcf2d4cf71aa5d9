#!/usr/bin/env python3
"""How near quantized models come to float32, by quantizer and option, into benchmarks/quantizers.json.

    scripts/bench_quantizers.py face.onnx --calibration FOLDER --evaluation FOLDER --margin 10
    scripts/bench_quantizers.py minilm.onnx --calibration a.npz --evaluation b.npz [--name minilm] [--out FILE]

Calibration and evaluation are folders of pictures or .npz files, as in fleet files, and should be of different people,
texts or scenes. Judged is the signal-to-noise ratio of the outputs against float32, and their least cosine: finer than
any task's metric, which moves by whole decisions. Ours runs border models of OpenVINO's scheme under ONNX Runtime;
beside it ONNX Runtime's quantizer (symmetric, per channel) and NNCF's defaults (`pip install nncf`; left out where
absent), each in its own runtime. A model's row replaces that of the same name in the file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from bench_record import commit, machine

from compiler.compress.quant import QuantOptions, can_balance, quantize
from compiler.driver.stages.calibrate import Batches
from compiler.evaluate import Dataset, Preprocess, open_dataset, run_dataset
from compiler.fleet import Range
from compiler.model.frontend import describe_inputs, import_model
from compiler.model.numerics import Array, Arrays, compare_all
from compiler.passes.pipelines import PORTABLE, load_passes
from compiler.passes.run import run_passes
from targets.intel_openvino.quantized import INT8
from targets.nvidia_tensorrt.quantized import FP8, INT4_WEIGHTS

OURS: Mapping[str, QuantOptions] = {
    "nearest": QuantOptions(compensate=False),
    "nearest, biases left": QuantOptions(compensate=False, correct=False),
    "defaults": QuantOptions(),
    "activations balanced": QuantOptions(balance="activations"),
    "weights balanced": QuantOptions(balance="weights"),
    "percentile": QuantOptions(observer="percentile"),
    "min-max": QuantOptions(observer="min-max"),
}
SCHEMES = {scheme.name: scheme for scheme in (INT8, FP8, INT4_WEIGHTS)}
Figures = dict[str, Any]


def main() -> None:
    """Quantizes the model in every way, judges each, and writes its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=128, help="most of each (default: %(default)s)")
    parser.add_argument("--margin", type=float, default=0.0, help="percent around pictures of folders")
    parser.add_argument("--name", help="of the row; the file's without suffix where absent")
    parser.add_argument("--scheme", choices=list(SCHEMES), default=INT8.name, help="peers are asked for int8 alone")
    parser.add_argument("--only", nargs="+", choices=list(OURS), help="of ours; all where absent")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "benchmarks" / "quantizers.json")
    asked = parser.parse_args()
    model = import_model(asked.model, ranges={"batch": Range(1, 8, 32)})
    run_passes(model, load_passes(PORTABLE))
    how = Preprocess(margin_pct=asked.margin)
    calibration, evaluation = (
        open_dataset(path, describe_inputs(model), preprocess=how, labelled=None, count=asked.samples)
        for path in (asked.calibration, asked.evaluation)
    )
    expected = run_dataset(model, evaluation)
    row: Figures = {"samples": [calibration.count, evaluation.count], "sizes": "calibration, evaluation"}
    for name, found, seconds in _quantized(model, asked, calibration, evaluation):
        row[name] = {**_judged(expected, found), "quantizing_s": round(seconds, 1)}
        print(f"{name}: {row[name]}", flush=True)
    known = json.loads(asked.out.read_text(encoding="utf-8"))["models"] if asked.out.exists() else {}
    document = {**commit(), "machine": machine(), "models": known | {asked.name or asked.model.stem: row}}
    asked.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _quantized(
    model: ir.Model, asked: argparse.Namespace, calibration: Dataset, evaluation: Dataset
) -> Iterator[tuple[str, Arrays, float]]:
    """Name, outputs on the evaluation data, and the seconds that quantizing took."""
    for name, options in OURS.items():
        if (not asked.only or name in asked.only) and can_balance(model, options.balance):
            started = time.perf_counter()
            found = quantize(model, Batches(calibration), SCHEMES[asked.scheme], options)
            seconds = time.perf_counter() - started
            yield f"fleetc, {name}", run_dataset(found.model, evaluation), seconds
    if asked.scheme != INT8.name:
        return
    with tempfile.TemporaryDirectory(prefix="fleetc-bench-") as folder:
        started = time.perf_counter()
        path = quantize_ort(asked.model, list(_single(calibration)), Path(folder))
        seconds = time.perf_counter() - started
        yield "onnxruntime", _run_ort(path, evaluation), seconds
    yield from _nncf(asked.model, calibration, evaluation)


def quantize_ort(model: Path, samples: Sequence[Arrays], folder: Path) -> Path:
    """ONNX Runtime's own quantizer: Q/DQ, weights per channel and symmetric, after its own preparation."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
        def __init__(self) -> None:
            self._left = iter(samples)

        def get_next(self) -> dict[str, Array] | None:
            sample = next(self._left, None)
            return None if sample is None else dict(sample)

    prepared, path = folder / "prepared.onnx", folder / "ort-int8.onnx"
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)  # it fails for some
    options = {"WeightSymmetric": True, "ActivationSymmetric": True}
    quantize_static(
        str(prepared), str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True, extra_options=options
    )
    return path


def _run_ort(path: Path, evaluation: Dataset) -> Arrays:
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return _stacked([dict(zip(names, session.run(None, sample), strict=True)) for sample in _single(evaluation)])


def _nncf(path: Path, calibration: Dataset, evaluation: Dataset) -> Iterator[tuple[str, Arrays, float]]:
    """NNCF's defaults, and where the model is a transformer what it has for those."""
    try:
        import nncf
    except ImportError:
        return
    import openvino as ov

    samples = list(_single(calibration))
    types = {"nncf": None, "nncf, as a transformer": nncf.ModelType.TRANSFORMER}
    for name, kind in types.items():
        started = time.perf_counter()
        low = nncf.quantize(ov.Core().read_model(path), nncf.Dataset(samples), model_type=kind)
        seconds = time.perf_counter() - started
        compiled = ov.Core().compile_model(low, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        keys = [port.get_any_name() for port in compiled.outputs]
        runs = [compiled(dict(sample)) for sample in _single(evaluation)]
        yield name, _stacked([{key: run[index] for index, key in enumerate(keys)} for run in runs]), seconds


def _single(data: Dataset) -> Iterator[Arrays]:
    yield from data.batches(1)


def _stacked(runs: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def _judged(expected: Arrays, found: Arrays) -> Figures:
    """The signal-to-noise ratio of the worst output, and the least cosine of a sample's first output."""
    name = next(iter(expected))
    want, got = (one[name].astype(np.float64).reshape(len(one[name]), -1) for one in (expected, found))
    cosines = (want * got).sum(axis=1) / (np.linalg.norm(want, axis=1) * np.linalg.norm(got, axis=1))
    worst = min(stats.sqnr_db for stats in compare_all(expected, found).values())
    return {
        "sqnr_db": round(worst, 2),
        "cosine_mean": round(float(cosines.mean()), 5),
        "cosine_least": round(float(cosines.min()), 5),
    }


if __name__ == "__main__":
    main()
