"""The differential fuzzer on passes and on the two targets that run in this process; and a saved failure."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from fuzz_models import Total, checks_of, earlier_total, write_figures
from fuzzing.batch import run_batch
from fuzzing.failure import load_failure, save_failure
from fuzzing.judge import Outcome, Verdict, difference, judge
from fuzzing.sketch import Graph, run_runtime
from onnx import parser

GRAPHS = 25
"""A few seconds each batch; the night has ten minutes of them."""


@pytest.mark.parametrize("number", range(2))
def test_random_graphs_are_right_after_every_pass_and_on_every_quick_target(number: int) -> None:
    batch = run_batch(number, GRAPHS, lambda index: checks_of(["reference", "onnxruntime"], passes=True, number=index))
    assert batch.failure is None, f"{batch.failure}"
    assert batch.graphs == GRAPHS
    assert batch.verdicts["passes", "right"] > GRAPHS // 2


def test_a_saved_failure_is_judged_again(tmp_path: Path) -> None:
    graph = some_graph()
    path = save_failure(tmp_path, graph, Verdict("passes", Outcome.WRONG, "for the test"), seed="--seed 1")
    saved = load_failure(path)
    assert (saved.check, saved.seed, saved.message) == ("passes", "--seed 1", "wrong: for the test")
    assert [verdict.outcome for verdict in judge(saved.graph, [saved.check])] == [Outcome.RIGHT]


def test_a_result_that_differs_is_seen() -> None:
    graph = some_graph()
    (name, array), *_ = graph.expected.items()
    model = ir.from_proto(graph.model)
    assert not difference(graph, graph.expected, model)
    assert "SQNR" in difference(graph, {name: array * 1.01}, model)
    assert "float64" in difference(graph, {name: array.astype("float64")}, model)


def test_a_killed_run_goes_on_with_the_seeds_that_have_no_figures_or_a_failure(tmp_path: Path) -> None:
    arguments = argparse.Namespace(output=tmp_path / "fuzz.json", section="passes", targets="", resume=True)
    clean = {"graphs": 5, "verdicts": [["passes", "right", 5]], "drawn": {"Abs": 9}, "disagreed": {}, "refused": {}}
    total = Total(seconds=3.0)
    for seed, failures in ((0, []), (1, [{"file": "f", "check": "passes", "message": "wrong: 3 dB"}]), (2, [])):
        total.add({**clean, "failures": failures}, seed=seed, commit="abc")
    assert total.outcomes == {"right": 10, "wrong": 1}
    write_figures(arguments, total)
    resumed = earlier_total(arguments)
    assert resumed.seeds == {0, 2} and resumed.graphs == 10 and not resumed.failures
    assert (resumed.graphs_by_commit, resumed.drawn, resumed.seconds) == ({"abc": 10}, {"Abs": 18}, 3.0)
    arguments.section = "targets"
    write_figures(arguments, Total())
    assert earlier_total(arguments).graphs == 0 and set(json.loads(arguments.output.read_text())) == {
        "passes",
        "targets",
    }


def some_graph() -> Graph:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2,3] x0) => (float[2,3] v1) { v0 = Exp(x0) v1 = Neg(v0) }'
    )
    inputs = {"x0": np.arange(6, dtype=np.float32).reshape(2, 3) / 6}
    expected = run_runtime(model, inputs)
    assert expected is not None
    return Graph(model, inputs, expected)
