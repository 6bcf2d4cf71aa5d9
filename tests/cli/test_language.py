"""A decoder from its file to answers: built in few bits inside its limits, and run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from decoder_graph import DecoderSize
from language_models import tiny_decoder, tiny_text, windows

from compiler.model.reference import Unoptimized
from tests.cli.conftest import Place, make_place

FLEET = """schema: 1
model: decoder.onnx
calibration: {path: calibration.npy, samples: 8}
evaluation: {task: generation, path: evaluation.npy, samples: 10}
generation: {context: 32, prefill: 16}
precision: int4-weights
limits: {perplexity_increase_pct: 20, memory_mib: MEMORY}
devices:
  phone: {profile: phone.yaml}
"""
PROFILE = """schema: 1
name: phone
target: onnxruntime
"""
SIZE = DecoderSize(layers=1, width=128, heads=4, kv_heads=2, hidden=192, vocabulary=256)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Place:
    place = make_place(tmp_path_factory.mktemp("language"), site)
    ir.save(tiny_decoder(SIZE), place.root / "decoder.onnx")
    np.save(place.root / "calibration.npy", tiny_text(400))
    np.save(place.root / "evaluation.npy", tiny_text(400, seed=1))
    (place.root / "phone.yaml").write_text(PROFILE)
    (place.root / "language.yaml").write_text(FLEET.replace("MEMORY", "400"))
    outcome = place.run("build", "language.yaml", "-o", "dist", "--repeat", "1")
    assert outcome.code == 0, outcome.err
    return place


def test_it_is_delivered_inside_its_limits(built: Place) -> None:
    manifest = built.manifest("phone")
    gates = {gate["name"]: gate for gate in manifest["gates"]}
    assert gates["memory: process"]["passed"] and gates["memory: process"]["unit"] == "MiB"
    assert gates["accuracy"]["passed"]
    (trial,) = (row for row in manifest["trials"] if row["precision"] == "int4-weights")
    details = trial["accuracy"]["drop"]["candidate"]["details"]
    assert 0 <= details["KL in nats a token, low"] <= details["KL in nats a token"] < 0.5


def test_each_weight_has_its_format_and_reason(built: Place) -> None:
    reasons = [layer["why"] for layer in built.manifest("phone")["layers"] if "nats a token" in layer["why"]]
    assert len(reasons) == 8 and all("bits, blocks of" in reason for reason in reasons)


def test_it_answers_with_the_tokens_of_its_border_model(built: Place) -> None:
    prompt = tiny_text(20, seed=7)
    words = " ".join(map(str, prompt))
    outcome = built.run("run", "dist/phone", "--prompt", words, "--tokens", "4", "--json")
    assert outcome.code == 0, outcome.err
    answer = outcome.json
    assert len(answer["tokens"]) == 4 and len(answer["token_ms"]) == 3
    border = ir.load(built.dist / "phone" / "border.onnx")
    # the whole text at once: what the cache was built from in two parts must give the same next token
    text = np.concatenate([prompt, answer["tokens"][:-1]])
    (inputs,) = windows(border, 1, length=len(text))
    logits = Unoptimized(border).run({**inputs, "input_ids": text[None].astype(np.int64)})["logits"][0]
    expected = logits[len(prompt) - 1 :]
    chosen = expected[np.arange(4), answer["tokens"]]
    # rounding of activations may turn a tie: what was chosen is the best but for that
    assert (expected.max(axis=1) - chosen < 0.1 * expected.std()).all()


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("1 2 three", "without a tokenizer a prompt is token ids"),
        ("5 256", "ids from 5 to 256, and the model has 256 tokens"),
        (" ".join(["1"] * 32), "the prompt has 32 tokens, and may have 1 to 31"),
        ("", "the prompt has 0 tokens"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(built: Place, prompt: str, said: str) -> None:
    outcome = built.run("run", "dist/phone", "--prompt", prompt)
    assert outcome.code == 2 and said in outcome.err


def test_a_memory_limit_that_no_format_holds_ends_in_5(built: Place) -> None:
    (built.root / "small.yaml").write_text(FLEET.replace("MEMORY", "64.05"))
    outcome = built.run("build", "small.yaml", "-o", "small", "--repeat", "1")
    assert outcome.code == 5
    assert "their smallest formats take" in outcome.err and "expected divergence" in outcome.err


def test_it_is_judged_again_by_another_text(built: Place) -> None:
    np.save(built.root / "other.npy", tiny_text(300, seed=3))
    outcome = built.run("verify", "dist/phone", "--model", "decoder.onnx", "--evaluation", "other.npy", "--json")
    assert outcome.code == 0, outcome.err
    assert "KL in nats a token" in outcome.json["accuracy"]["drop"]["candidate"]["details"]


def test_a_language_models_limits_need_its_data(built: Place) -> None:
    text = FLEET.replace("MEMORY", "400").replace("evaluation:", "# evaluation:")
    (built.root / "bare.yaml").write_text(text)
    outcome = built.run("plan", "bare.yaml")
    assert outcome.code == 2 and "perplexity_increase_pct limits the perplexity of a text" in outcome.err
