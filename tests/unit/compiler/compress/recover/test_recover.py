"""Recovery: less error, the same interface, resumed after a kill at the same step, ended by the metric."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'fleetc[train]'")

from recovery_case import KILLED, TEXT, batches, network, recovered  # noqa: E402

from compiler.compress.prune.groups import find_ties  # noqa: E402
from compiler.compress.prune.prepare import prepare  # noqa: E402
from compiler.compress.recover import Goal, Pair, Recipe, choose_taps, recover  # noqa: E402
from compiler.compress.recover.checkpoint import FILE  # noqa: E402
from compiler.compress.recover.execution import segments_for  # noqa: E402
from compiler.compress.recover.network import network_of, run, with_weights  # noqa: E402
from compiler.compress.recover.samples import gather, varied  # noqa: E402
from compiler.errors import DataError, StorageError, UnsupportedModel  # noqa: E402
from compiler.model.graph import check_model  # noqa: E402
from compiler.model.numerics import Arrays, compare_all  # noqa: E402
from compiler.passes.probe import run_unoptimized  # noqa: E402
from compiler.target.testing import Case, conformance_cases  # noqa: E402

SHORT = Recipe(seconds=float("inf"), steps=60, batch=8, rate=1e-2)
CASE = Path(__file__).with_name("recovery_case.py")
UNKNOWN = {"arg-max", "top-k", "cumsum"}
"""Cases of operators that the table does not have."""


@pytest.mark.parametrize("case", conformance_cases(), ids=lambda case: case.name)
def test_operators_compute_what_onnx_says(case: Case) -> None:
    model = prepare(case.model())
    if case.name in UNKNOWN:
        with pytest.raises(UnsupportedModel, match=r"no counterpart in PyTorch.*'\w+:\w+'"):
            network_of(model)
        return
    for inputs, wanted in zip(case.inputs, case.answers(), strict=True):
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
        found = {name: tensor.numpy() for name, tensor in run(network_of(model), tensors).items()}
        assert min(one.sqnr_db for one in compare_all(wanted, found).values()) > 90


def test_recovered_model_gives_what_the_original_gave_under_the_same_names_and_shapes(tmp_path: Path) -> None:
    found = recovered(tmp_path, SHORT)
    check_model(found.model)
    assert found.best.value > 0.1 * found.checks[0].value  # errors, negated: a tenth of what it was
    original = network()
    for side in ("inputs", "outputs"):
        ours, theirs = getattr(found.model.graph, side), getattr(original.graph, side)
        assert [(one.name, one.shape, one.dtype) for one in ours] == [
            (one.name, one.shape, one.dtype) for one in theirs
        ]
    assert [found.model.graph.initializers[name].shape for name in ("a", "c")] == [[12, 3, 3, 3], [12, 12, 3, 3]]


@pytest.mark.parametrize("size", [1, 2])
def test_model_with_a_fixed_batch_learns_from_many_samples_at_once_and_keeps_its_batch(
    tmp_path: Path, size: int
) -> None:
    flat = f"<int64[2] flat = {{{size}, -1}}> {{"
    fixed = TEXT.replace("[N", f"[{size}").replace("f = Flatten(g)", "f = Reshape(g, flat)").replace("{", flat)
    found = recovered(tmp_path, SHORT, fixed)
    check_model(found.model)
    assert found.best.value > 0.1 * found.checks[0].value
    assert found.model.graph.inputs[0].shape == [size, 3, 8, 8] and found.model.graph.outputs[0].shape == [size, 4]
    run_unoptimized(found.model, {"x": np.zeros((size, 3, 8, 8), np.float32)})


def test_model_that_states_its_batch_elsewhere_is_refused_before_anything_is_learnt(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[1,3] x) => (float[2,3] y)
    <float[1,3] row = {1.0, 2.0, 3.0}> { y = Concat<axis = 0>(x, row) }"""
    model = ir.from_onnx_text(text)
    data = [{"x": np.ones((4, 3), np.float32)}]
    with pytest.raises(UnsupportedModel, match=r"output 'y'|at once"):
        recover(Pair(model, model), lambda: data, folder=tmp_path, recipe=SHORT)


def test_killed_run_goes_on_from_its_step_and_ends_as_one_that_was_never_killed(tmp_path: Path) -> None:
    killed, other = tmp_path / "killed", tmp_path / "other"
    child = subprocess.Popen([sys.executable, str(CASE), str(killed)], env={"PYTHONPATH": ":".join(sys.path)})
    first = _step_after(0, killed, child)
    other.mkdir()
    shutil.copy(killed / FILE, other)
    _step_after(_step(other) + 3, killed, child)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    at = _step(killed)
    assert 0 < first <= _step(other) < at  # the child did the steps between these two in one run
    ends = [recovered(folder, KILLED) for folder in (killed, other)]
    assert [one.steps for one in ends] == [KILLED.steps] * 2
    assert ends[0].resumed_at == at > ends[1].resumed_at
    for name, value in ends[0].model.graph.initializers.items():
        twin = ends[1].model.graph.initializers[name].const_value
        assert value.const_value is not None and twin is not None
        np.testing.assert_array_equal(value.const_value.numpy(), twin.numpy())


def _step(folder: Path) -> int:
    return int(torch.load(folder / FILE, weights_only=True)["step"])


def _step_after(step: int, folder: Path, child: subprocess.Popen[bytes]) -> int:
    """Waits for a checkpoint of a later step."""
    while not (folder / FILE).exists() or _step(folder) <= step:
        assert child.poll() is None, "the run ended before it wrote that checkpoint"
        time.sleep(0.02)
    return _step(folder)


def test_metric_that_is_met_ends_it(tmp_path: Path) -> None:
    asked = list[ir.Model]()

    def metric(model: ir.Model) -> float:
        asked.append(model)
        return len(asked) / 10

    found = recovered(tmp_path, SHORT, goal=Goal(metric, enough=0.3))
    assert (found.stopped, len(found.checks), found.best.value) == ("enough", 3, 0.3)


def test_metric_that_no_longer_rises_ends_it_with_the_best_weights(tmp_path: Path) -> None:
    values = iter([0.5, 0.7, 0.6, 0.6, 0.6, 0.6, 0.9])
    found = recovered(tmp_path, replace(SHORT, patience=4), goal=Goal(lambda model: next(values)))
    assert (found.stopped, found.best.value) == ("no gain", 0.7)


def test_pieces_that_are_computed_again_give_the_same_gradients() -> None:
    model = network()
    inputs = {"x": torch.from_numpy(np.asarray(next(batches())["x"]))}
    gradients = []
    for segments in (1, segments_for(model, batch=8, memory_bytes=0)):
        student = network_of(model)
        for tensor in student.weights.values():
            tensor.requires_grad_(True)
        found = run(student, inputs, taps=["u"], segments=segments)
        (found["y"].square().sum() + found["u"].square().mean()).backward()
        gradients.append({name: tensor.grad for name, tensor in student.weights.items()})
    assert segments == 3 and gradients[0].keys() == {"a", "b", "c", "d", "e"}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_memory_that_is_short_is_noticed() -> None:
    values_bytes = 4 * (5 * 16 * 64 + 16 + 16 + 4)  # s r t u v, g f y
    assert segments_for(network(), batch=2, memory_bytes=2 * values_bytes) == 1
    assert segments_for(network(), batch=2, memory_bytes=2 * values_bytes - 1) == 3


def test_checkpoint_of_another_recipe_is_not_used_and_a_damaged_one_is_said(tmp_path: Path) -> None:
    few = Recipe(seconds=float("inf"), steps=4, batch=8)
    assert recovered(tmp_path, few).resumed_at == 0
    assert recovered(tmp_path, few).resumed_at == 4
    assert recovered(tmp_path, Recipe(seconds=float("inf"), steps=4, batch=8, seed=1)).resumed_at == 0
    (tmp_path / FILE).write_bytes(b"not a checkpoint")
    with pytest.raises(StorageError, match="checkpoint cannot be read"):
        recovered(tmp_path, few)


def test_variations_are_the_same_for_the_same_seed_and_inside_the_data(tmp_path: Path) -> None:
    samples = gather(batches(), tmp_path)
    first, again, other = (varied(samples, 40, seed=seed)["x"] for seed in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(first, again) and not torch.equal(first, other)
    low, high = samples.bounds["x"]
    assert first.shape == (40, 3, 8, 8) and float(first.min()) >= low - 1e-5 and float(first.max()) <= high + 1e-5


def test_integers_are_drawn_and_not_varied(tmp_path: Path) -> None:
    samples = gather([{"ids": np.arange(12).reshape(6, 2)}], tmp_path)
    assert {tuple(row) for row in varied(samples, 6, seed=(0,))["ids"].tolist()} == {
        (first, first + 1) for first in range(0, 12, 2)
    }


def test_outputs_are_no_values_inside() -> None:
    model = prepare(network(TEXT.replace("u = Add(r, t) v = Relu(u)", "v = Relu(t)")))
    assert [*choose_taps(model, find_ties(model), ())] == ["s", "t"]


def test_no_samples_and_samples_of_two_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no samples"):
        gather([], tmp_path)
    mixed: list[Arrays] = [{"x": np.zeros((1, 4))}, {"x": np.zeros((1, 5))}]
    with pytest.raises(DataError, match="have shapes"):
        gather(mixed, tmp_path)


def test_operator_without_counterpart_is_named_before_anything_is_learnt(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[2,3] x) => (float[2,3] y)
    <int64 axis = {1}> { [odd] y = CumSum(x, axis) }"""
    model = ir.from_onnx_text(text)
    with pytest.raises(UnsupportedModel, match="CumSum 'odd'"):
        recover(Pair(model, model), batches, folder=tmp_path, recipe=SHORT)


def test_weights_go_back_under_their_names() -> None:
    model = network()
    doubled = {name: 2 * tensor for name, tensor in network_of(model).weights.items()}
    found = with_weights(model, doubled)
    for name in doubled:
        before, after = (one.graph.initializers[name].const_value for one in (model, found))
        assert before is not None and after is not None
        np.testing.assert_array_equal(after.numpy(), 2 * before.numpy())
