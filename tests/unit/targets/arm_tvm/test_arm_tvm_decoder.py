"""A decoder's bundle: its cache is written in place, and `./generate` answers as the border model does."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from arm_tvm_models import needs_aarch64
from decoder_graph import DecoderSize
from language_models import tiny_decoder, tiny_text, windows

from compiler.compress.quant.apply import at_opset
from compiler.compress.weight_only import round_cache
from compiler.errors import TargetUnavailable, ToolchainFailed, UnsupportedModel
from compiler.evaluate.answers import Asked, FedBack, answer
from compiler.fleet import Range
from compiler.fleet.profile import load_profile
from compiler.model.decoder import find_decoder
from compiler.model.frontend import describe_inputs
from compiler.model.numerics import compare_all
from compiler.model.reference import Unoptimized
from compiler.target import TargetPlan
from targets.arm_tvm import TARGET, Options
from targets.arm_tvm.graph.decoder import decoder_models, plan_decoder
from targets.arm_tvm.graph.sizes import bind_sizes
from targets.arm_tvm.run.emulate import host_arch

EMULATED = [pytest.mark.needs_tvm, pytest.mark.needs_emulator, needs_aarch64]
CONTEXT, PREFILL = 40, 4
SIZE = DecoderSize(layers=1, width=160, heads=5, kv_heads=1, hidden=64, vocabulary=300)
"""Five heads read one of keys: four at a time and one; their 32 elements are two parts of sixteen."""
DIMS = {
    "sequence": Range(1, 1, PREFILL),
    "past": Range(0, 20, CONTEXT - 1),
    "past + sequence": Range(1, 21, CONTEXT - 1 + PREFILL),
}
PROMPT = tuple(map(int, tiny_text(25, seed=7)))
"""Read as six times four tokens, and one."""


def one_sequence(size: DecoderSize = SIZE) -> ir.Model:
    return bind_sizes(tiny_decoder(size), {"batch": 1})


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return one_sequence()


@pytest.fixture(scope="module")
def rounded(model: ir.Model) -> ir.Model:
    """The same with its cache in 8 bits."""
    made = at_opset(model, 21)
    round_cache(made, find_decoder(made))
    return made


CORES = [
    pytest.param("", marks=pytest.mark.needs_tvm, id="host"),
    pytest.param(
        "aarch64",
        marks=[pytest.mark.slow, pytest.mark.needs_tvm, pytest.mark.needs_emulator, needs_aarch64],
        id="aarch64",
    ),
]


def build(model: ir.Model, core: str, folder: Path, cache_dir: Path):
    options = Options(f"{host_arch()}-linux-gnu")
    if core:
        options = Options("aarch64-linux-gnu", "cortex-a76", ("+neon", "+fullfp16", "+dotprod"))
    plan = TargetPlan("fp32", options, dims=DIMS, threads=2, cache_dir=cache_dir)
    return TARGET.build(model, plan, load_profile("raspberry-pi-5"), workdir=folder)


@pytest.fixture(scope="module", params=CORES)
def artifact(request: pytest.FixtureRequest, model: ir.Model, tmp_path_factory, cache_dir: Path):
    return build(model, request.param, tmp_path_factory.mktemp("decoder"), cache_dir)


@pytest.mark.parametrize("core", CORES)
def test_a_cache_in_8_bits_holds_what_the_border_model_says(core, rounded, tmp_path, cache_dir):
    made = build(rounded, core, tmp_path / "out", cache_dir)
    runner, reference = TARGET.load(made), Unoptimized(rounded)
    for length, past in [(13, 0), (1, 7), (PREFILL, CONTEXT - 1)]:
        (inputs,) = windows(rounded, 1, length=length, past=past)
        stats = compare_all(reference.run(inputs), runner.run(inputs))
        assert min(own.sqnr_db for own in stats.values()) > 100, (length, past)
    asked = Asked(PROMPT, 8, PREFILL, CONTEXT, ())
    expected = answer(FedBack(reference.run, describe_inputs(rounded), find_decoder(rounded)), asked).tokens
    assert runner.answer(asked).tokens == expected
    # a row of 32 integers and their factor
    assert f"input int8 1,1,{CONTEXT - 1 + PREFILL},36 past_key_values.0.key" in (
        (made.root / "payload/io.txt").read_text()
    )


def test_heads_that_are_no_multiple_of_16_have_no_cache_in_8_bits():
    model = at_opset(one_sequence(replace(SIZE, width=120)), 21)
    assert plan(model) is not None
    round_cache(model, find_decoder(model))
    with pytest.raises(UnsupportedModel, match="multiples of 16 elements behind a cache in int8; this has 24"):
        plan(model)


def test_calls_behind_any_cache_are_those_of_the_border_model(artifact, model):
    runner = TARGET.load(artifact)
    for length, past in [(1, 0), (13, 0), (1, 7), (7, 3), (PREFILL, CONTEXT - 1)]:
        (inputs,) = windows(model, 1, length=length, past=past)
        stats = compare_all(Unoptimized(model).run(inputs), runner.run(inputs))
        assert min(own.sqnr_db for own in stats.values()) > 100, (length, past)
    assert len(runner.latencies_ms(inputs, 2)) == len(runner.processor_ms(inputs, 2)) == 2


def test_a_prompt_is_answered_as_by_the_border_model_up_to_a_stop(artifact, model):
    runner = TARGET.load(artifact)
    asked = Asked(PROMPT, 8, PREFILL, CONTEXT, ())
    expected = answer(FedBack(Unoptimized(model).run, describe_inputs(model), find_decoder(model)), asked).tokens
    given = runner.answer(asked)
    assert given.tokens == expected and len(given.token_ms) == 7
    stop = expected[4]
    assert runner.answer(Asked(PROMPT, 8, PREFILL, CONTEXT, (stop,))).tokens == expected[: expected.index(stop)]


def test_a_mask_that_hides_tokens_is_refused(artifact, model):
    (inputs,) = windows(model, 1, length=2, past=3)
    hidden = {**inputs, "attention_mask": np.array([[0, 1, 1, 1, 1]])}
    with pytest.raises(ToolchainFailed, match="the mask hides tokens"):
        TARGET.load(artifact).run(hidden)


def test_it_is_not_served(artifact):
    with pytest.raises(TargetUnavailable, match="has no server"):
        TARGET.load(artifact).stay_loaded()


def generate(artifact, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [artifact.root / "generate", *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("artifact", [pytest.param("", marks=pytest.mark.needs_tvm, id="host")], indirect=True)
class TestProgram:
    def test_ids_come_from_arguments_or_a_line(self, artifact):
        first = generate(artifact, "--tokens", "5", *map(str, PROMPT))
        second = generate(artifact, "--tokens", "5", given=", ".join(map(str, PROMPT)) + "\n")
        assert first.returncode == 0 and first.stdout == second.stdout and len(first.stdout.split()) == 5
        assert "prompt of 25 tokens" in first.stderr and "tokens per second" in first.stderr

    def test_without_a_number_it_answers_up_to_the_context(self, artifact):
        told = json.loads(generate(artifact, "--json", *map(str, PROMPT)).stdout)
        assert len(told["tokens"]) == CONTEXT - len(PROMPT) + 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "the prompt is empty"),
            (["300"], "id 300 is not one of the model's: 0 to 299"),
            (["-1"], "id -1 is not one"),
            (["99999999999999999999"], "id 99999999999999999999 is not one"),
            (["1", "two"], "'two' is no token id"),
            (["1"] * CONTEXT, f"the prompt has {CONTEXT} tokens, and may have 1 to {CONTEXT - 1}"),
            (["--tokens", "39", "1", "2"], "--tokens 39 behind a prompt of 2 are more than the context of 40"),
            (["--tokens", "41", "1"], "--tokens takes a number from 1 to 40"),
            (["--tokens"], "--tokens takes a number"),
            (["--stop", "400", "1"], "--stop: id 400 is not one"),
            (["--loud", "1"], "unknown option --loud"),
            (["--call", "a.npy"], "3 output files are needed"),
        ],
    )
    def test_bad_input_is_one_message_and_exit_code_2(self, artifact, arguments, message):
        outcome = generate(artifact, *arguments)
        assert outcome.returncode == 2 and message in outcome.stderr, outcome.stderr
        assert outcome.stdout == "" and len(outcome.stderr.splitlines()) == 1


def test_weights_are_stored_once_for_all_sizes(artifact, model):
    given = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    # the table of the head is packed for its product, and lies there once more for looking up
    table = 4 * SIZE.vocabulary * SIZE.width
    assert (artifact.root / "payload/weights.bin").stat().st_size < given + table + 64 * 1024


def plan(model: ir.Model, dims=DIMS):
    return plan_decoder(model, dims)


def test_other_models_are_no_decoders(model):
    assert plan(model, {}) is None
    head = '<ir_version: 8, opset_import: ["" : 18]>'
    relu = ir.from_onnx_text(f"{head} m (float[N, 2] x) => (float[N, 2] y) {{ y = Relu(x) }}")
    assert plan(relu, {"N": Range(1, 1, 4)}) is None


def test_an_open_batch_is_refused():
    with pytest.raises(UnsupportedModel, match="for one sequence, and batch is a range too"):
        plan(tiny_decoder(SIZE), {**DIMS, "batch": Range(1, 1, 2)})


def test_an_attention_that_sees_later_tokens_is_refused():
    model = one_sequence()
    next(node for node in model.graph if node.op_type == "LessOrEqual").op_type = "GreaterOrEqual"
    with pytest.raises(UnsupportedModel, match=r"does not know the attention that reads past_key_values.0.key"):
        plan(model)


def test_an_attention_with_a_window_shorter_than_the_context_is_refused():
    model = one_sequence()
    causal = next(node for node in model.graph if node.op_type == "LessOrEqual")
    columns, rows = causal.inputs
    reach = ir.node("Add", [columns, constant(model.graph, "window", 30)], name="reach")
    near = ir.node("Greater", [reach.outputs[0], rows], name="near")
    both = ir.node("And", [causal.outputs[0], near.outputs[0]], name="both")
    for name, node in (("reached", reach), ("is_near", near), ("is_seen", both)):
        node.outputs[0].name = name
        model.graph.insert_before(causal.outputs[0].uses()[0][0], node)
    for reader, index in [use for use in causal.outputs[0].uses() if use[0] is not both]:
        reader.replace_input_with(index, both.outputs[0])
    with pytest.raises(UnsupportedModel, match=r"does not know the attention .* later tokens and no others"):
        plan(model)
    assert plan(model, {**DIMS, "past": Range(0, 4, 20)}) is not None


def constant(graph: ir.Graph, name: str, number: object) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(np.array(number)))
    graph.register_initializer(value)
    return value


def test_positions_that_are_computed_of_the_mask_are_refused():
    model = one_sequence()
    graph = model.graph
    places = next(value for value in graph.inputs if value.name == "position_ids")
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    axis, start, end = (constant(graph, name, [number]) for name, number in (("a", 1), ("s", -1), ("e", 99)))
    zero = constant(graph, "zero", 1)
    count = ir.node("CumSum", [mask, zero], name="count")
    last = ir.node("Slice", [count.outputs[0], start, end, axis], name="last")
    for number, node in enumerate((count, last)):
        node.outputs[0].name, node.outputs[0].dtype = f"counted{number}", ir.DataType.INT64
    graph.insert_before(graph[0], [count, last])
    places.replace_all_uses_with(last.outputs[0])
    graph.inputs.remove(places)
    build = plan(model)
    assert build is not None
    with pytest.raises(UnsupportedModel, match="something besides attention reads attention_mask"):
        decoder_models(model, build)


def test_logits_that_are_more_than_a_product_are_refused():
    model = one_sequence()
    (logits,) = [value for value in model.graph.outputs if value.name == "logits"]
    node = logits.producer()
    assert node is not None
    softmax = ir.node("Softmax", [logits], {"axis": -1}, name="softmax")
    logits.name, softmax.outputs[0].name = "scores", "logits"
    softmax.outputs[0].dtype, softmax.outputs[0].shape = logits.dtype, logits.shape
    model.graph.append(softmax)
    model.graph.outputs[0] = softmax.outputs[0]
    build = plan(model)
    assert build is not None
    with pytest.raises(UnsupportedModel, match="'logits' is more than a product with weights"):
        decoder_models(model, build)
