"""A decoder from its file to answers: built in few bits inside its limits, and run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from decoder_graph import DecoderSize
from language_models import tiny_decoder, tiny_text, windows

from compiler.artifact.manifest import read_artifact
from compiler.driver.search import trials
from compiler.driver.stages import emulation
from compiler.driver.stages.emulation import reckon
from compiler.errors import DataError
from compiler.evaluate.answers import Asked
from compiler.model.decoder import find_decoder
from compiler.model.onnx_runtime import OnnxRuntimeSession
from compiler.model.reference import Unoptimized
from compiler.target.request import FootprintAnswer, FootprintTask
from compiler.target.worker_measure import footprint
from tests.cli.conftest import Place, make_place

FLEET = """schema: 1
model: decoder.onnx
calibration: {path: calibration.npy, samples: 8}
evaluation: {task: generation, path: evaluation.npy, other: other.npy, prompts: prompts.json, samples: 10}
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
BOARD = """schema: 1
name: board
target: onnxruntime
cpu: {model: a core with sums of 8-bit products, cores: 1, isa: [avx2, avx_vnni]}
provenance: {cpu: made up for this test}
"""
PROMPTS = [" ".join(map(str, tiny_text(20, seed=5))), "1, 2, 3"]
SIZE = DecoderSize(layers=1, width=128, heads=4, kv_heads=2, hidden=192, vocabulary=256)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Place:
    place = make_place(tmp_path_factory.mktemp("language"), site)
    ir.save(tiny_decoder(SIZE), place.root / "decoder.onnx")
    np.save(place.root / "calibration.npy", tiny_text(400))
    np.save(place.root / "evaluation.npy", tiny_text(400, seed=1))
    np.save(place.root / "other.npy", tiny_text(400, seed=2))
    (place.root / "prompts.json").write_text(json.dumps(PROMPTS))
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


def test_it_is_certified_on_windows_held_out_and_on_a_text_of_another_domain(built: Place) -> None:
    manifest = built.manifest("phone")
    (trial,) = (row for row in manifest["trials"] if row["precision"] == "int4-weights")
    assert manifest["inputs"]["evaluation"]["split"] == trial["certified"]["how"] == "held out"
    held_out, other = trial["certified"]["texts"]
    assert held_out["origin"] == "evaluation.npy, 10 windows of 16 tokens, the half held out"
    assert other["origin"] == "other.npy, 10 windows of 16 tokens" and other["passed"]
    # five windows choose, five judge, and ten of the other text judge: eight tokens of each window
    counts = [score["candidate"]["count"] for score in (trial["accuracy"]["drop"], held_out["drop"], other["drop"])]
    assert counts == [40, 40, 80]
    details = other["drop"]["candidate"]["details"]
    assert details["KL in nats a token, low"] < details["KL in nats a token"] < details["KL in nats a token, high"]


def test_memory_formats_and_answers_are_in_manifest_and_report(built: Place) -> None:
    spoken = built.manifest("phone")["generation"]
    memory = spoken["memory"]
    # the whole cache of this small model is a few pages: which of the two runs takes more is chance
    assert 0 < memory["load"] < min(memory["prefill"], memory["full"]) and memory["evidence"] == "measured-host"
    assert spoken["tokens_per_s"] > 0 and spoken["prompt_tokens_per_s"] > 0
    assert len(spoken["weights"]) == 8 and {row["bits"] for row in spoken["weights"]} <= {4, 6, 8}
    assert [row["prompt"] for row in spoken["answers"]] == PROMPTS
    for row in spoken["answers"]:
        original, build = row["original"].split(), row["build"].split()
        same = row["same_tokens"]
        assert original[:same] == build[:same] and len(original) == row["tokens"]
    page = (built.dist / "report.html").read_text()
    assert "other.npy, 10 windows of 16 tokens" in page and "2 prompts, answered by the given model" in page
    assert f"{sum(row['bytes'] for row in spoken['weights']) / (1 << 20):.1f} MiB</summary>" in page


def test_the_process_is_weighed_while_a_prompt_fills_the_context(built: Place, tmp_path: Path) -> None:
    artifact = read_artifact(built.dist / "phone").artifact
    decoder = find_decoder(ir.load(built.dist / "phone" / "border.onnx"))
    np.savez(tmp_path / "none.npz")

    def weighed(prompt: int) -> FootprintAnswer:
        asked = Asked((1,) * prompt, 2, 16, 32, ())
        return footprint(FootprintTask(artifact, tmp_path / "none.npz", decoder, asked))

    assert weighed(31).peak_bytes > 0
    with pytest.raises(DataError):  # the cache has no places for them: so it is the prompt that is read
        weighed(40)


def answers_as_its_border_model(place: Place, folder: str) -> None:
    """A prompt of 20 tokens, read in two parts, and four tokens of the answer."""
    prompt = tiny_text(20, seed=7)
    outcome = place.run("run", folder, "--prompt", " ".join(map(str, prompt)), "--tokens", "4", "--json")
    assert outcome.code == 0, outcome.err
    answer = outcome.json
    assert len(answer["tokens"]) == 4 and len(answer["token_ms"]) == 3
    border = ir.load(place.root / folder / "border.onnx")
    # the whole text at once: what the cache was built from in two parts must give the same next token
    text = np.concatenate([prompt, answer["tokens"][:-1]])
    (inputs,) = windows(border, 1, length=len(text))
    logits = Unoptimized(border).run({**inputs, "input_ids": text[None].astype(np.int64)})["logits"][0]
    expected = logits[len(prompt) - 1 :]
    chosen = expected[np.arange(4), answer["tokens"]]
    # rounding of activations may turn a tie: what was chosen is the best but for that
    assert (expected.max(axis=1) - chosen < 0.1 * expected.std()).all()


def test_it_answers_with_the_tokens_of_its_border_model(built: Place) -> None:
    answers_as_its_border_model(built, "dist/phone")


@pytest.mark.slow
def test_activations_in_int8_compete_and_are_judged_product_by_product(built: Place) -> None:
    (built.root / "board.yaml").write_text(BOARD)
    (built.root / "boards.yaml").write_text(FLEET.replace("MEMORY", "400").replace("phone.yaml", "board.yaml"))
    planned = built.run("plan", "boards.yaml")
    assert "search among its forms int4-weights-int8, int4-weights, most promising first" in planned.out
    outcome = built.run(
        "build",
        "boards.yaml",
        "-o",
        "boards",
        "--repeat",
        "1",
        "--precision",
        "int4-weights-int8",
        "--race-seconds",
        "1",
    )
    assert outcome.code == 0, outcome.err
    manifest = json.loads((built.root / "boards" / "phone" / "manifest.json").read_text())
    parity = manifest["verdict"]["parity"]
    assert manifest["artifact"]["precision"] == "int4-weights-int8" and parity["tolerance"] == "quantized"
    assert parity["products_sqnr_db"] > 40 and "each product, given what the border model gives it" in parity["reason"]
    border = ir.load(built.root / "boards" / "phone" / "border.onnx")
    # q, k and v read the same in the same blocks: products that read the same share a rounding
    assert 0 < sum(node.op_type == "QuantizeLinear" for node in border.graph) < 8


@pytest.mark.slow
@pytest.mark.needs_tvm
@pytest.mark.needs_emulator
@pytest.mark.timeout(900)
def test_a_phone_sized_board_answers_in_the_emulator_what_its_time_allows(
    built: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = FLEET.replace("MEMORY", "400").replace("profile: phone.yaml", "profile: raspberry-pi-5")
    text = text.replace("precision: int4-weights", "precision: int4-weights-int8")
    (built.root / "pi.yaml").write_text(text)
    (built.root / "narrow.yaml").write_text(text.replace("prefill: 16", "prefill: 16, cache: int8"))
    outcome = built.run("build", "narrow.yaml", "-o", "pi")
    assert outcome.code == 0, outcome.err
    manifest = json.loads((built.root / "pi" / "phone" / "manifest.json").read_text())
    parity, spoken = manifest["verdict"]["parity"], manifest["generation"]
    assert [point["sizes"] for point in parity["points"]][-1].startswith("sequence=16, past=31")
    assert parity["products_sqnr_db"] > 40 and manifest["plan"]["decisions"]["cache"]["value"] == "int8"
    gates = {gate["name"]: gate for gate in manifest["gates"]}
    assert gates["memory: process"]["passed"] and gates["memory: process"]["evidence"] == "measured-emulator"
    assert spoken["note"] == "2 answered by its program in the emulator" and len(spoken["answers"]) == 2
    assert spoken["speed_evidence"] == "estimated" and spoken["tokens_per_s"] > 0
    assert "one core assumed" in (built.root / "pi" / "report.html").read_text()

    # the same where the emulator is so slow that the largest size takes 700 of its 600 seconds
    model = tiny_decoder(SIZE)
    macs = reckon(model, windows(model, 1, length=16, past=31)[0])[1]
    monkeypatch.setattr(emulation, "INTEGER_MACS_PER_S", macs / 700)
    monkeypatch.setattr(emulation, "FLOAT_MACS_PER_S", macs / 700)
    outcome = built.run("build", "pi.yaml", "-o", "slow")
    assert outcome.code == 0, outcome.err
    manifest = json.loads((built.root / "slow" / "phone" / "manifest.json").read_text())
    sizes = [point["sizes"] for point in manifest["verdict"]["parity"]["points"]]
    assert sizes[-1] == "sequence=8, past=31" and not any("sequence=16" in size for size in sizes)
    reason = manifest["verdict"]["parity"]["reason"]
    assert "not executed: sequence=16, past=31" in reason and "reckoned with 700 s in the emulator" in reason
    (memory,) = (gate for gate in manifest["gates"] if gate["name"] == "memory: process")
    assert memory["passed"] is None and "not executed: sequence=16" in memory["why"]
    assert manifest["generation"]["note"].startswith("2 by the border model in ONNX Runtime")
    for text in (outcome.out, (built.root / "slow" / "report.html").read_text()):
        assert "not executed: sequence=16, past=31" in text


@pytest.mark.slow
@pytest.mark.needs_openvino
def test_openvino_answers_with_its_cache_inside(built: Place) -> None:
    (built.root / "kiosk.yaml").write_text(FLEET.replace("MEMORY", "400").replace("phone.yaml", "intel-n100"))
    outcome = built.run("build", "kiosk.yaml", "-o", "kiosk", "--repeat", "1")
    assert outcome.code == 0, outcome.err
    facts = json.loads((built.root / "kiosk" / "phone" / "manifest.json").read_text())
    assert facts["artifact"]["precision"] == "int4-weights" and facts["artifact"]["facts"]["cache"]
    answers_as_its_border_model(built, "kiosk/phone")


def test_it_is_exported_for_onnxruntime_genai(built: Place) -> None:
    tokenizer = built.root / "tokenizer.json"
    tokenizer.write_text(json.dumps({"added_tokens": [{"id": 3, "content": "<end>", "special": True}]}))
    outcome = built.run("export", "dist/phone", "--ort-genai", "genai", "--tokenizer", "tokenizer.json")
    assert outcome.code == 0, outcome.err
    place = built.root / "genai"
    config = json.loads((place / "genai_config.json").read_text())
    assert config["model"]["decoder"]["num_hidden_layers"] == SIZE.layers and config["model"]["eos_token_id"] == [3]
    session = OnnxRuntimeSession(place / config["model"]["decoder"]["filename"], is_optimized=True)
    assert "past_key_values.0.key" in {spec.name for spec in session.inputs}
    again = built.run("export", "dist/phone", "--ort-genai", "genai")
    assert again.code == 2 and "no tokenizer is named" in again.err


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


def test_a_float_build_far_beyond_the_limit_on_memory_is_not_made(
    built: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "BEYOND", 0.0)
    outcome = built.run("build", "language.yaml", "-o", "alone", "--repeat", "1")
    assert outcome.code == 0, outcome.err
    assert "fp32 is not made: its weights take" in outcome.err
    manifest = json.loads((built.root / "alone/phone/manifest.json").read_text())
    assert [trial["precision"] for trial in manifest["trials"]] == ["int4-weights"]
    assert manifest["plan"]["decisions"]["baseline"]["value"] == "not made"


def test_it_is_judged_again_by_another_text(built: Place) -> None:
    np.save(built.root / "other.npy", tiny_text(300, seed=3))
    outcome = built.run("verify", "dist/phone", "--model", "decoder.onnx", "--evaluation", "other.npy", "--json")
    assert outcome.code == 0, outcome.err
    assert "KL in nats a token" in outcome.json["accuracy"]["drop"]["candidate"]["details"]


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ('{"a": 1}', "prompts are a JSON list of texts"),
        ('["300", "1 2"]', "'300': 1 tokens, up to 300"),
        ('["1 two"]', "without a tokenizer a prompt is token ids"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_before_anything_is_built(built: Place, prompts: str, said: str) -> None:
    (built.root / "bad.json").write_text(prompts)
    (built.root / "bad.yaml").write_text(FLEET.replace("MEMORY", "400").replace("prompts.json", "bad.json"))
    outcome = built.run("build", "bad.yaml", "-o", "bad", "--repeat", "1")
    assert outcome.code == 2 and said in outcome.err and not (built.root / "bad" / "phone").exists()


@pytest.mark.parametrize("precision", ["int4-weights", "auto"])
def test_a_target_of_fixed_sizes_refuses_a_language_model_in_one_sentence(built: Place, precision: str) -> None:
    profile = "schema: 1\nname: fixed\ntarget: moody\ntarget_options: {dynamic_dims: false}\n"
    (built.root / "fixed.yaml").write_text(profile)
    text = FLEET.replace("MEMORY", "400").replace("phone.yaml", "fixed.yaml")
    (built.root / "board.yaml").write_text(text.replace("int4-weights", precision))
    outcome = built.run("plan", "board.yaml")
    assert outcome.code == 2
    assert "target 'moody' builds fixed shapes only, and a language model's cache grows" in outcome.err
    assert "Build it for a target with ranges: onnxruntime" in outcome.err
    assert "has no such precision" not in outcome.err


def test_other_texts_and_prompts_are_of_language_models_alone(built: Place) -> None:
    text = FLEET.replace("MEMORY", "400").replace("task: generation", "task: classification")
    (built.root / "pictures.yaml").write_text(text)
    outcome = built.run("plan", "pictures.yaml")
    assert outcome.code == 2 and "other and prompts are of task: generation" in outcome.err


def test_a_language_models_limits_need_its_data(built: Place) -> None:
    text = FLEET.replace("MEMORY", "400").replace("evaluation:", "# evaluation:")
    (built.root / "bare.yaml").write_text(text)
    outcome = built.run("plan", "bare.yaml")
    assert outcome.code == 2 and "perplexity_increase_pct limits the perplexity of a text" in outcome.err
