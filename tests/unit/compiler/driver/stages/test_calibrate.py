"""Observations in the store: one for all variants, and a warning where evaluation data leave them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler.artifact.manifest import BORDER
from compiler.compress.quant import QuantOptions, quantize
from compiler.driver.stages.calibrate import Batches, coverage, observed
from compiler.driver.stages.run import Stages
from compiler.evaluate import Dataset
from compiler.model.numerics import Arrays
from compiler.model.spec import TensorSpec
from compiler.store import Entry, Store
from compiler.target.scheme import OpScheme, QuantScheme, TensorFormat

TEXT = """<ir_version: 10, opset_import: ["": 18]> one (float[N, 6] x) => (float[N, 2] y)
    <float[6, 2] w = {1, -2, 3, 0.5, 0.1, 2, 1, 1, -1, 0.3, 0.7, -0.2}> { y = MatMul(x, w) }"""
SCHEME = QuantScheme("test", {"MatMul": OpScheme({0: TensorFormat("int8")}, {1: TensorFormat("int8")})})


def dataset(scale: float, reads: list[int], batch: int | str = "N") -> Dataset:
    rows = np.random.default_rng(2).normal(size=(40, 6)).astype(np.float32) * np.float32(scale)

    def read(index: int) -> Arrays:
        reads.append(index)
        return {"x": rows[index : index + 1]}

    def steps() -> Iterator[partial[Arrays]]:
        return (partial(read, index) for index in range(len(rows)))

    return Dataset(len(rows), "made up", f"scale {scale}", (TensorSpec("x", "float32", (batch, 6)),), steps)


def entry_of(text: str, folder: Path) -> Entry:
    model = ir.from_onnx_text(text)
    model.graph[0].name = "product"
    ir.save(model, folder / BORDER)
    return Entry("rewrite", "0" * 64, folder, hit=True)


@pytest.fixture
def rewritten(tmp_path: Path) -> Entry:
    return entry_of(TEXT, tmp_path)


def test_options_that_only_choose_ranges_share_one_reading_of_all_the_data(tmp_path: Path, rewritten: Entry) -> None:
    reads: list[int] = []
    data, store = dataset(1, reads), Store(tmp_path / "store")
    stages = Stages(store)
    seen = [
        observed(stages, rewritten, SCHEME, data, QuantOptions(observer=observer))
        for observer in ("mse", "percentile", "entropy")
    ]
    assert len(reads) == data.count and seen[0].observations.samples == data.count
    assert store.info().stages["calibrate"][0] == 1
    assert len({one.observations.to_bytes() for one in seen}) == 1
    observed(stages, rewritten, SCHEME, data, QuantOptions(balance="activations"))
    assert store.info().stages["calibrate"][0] == 2, "what changes the model is observed for itself"


def test_schemes_that_read_the_same_values_share_one_reading_of_the_data(tmp_path: Path, rewritten: Entry) -> None:
    reads: list[int] = []
    data, store = dataset(1, reads), Store(tmp_path / "store")
    product = OpScheme({0: TensorFormat("int8", positive="uint8")}, {1: TensorFormat("int8")})
    other = QuantScheme("other", {"MatMul": product, "Conv": product})
    seen = [observed(Stages(store), rewritten, scheme, data, QuantOptions()) for scheme in (SCHEME, other)]
    assert len(reads) == data.count and seen[0].observations.to_bytes() == seen[1].observations.to_bytes()
    weights = QuantScheme("weights", {"MatMul": OpScheme({}, {1: TensorFormat("int8")})})
    observed(Stages(store), rewritten, weights, data, QuantOptions())
    assert store.info().stages["calibrate"][0] == 2, "a scheme that reads other values has its own"


def test_a_stored_observation_gives_the_plan_that_a_fresh_one_gives(tmp_path: Path, rewritten: Entry) -> None:
    data, stages = dataset(1, []), Stages(Store(tmp_path / "store"))
    model = ir.load(rewritten.files / BORDER)
    for options in (QuantOptions(), QuantOptions(observer="percentile"), QuantOptions(balance="activations")):
        stored = observed(stages, rewritten, SCHEME, data, options)
        found = quantize(model, Batches(data), SCHEME, options, calibrated=stored)
        fresh = quantize(model, Batches(data), SCHEME, options)
        assert found.plan == fresh.plan and found.warnings == fresh.warnings


def test_evaluation_data_that_leave_the_calibrated_ranges_are_warned_of(tmp_path: Path, rewritten: Entry) -> None:
    stages = Stages(Store(tmp_path / "store"))
    (warning,) = coverage(stages, rewritten, SCHEME, dataset(1, []), dataset(10, []))
    assert "leave the calibrated range of 1 of 1 values, 'x'" in warning and "costs accuracy" in warning
    assert coverage(stages, rewritten, SCHEME, dataset(10, []), dataset(1, [])) == ()


@pytest.mark.parametrize("batch", [16, 64], ids=["last batch short", "fewer samples than a batch"])
def test_a_model_of_a_fixed_batch_is_observed_on_any_number_of_samples(tmp_path: Path, batch: int) -> None:
    ranges = []
    for size, text in (("N", TEXT), (batch, TEXT.replace("[N,", f"[{batch},"))):
        folder = tmp_path / str(size)
        folder.mkdir()
        stages = Stages(Store(folder / "store"))
        seen = observed(stages, entry_of(text, folder), SCHEME, dataset(1, [], size), QuantOptions())
        ranges.append((seen.observations.tensors["x"].low, seen.observations.tensors["x"].high))
    assert ranges[0] == ranges[1]
