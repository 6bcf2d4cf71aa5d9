"""Every node of a random graph has an answer after all passes, half precision, quantizing and pruning."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from channels import networks
from graphs import models
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_quantized_graphs import SCHEMES

from compiler.compress.prune.cut import cut_channels
from compiler.compress.prune.groups import find_ties
from compiler.compress.prune.prepare import prepare
from compiler.compress.quant import quantize
from compiler.driver.delivered.trace import follow
from compiler.errors import DataError, UnsupportedModel
from compiler.model.frontend.normal import normalize
from compiler.passes.pipelines import PORTABLE, load_passes, precision_passes
from compiler.passes.run import run_passes
from compiler.passes.values import origins_of

CHEAP = load_passes(name for name in PORTABLE if name != "simplify-onnxsim")

bounded = settings(
    max_examples=25, deadline=None, print_blob=True, database=None, suppress_health_check=list(HealthCheck)
)


def named(text: str) -> ir.Model:
    """The graph as it is read: every node has a name of its own."""
    proto = ir.to_proto(ir.from_onnx_text(text))
    normalize(proto)
    return ir.from_proto(proto)


def must_answer(names: set[str], model: ir.Model) -> None:
    """Each name leads to nodes that are there, or to words that say where it ended."""
    there = {node.name for node in model.graph.all_nodes()}
    for name in names:
        found = follow(model, name)
        assert found is not None, f"'{name}' has no answer"
        assert {node.name for node in found.nodes} <= there
        assert found.nodes or found.steps, name


def must_trace_back(model: ir.Model, names: set[str]) -> None:
    """Each operator stands for nodes of the source."""
    for node in model.graph.all_nodes():
        assert names & {*origins_of(node)}, node


def names_of(model: ir.Model) -> set[str]:
    return {str(node.name) for node in model.graph.all_nodes()}


@bounded
@given(text=models(steps_max=20), half=st.booleans())
def test_every_node_has_an_answer_after_the_pipeline_in_two_stages(text: str, half: bool) -> None:
    model = named(text)
    names = names_of(model)
    run_passes(model, CHEAP)
    must_trace_back(model, names)
    again = ir.from_proto(ir.to_proto(model))
    if half:
        run_passes(again, precision_passes("fp16"), first=30)
    must_answer(names, again)
    must_trace_back(again, names)


@settings(bounded, max_examples=4)
@given(text=models(steps_max=20))
def test_every_node_has_an_answer_after_onnxsim(text: str) -> None:
    model = named(text)
    names = names_of(model)
    run_passes(model, load_passes(PORTABLE))
    must_answer(names, model)
    must_trace_back(model, names)


@bounded
@given(text=models(steps_max=12), scheme=st.sampled_from(SCHEMES))
def test_every_node_has_an_answer_in_a_quantized_model(text: str, scheme: object) -> None:
    model = named(text)
    names = names_of(model)
    run_passes(model, CHEAP)
    rng = np.random.default_rng(6)
    try:
        found = quantize(model, [{"x": rng.standard_normal((2, 3, 6, 6)).astype(np.float32)}], scheme)
    except (UnsupportedModel, DataError):
        assume(False)
    must_answer(names, found.model)
    must_trace_back(found.model, names)


@bounded
@given(text=networks())
def test_every_node_has_an_answer_in_a_pruned_model(text: str) -> None:
    model = named(text)
    names = names_of(model)
    run_passes(model, CHEAP)
    ready = prepare(model)
    ties = find_ties(ready)
    removed = {group.channels[0] for group in ties.groups if len(group.channels) > 1}
    must_answer(names, cut_channels(ready, ties, removed))
