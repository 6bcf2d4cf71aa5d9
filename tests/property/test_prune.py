"""Random channels cut out of random networks: valid, the same interface, and what masking the same channels gives."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from channels import networks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.compress.prune.cut import cut_channels
from compiler.compress.prune.groups import Ties, find_ties
from compiler.compress.prune.prepare import prepare
from compiler.model.graph import check_model, graph_digest
from compiler.model.numerics import TOLERANCES, compare_all
from compiler.passes.infer_shapes import INFER_SHAPES
from compiler.passes.probe import run_unoptimized
from tests.masking import mask_channels

bounded = settings(
    max_examples=150, deadline=None, print_blob=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
INPUTS = {"x": np.random.default_rng(3).standard_normal((2, 3, 6, 6)).astype(np.float32)}


def ready(text: str) -> ir.Model:
    model = ir.from_onnx_text(text)
    INFER_SHAPES(model)
    return prepare(model)


def choose(ties: Ties, draw: st.DataObject) -> set[int]:
    """Random channels of every group, never all that any one layer makes."""
    removed: set[int] = set()
    for group in ties.groups:
        wanted = draw.draw(st.lists(st.sampled_from(group.channels), unique=True, max_size=len(group.channels) - 1))
        removed |= set(wanted)
    for cut in ties.cuts:
        if cut.role == "makes" and {*cut.ids.tolist()} <= removed:
            removed -= {int(cut.ids[0])}
    return removed


@bounded
@given(text=networks(), draw=st.data())
def test_cut_network_is_valid_and_equals_the_masked_one(text: str, draw: st.DataObject) -> None:
    model = ready(text)
    before = graph_digest(model)
    ties = find_ties(model)
    removed = choose(ties, draw)
    small, masked = cut_channels(model, ties, removed), mask_channels(model, ties, removed)
    check_model(small)
    assert graph_digest(model) == before
    assert [(v.name, v.shape, v.dtype) for v in small.graph.outputs] == [
        (v.name, v.shape, v.dtype) for v in model.graph.outputs
    ]
    stats = compare_all(run_unoptimized(masked, INPUTS), run_unoptimized(small, INPUTS))
    assert all(TOLERANCES["fp32"].accepts(one) for one in stats.values())


@bounded
@given(text=networks())
def test_every_channel_made_is_free_or_has_a_reason(text: str) -> None:
    ties = find_ties(ready(text))
    free = {channel for group in ties.groups for channel in group.channels}
    for cut in ties.cuts:
        if cut.role == "makes" and not {*cut.ids.tolist()} <= free:
            assert ties.kept[cut.node]
