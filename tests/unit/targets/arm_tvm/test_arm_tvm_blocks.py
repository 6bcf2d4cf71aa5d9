"""Weights of 4 and 8 bits in blocks: a decoder's products and look-ups by the kernels of its bundle."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from arm_tvm_models import needs_aarch64
from decoder_graph import DecoderSize
from language_models import in_blocks, windows

from compiler.driver.stages.products import given_case
from compiler.driver.stages.reference import ParityCase
from compiler.errors import UnsupportedModel
from compiler.fleet import Range
from compiler.fleet.profile import load_profile
from compiler.model.numerics import compare_all
from compiler.model.reference import Unoptimized
from compiler.target import TargetPlan
from compiler.target.scheme import BlockFormat
from targets.arm_tvm import TARGET, Options
from targets.arm_tvm.graph.blocks import records_of
from targets.arm_tvm.graph.decoder import decoder_models, plan_decoder
from targets.arm_tvm.graph.sizes import bind_sizes
from targets.arm_tvm.run.emulate import host_arch

SIZE = DecoderSize(layers=1, width=96, heads=3, kv_heads=1, hidden=80, vocabulary=100)
"""Blocks and groups of outputs that are not whole: 96 and 80 inputs in blocks of 64, 100 outputs in groups of eight."""
CONTEXT, PREFILL = 24, 6
DIMS = {
    "sequence": Range(1, 1, PREFILL),
    "past": Range(0, 12, CONTEXT - 1),
    "past + sequence": Range(1, 13, CONTEXT - 1 + PREFILL),
}
WIDE, NARROW = BlockFormat(8, 64, symmetric=True), BlockFormat(4, 32)
emulated = [pytest.mark.needs_tvm, pytest.mark.needs_emulator, needs_aarch64]
DOTPROD = Options("aarch64-linux-gnu", "cortex-a76", ("+neon", "+fullfp16", "+dotprod"))
CORES = [
    pytest.param(Options(f"{host_arch()}-linux-gnu"), marks=[pytest.mark.slow, pytest.mark.needs_tvm], id="host"),
    pytest.param(DOTPROD, marks=emulated, id="sdot"),
    pytest.param(
        Options("aarch64-linux-gnu", "cortex-a72", ("+neon",)), marks=[pytest.mark.slow, *emulated], id="widening"
    ),
]


@pytest.fixture(scope="module")
def border() -> ir.Model:
    """The feed-forward in 4 bits, all else in 8."""
    others = {"gate_proj.weight": NARROW, "up_proj.weight": NARROW, "down_proj.weight": NARROW}
    return bind_sizes(in_blocks(WIDE, rounds=True, size=SIZE, others=others), {"batch": 1})


@pytest.mark.parametrize("options", CORES)
def test_each_product_is_that_of_the_border_model_given_what_it_reads(options, border, tmp_path, cache_dir):
    inputs = windows(border, 1, length=PREFILL + 1, past=5)[0]
    inputs = {name: array % SIZE.vocabulary if name == "input_ids" else array for name, array in inputs.items()}
    case, cut = given_case(border, ParityCase("", inputs, Unoptimized(border).run(inputs)))
    plan = TargetPlan("int4-weights-int8", options, dims=DIMS, threads=2, cache_dir=cache_dir)
    artifact = TARGET.build(cut, plan, load_profile("raspberry-pi-5"), workdir=tmp_path / "out")
    stats = compare_all(Unoptimized(cut).run(case.inputs), TARGET.load(artifact).run(case.inputs))
    assert len(stats) == len(cut.graph.outputs)
    assert min(own.sqnr_db for own in stats.values()) > 60


def test_a_table_that_the_head_shares_is_stored_once(border):
    build = plan_decoder(border, DIMS)
    assert build is not None
    models = decoder_models(border, build)
    operators = [node.op_type for node in models["main_1"].graph]
    # keys and values have too few weights to be quantized
    assert (operators.count("BlockProduct"), operators.count("MatMul"), operators.count("BlockRows")) == (5, 2, 1)
    (product,) = [node for node in models["head"].graph if node.op_type == "BlockProduct"]
    (rows,) = [node for node in models["main_1"].graph if node.op_type == "BlockRows"]
    # the same bytes, whichever way the model has them turned: weights are stored by content
    np.testing.assert_array_equal(*(node.inputs[1].const_value.numpy() for node in (product, rows)))


@pytest.mark.parametrize("format_", [WIDE, NARROW, BlockFormat(4, 64, symmetric=True)], ids=str)
def test_records_take_the_bytes_that_are_counted(format_):
    outputs, inputs = 64, 192
    blocks = format_.blocks_of(inputs)
    rows = np.zeros((outputs, inputs), np.int8)
    zeros = None if format_.symmetric else np.zeros((outputs, blocks), np.uint8)
    made = records_of(rows, np.ones((outputs, blocks), np.float32), zeros, bits=format_.bits, block=format_.block)
    # zero points of 4 bits take a byte each, those in the middle too
    points = outputs * blocks if format_.bits == 4 else 0
    stored = 0 if format_.symmetric else outputs * blocks * format_.bits // 8
    assert made.nbytes == format_.bytes_of(outputs, inputs) + points - stored


def test_formats_without_kernels_are_refused():
    with pytest.raises(UnsupportedModel, match="kernels for 4 bits and for 8 without zero points, not for 6"):
        records_of(np.zeros((8, 64), np.int8), np.ones((8, 1)), None, bits=6, block=64)


def test_products_of_values_that_are_not_rounded_are_refused():
    border = bind_sizes(in_blocks(WIDE, size=SIZE), {"batch": 1})
    build = plan_decoder(border, DIMS)
    assert build is not None
    with pytest.raises(UnsupportedModel, match="products of rounded values and by look-ups, and MatMul"):
        decoder_models(border, build)
