"""A decoder's attentions, rotations and normalizations as ONNX Runtime's own operators: the same numbers."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from decoder_graph import DecoderSize
from language_models import tiny_decoder, tiny_text, windows

from compiler.errors import DataError
from compiler.evaluate.answers import FedBack, Following
from compiler.evaluate.text import empty_cache, token_inputs
from compiler.fleet import Range
from compiler.model.decoder import find_decoder
from compiler.model.frontend import extract_prefix
from compiler.model.numerics import compare_all
from compiler.model.onnx_runtime import OnnxRuntimeSession
from compiler.model.reference import Unoptimized
from compiler.model.save import save_model
from compiler.passes.editor import remove_unread
from targets.onnxruntime_cpu.attention import fuse_attention
from targets.onnxruntime_cpu.in_place import DecoderRunner, find_cache
from targets.onnxruntime_cpu.last_logits import select_logits
from targets.onnxruntime_cpu.normalization import fuse_normalizations

MANY = DecoderSize(layers=2, width=128, heads=4, kv_heads=4, hidden=192, vocabulary=256)


def fused(model: ir.Model) -> ir.Model:
    copy = model.clone()
    fuse_attention(copy)
    fuse_normalizations(copy)
    remove_unread(copy)
    return copy


def worst_db(model, copy, inputs, tmp_path):
    save_model(copy, tmp_path / "fused.onnx")
    session = OnnxRuntimeSession(tmp_path / "fused.onnx", is_optimized=True)
    got = session.run({spec.name: inputs[spec.name] for spec in session.inputs})
    return min(stats.sqnr_db for stats in compare_all(Unoptimized(model).run(inputs), got).values())


@pytest.mark.parametrize(("length", "past"), [(8, 0), (1, 5), (4, 3)])
@pytest.mark.parametrize("size", [None, MANY], ids=["grouped heads", "as many heads of keys"])
def test_a_decoder_computes_what_it_did_in_a_sixth_of_the_operators(size, length, past, tmp_path):
    model = tiny_decoder(size) if size else tiny_decoder()
    copy = fused(model)
    operators = Counter(node.op_type for node in copy.graph)
    assert operators["GroupQueryAttention"] == 2 and operators["RotaryEmbedding"] == 4
    assert operators["SimplifiedLayerNormalization"] == 5
    assert not {"Softmax", "Neg", "Pow"} & set(operators)
    assert worst_db(model, copy, windows(model, 1, length=length, past=past)[0], tmp_path) > 100


def test_a_mask_with_gaps_means_what_it_did(tmp_path):
    model = tiny_decoder()
    inputs = dict(windows(model, 1, length=4, past=6)[0])
    inputs["attention_mask"] = inputs["attention_mask"].copy()
    inputs["attention_mask"][0, [0, 1, 4]] = 0
    inputs["position_ids"] = np.maximum(np.cumsum(inputs["attention_mask"], axis=1) - 1, 0)[:, -4:]
    assert worst_db(model, fused(model), inputs, tmp_path) > 100


def test_an_attention_that_sees_later_tokens_stays_as_it_is():
    model = tiny_decoder()
    causal = next(node for node in model.graph if node.op_type == "LessOrEqual")
    causal.op_type = "GreaterOrEqual"
    assert not any(node.op_type == "GroupQueryAttention" for node in fused(model).graph)


def test_scores_that_are_looked_at_stay_beside_the_attention(tmp_path):
    """As where the first operator that diverges is looked for."""
    model = tiny_decoder()
    scores = next(node for node in model.graph if node.op_type == "Softmax").inputs[0]
    part = extract_prefix(model, [str(value.name) for value in (scores, *model.graph.outputs)])
    copy = fused(part)
    assert sum(node.op_type == "GroupQueryAttention" for node in copy.graph) >= 1
    assert worst_db(part, copy, windows(model, 1, length=4, past=3)[0], tmp_path) > 100


def test_a_cache_that_is_written_in_place_gives_the_same_logits(tmp_path):
    model = tiny_decoder()
    decoder, copy = find_decoder(model), fused(model)
    cache = find_cache(copy, {decoder.past: Range(0, 8, 31), decoder.sequence: Range(1, 1, 16)})
    assert cache is not None and cache.positions == 32 and select_logits(copy)
    save_model(copy, tmp_path / "fused.onnx")
    (tmp_path / "config.json").write_text('{"intra_op_num_threads": 1, "inter_op_num_threads": 1}')
    runner = DecoderRunner(tmp_path / "fused.onnx", tmp_path / "config.json", "", cache)
    ids = tiny_text(32)[None].astype(np.int64)
    for _ in range(2):  # the second time what the first left behind must not be seen
        runner.forget()
        talk, whole = Following(runner.follow, runner.inputs, decoder), FedBack(runner.run, runner.inputs, decoder)
        for start, end in ((0, 16), (16, 30), (30, 31), (31, 32)):
            assert talk.step(ids[:, start:end]) == whole.step(ids[:, start:end])
    expected = Unoptimized(model).run(
        {**token_inputs(ids, 0, runner.inputs, decoder), **empty_cache(runner.inputs, decoder)}
    )
    runner.forget()
    got = runner.follow(token_inputs(ids, 0, runner.inputs, decoder))
    assert set(got) == {"logits"}  # of a prompt, those of its last token alone
    assert compare_all({"logits": expected["logits"][:, -1:]}, got)["logits"].sqnr_db > 100
    with pytest.raises(DataError):
        runner.follow(token_inputs(ids[:, :1], 32, runner.inputs, decoder))


def test_a_cache_that_something_else_reads_is_not_written_in_place():
    model = fused(tiny_decoder())
    past = next(value for value in model.graph.inputs if value.name == "past_key_values.0.key")
    shape = ir.node("Shape", [past])
    model.graph.append(shape)
    assert find_cache(model, {"past": Range(0, 8, 31)}) is None
