"""Weights of a decoder under a limit: within the bytes, as close as was expected, and the same after a kill."""

import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import pytest
from language_models import tiny_decoder, windows

from compiler.compress.weight_only import (
    Budget,
    WeightOptions,
    WeightPlan,
    choose_weights,
    fit_weights,
    measure_weights,
)
from compiler.compress.weight_only.divergence import Trials, mean_divergence
from compiler.compress.weight_only.layers import WeightKind, find_layers
from compiler.compress.weight_only.segments import Stream, cut_segments, sum_squares
from compiler.errors import UnsupportedModel
from compiler.evaluate.generation import log_softmax
from compiler.model.graph import graph_digest
from compiler.model.reference import Unoptimized
from compiler.target.scheme import BlockFormat, WeightChoices

WIDE = BlockFormat(8, 32, symmetric=True)
CHOICES = WeightChoices((BlockFormat(4, 32), BlockFormat(4, 64), WIDE), (WIDE, BlockFormat(4, 32)))

TIMES = {4: 1.0, 8: 1.5}


def quiet(text: str) -> None:
    return None


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return tiny_decoder()


@pytest.fixture(scope="module")
def batches(model):
    return windows(model, 8)


@pytest.fixture(scope="module")
def costs(model, batches, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("costs")
    arguments = {"logits": "logits", "folder": folder / "work", "result": folder / "costs.json", "tell": quiet}
    arguments["reads"] = folder / "reads"
    measure_weights(model, batches, CHOICES, WeightOptions(), **arguments)
    return folder / "costs.json"


class Quantized(NamedTuple):
    model: ir.Model
    plan: WeightPlan


def quantized(model, batches, costs: Path, folder: Path, budget: int | None, tell=quiet, time=None) -> Quantized:
    plan = choose_weights(costs, budget=Budget(budget, time), times=TIMES, scheme="test")
    reads = costs.parent / "reads"
    made = fit_weights(model, batches, plan.formats, WeightOptions(), folder=folder, reads=reads, tell=tell)
    return Quantized(made, plan)


def test_every_matrix_is_seen_and_the_shared_table_once(model):
    layers = find_layers(model)
    assert [layer.kind for layer in layers].count(WeightKind.TABLE) == 1
    assert len(layers) == 1 + 7 * 2
    table = layers[0]
    assert (table.outputs, table.inputs, table.is_turned) == (256, 128, False) and table.reads


def test_segments_compute_what_the_whole_model_does(model, batches):
    layers = find_layers(model)
    segments = cut_segments(model, layers, most_bytes=150_000)
    assert len(segments) > 3
    stream = Stream(model, segments, [dict(batch) for batch in batches])
    found: dict[str, np.ndarray] = {}
    for segment in segments:
        reads = {layer.reads for layer in segment.layers if layer.kind == WeightKind.PRODUCT}
        found |= sum_squares(stream.run(segment, reads), reads)
    last = next(layer for layer in layers if layer.name.endswith("1.mlp.down_proj.weight"))
    whole = model.clone()
    value = next(v for node in whole.graph for v in node.outputs if v.name == last.reads)
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(["b", "s", 192])
    whole.graph.outputs.append(value)
    rows = np.concatenate([Unoptimized(whole).run(batch)[last.reads].reshape(-1, 192) for batch in batches])
    assert np.allclose(found[last.reads], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-4)


def test_the_limit_of_time_holds_and_counts_from_the_fastest_format(model, batches, costs, tmp_path):
    free, fast = (quantized(model, batches, costs, tmp_path / str(time), None, time=time) for time in (None, 1.2))
    assert free.plan.time == pytest.approx(1.5) and 1.0 <= fast.plan.time <= 1.2
    assert fast.plan.kl > free.plan.kl


def test_the_limit_holds_and_more_bytes_are_closer(model, batches, costs, tmp_path):
    float_bytes = 4 * sum(layer.elements for layer in find_layers(model))
    expected = [Unoptimized(model).run(batch)["logits"] for batch in windows(model, 4, length=24)]
    measured = []
    for share in (0.17, 0.2, None):
        budget = None if share is None else int(share * float_bytes) + 4096
        made = quantized(model, batches, costs, tmp_path / str(share), budget)
        assert budget is None or made.plan.bytes <= budget
        both = [Unoptimized(made.model).run(batch)["logits"] for batch in windows(model, 4, length=24)]
        measured.append(float(np.mean([divergence(a, b) for a, b in zip(expected, both, strict=True)])))
    assert measured[0] > measured[1] > measured[2]
    assert measured[2] < 1e-3


def divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    return mean_divergence(log_softmax(reference.reshape(-1, reference.shape[-1])), logits)


def test_a_trial_behind_a_start_is_that_of_the_whole_model(model):
    layers, batches = find_layers(model), windows(model, 2, length=24)
    late = next(layer for layer in layers if layer.name.endswith("1.mlp.up_proj.weight"))
    changed = {late.name: 0.9 * model.graph.initializers[late.name].const_value.numpy()}
    names = [layer.name for layer in layers]
    starts = {layer.node for layer in layers if ".1." in layer.name}
    assert len(starts) > 3
    by_parts = Trials(model, "logits", batches, weights=names, starts=starts).measure(changed)
    whole = model.clone()
    whole.graph.initializers[late.name].const_value = ir.tensor(changed[late.name])
    both = [[Unoptimized(each).run(batch)["logits"] for each in (model, whole)] for batch in batches]
    assert by_parts == Trials(model, "logits", batches, weights=names).measure(changed)
    assert by_parts == pytest.approx(np.mean([divergence(*pair) for pair in both])) and by_parts > 1e-4


def test_a_choice_has_its_reason(model, batches, costs, tmp_path):
    float_bytes = 4 * sum(layer.elements for layer in find_layers(model))
    plan = quantized(model, batches, costs, tmp_path, int(0.19 * float_bytes)).plan
    formats = {choice.format for choice in plan.choices}
    assert len(formats) > 1
    assert all(
        "nats a token saved" in choice.reason or "pay more elsewhere" in choice.reason for choice in plan.choices
    )


def test_a_run_that_was_killed_goes_on_to_the_same_weights(model, batches, costs, tmp_path, monkeypatch):
    monkeypatch.setattr("compiler.compress.weight_only.quantize.SEGMENT_BYTES", 300_000)
    told: list[str] = []
    whole = quantized(model, batches, costs, tmp_path / "whole", None, told.append)
    kept = sorted((tmp_path / "whole").glob("final-*.npz"))
    (tmp_path / "killed").mkdir()
    for file in kept[: len(kept) // 2]:
        shutil.copy(file, tmp_path / "killed")
    again: list[str] = []
    resumed = quantized(model, batches, costs, tmp_path / "killed", None, again.append)
    assert 0 < len(again) < len(told)
    assert graph_digest(resumed.model) == graph_digest(whole.model)
    assert hashlib.sha256(str(resumed.plan).encode()).digest() == hashlib.sha256(str(whole.plan).encode()).digest()


def test_what_was_summed_while_measuring_is_not_summed_again(model, batches, costs, tmp_path, monkeypatch):
    shutil.copy(costs, tmp_path)
    summed = quantized(model, batches, tmp_path / costs.name, tmp_path / "summed", None)
    monkeypatch.setattr(Stream, "run", None)
    kept = quantized(model, batches, costs, tmp_path / "kept", None)
    assert graph_digest(kept.model) == graph_digest(summed.model)


def test_of_a_large_model_what_products_read_is_summed_again(model, batches, tmp_path, monkeypatch):
    monkeypatch.setattr("compiler.compress.weight_only.quantize.KEPT_BYTES", 1000)
    how = {"logits": "logits", "folder": tmp_path / "work", "result": tmp_path / "costs.json", "tell": quiet}
    measure_weights(model, batches, CHOICES, WeightOptions(), reads=tmp_path / "reads", **how)
    assert not (tmp_path / "reads").exists()
    assert quantized(model, batches, tmp_path / "costs.json", tmp_path / "fitted", None).plan.kl > 0


class Killed(Exception):
    """Stands for the end of the process."""


def test_trials_that_were_made_before_a_kill_are_not_made_again(model, batches, costs, tmp_path):
    trials: list[str] = []

    def until_the_third_trial(text: str) -> None:
        trials.append(text) if "nats a token" in text else None
        if len(trials) == 3:
            raise Killed

    def measured(name: str, tell) -> bytes:
        result = tmp_path / name
        how = {"logits": "logits", "folder": tmp_path / "work", "result": result, "tell": tell}
        how["reads"] = tmp_path / "reads"
        measure_weights(model, batches, CHOICES, WeightOptions(batches=8), **how)
        return result.read_bytes()

    with pytest.raises(Killed):
        measured("never.json", until_the_third_trial)
    again: list[str] = []
    assert measured("costs.json", again.append) == costs.read_bytes()
    assert not set(trials) & set(again) and any("nats a token" in text for text in again)


def test_weights_that_are_not_finite_are_refused_by_name(batches, tmp_path):
    bad = tiny_decoder()
    value = bad.graph.initializers["model.layers.1.mlp.up_proj.weight"]
    array = value.const_value.numpy().copy()
    array[0, :3] = np.nan
    value.const_value = ir.tensor(array, name=value.name)
    with pytest.raises(UnsupportedModel, match=r"model.layers.1.mlp.up_proj.weight \(3\)"):
        measure_weights(
            bad,
            batches,
            CHOICES,
            WeightOptions(),
            logits="logits",
            folder=tmp_path,
            result=tmp_path / "x.json",
            reads=tmp_path / "reads",
            tell=quiet,
        )
