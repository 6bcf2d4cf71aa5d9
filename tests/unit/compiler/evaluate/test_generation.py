"""Text for a decoder: windows that fit the model, and a perplexity that is the textbook's."""

import numpy as np
import pytest
from language_models import SIZE, tiny_decoder, tiny_text

from compiler.errors import DataError, TargetUnavailable
from compiler.evaluate import Dataset, SplitKind, find_task, make_split, run_dataset
from compiler.evaluate.generation import check, divergences, measure
from compiler.evaluate.text import open_text
from compiler.fleet.data import Evaluation
from compiler.model.decoder import find_decoder
from compiler.model.frontend import describe_inputs

MODEL = tiny_decoder()
DECODER, INPUTS = find_decoder(MODEL), describe_inputs(MODEL)


def opened(tmp_path, ids, *, window=16, count=None) -> Dataset:
    np.save(tmp_path / "ids.npy", ids)
    return open_text(tmp_path / "ids.npy", INPUTS, DECODER, window=window, tokenizer=None, count=count)


def test_windows_are_spread_over_the_text_with_an_empty_cache(tmp_path):
    ids = tiny_text(400)
    dataset = opened(tmp_path, ids, count=4)
    batches = list(dataset.batches(1))
    assert len(batches) == dataset.count == 4
    assert np.array_equal(batches[0]["input_ids"][0], ids[:16])
    assert np.array_equal(batches[-1]["input_ids"][0], ids[-16:])
    assert batches[0]["past_key_values.1.value"].shape == (1, SIZE.kv_heads, 0, SIZE.head_width)
    assert np.array_equal(batches[0]["position_ids"], [range(16)])
    assert np.array_equal(dataset.labels["ids"][0], ids[8:16])


def test_only_the_judged_logits_are_kept(tmp_path):
    dataset = opened(tmp_path, tiny_text(400), count=3)
    outputs = run_dataset(MODEL, dataset)
    assert {name: array.shape for name, array in outputs.items()} == {"logits": (3, 9, SIZE.vocabulary)}


def test_the_perplexity_is_that_of_the_textbook():
    random = np.random.default_rng(0)
    logits = random.standard_normal((3, 5, 7)).astype(np.float32)
    other = logits + 0.3 * random.standard_normal(logits.shape).astype(np.float32)
    labels = np.zeros(3, np.dtype([("ids", np.int64, (4,))]))
    labels["ids"] = random.integers(0, 7, (3, 4))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (logits[:, :-1], other[:, :-1]))
    perplexities = [
        np.exp(-np.mean([np.log(x[w, t, labels["ids"][w, t]]) for w in range(3) for t in range(4)])) for x in (p, q)
    ]
    found = measure({"logits": other}, labels, {"logits": logits})
    assert found.value_pct == pytest.approx(100 - 100 * (perplexities[1] / perplexities[0] - 1), rel=1e-5)
    assert found.details["perplexity"] == pytest.approx(perplexities[1], rel=1e-5)
    assert found.details["KL in nats a token"] == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-4)
    assert found.count == 12 and found.units == 3
    assert measure({"logits": logits}, labels, {"logits": logits}).value_pct == 100.0


def test_the_drop_of_the_task_is_the_increase_with_its_interval(tmp_path):
    dataset = opened(tmp_path, tiny_text(600), count=12)
    task = find_task(Evaluation(task="generation", path=tmp_path / "ids.npy"))
    reference = run_dataset(MODEL, dataset)
    noise = np.random.default_rng(1).standard_normal(reference["logits"].shape).astype(np.float32)
    drop = task.drop(reference, {"logits": reference["logits"] + 0.5 * noise}, dataset.labels)
    before, after = drop.reference.details["perplexity"], drop.candidate.details["perplexity"]
    assert drop.drop_pct == pytest.approx(100 * (after / before - 1), rel=1e-4)
    assert drop.low_pct < drop.drop_pct < drop.high_pct
    assert check(dataset) == () and "windows" in check(opened(tmp_path, tiny_text(64)))[0]


def test_every_judged_token_is_a_decision_so_that_half_of_the_windows_can_be_held_out(tmp_path):
    dataset = opened(tmp_path, tiny_text(600), count=12)
    split = make_split(dataset.labels, dataset.count, by_person=False, limit_pct=5.0)
    assert split.kind == SplitKind.HELD_OUT and "48 decisions" in split.why
    assert sorted([*split.choosing, *split.folds[0]]) == list(range(12))


def test_divergence_of_equal_logits_is_zero():
    logits = np.random.default_rng(0).standard_normal((4, 9)).astype(np.float32)
    assert np.allclose(divergences(logits, logits + 3.0), 0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (tiny_text(8), "the text has 8 tokens"),
        (np.full(100, SIZE.vocabulary), f"ids up to {SIZE.vocabulary}, and the model has {SIZE.vocabulary} tokens"),
        (np.zeros((3, 4), np.int64), "one row of integers"),
        (np.zeros(100, np.float32), "one row of integers"),
    ],
)
def test_text_that_does_not_fit_the_model_is_refused(tmp_path, ids, said):
    with pytest.raises(DataError) as refused:
        opened(tmp_path, ids)
    assert said in str(refused.value)


def test_a_text_needs_a_tokenizer(tmp_path):
    (tmp_path / "text.txt").write_text("a text")
    with pytest.raises(DataError, match="has no tokenizer"):
        open_text(tmp_path / "text.txt", INPUTS, DECODER, window=16, tokenizer=None, count=None)


def test_a_missing_tokenizers_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("compiler.evaluate.text.find_spec", lambda name: None)
    (tmp_path / "text.txt").write_text("a text")
    with pytest.raises(TargetUnavailable) as missing:
        open_text(tmp_path / "text.txt", INPUTS, DECODER, window=16, tokenizer=tmp_path / "t.json", count=None)
    assert "fleetc[language]" in str(missing.value)
