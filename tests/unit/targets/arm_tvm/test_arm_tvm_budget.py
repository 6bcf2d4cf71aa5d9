"""Winograd's larger weights against a limit on the payload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from arm_tvm_models import make
from onnx import helper

from compiler.fleet.profile import HardwareProfile, validate_options
from compiler.target import TargetPlan
from targets.arm_tvm import TARGET
from targets.arm_tvm.graph.budget import Layer, fit_weights
from targets.arm_tvm.graph.lower import lower
from targets.arm_tvm.kernels.floating_point.families import all_choices, choose
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload
from targets.arm_tvm.kernels.machine import Machine
from targets.arm_tvm.options import Options, Preference

NEON = Machine()
EARLY = ConvWorkload("blocked", "float32", 1, 64, 48, 48, 64, kernel=(3, 3), padding=(1, 1, 1, 1))
LATE = replace(EARLY, height=12, width=12)
BOTH: list[Layer] = [(EARLY, "a"), (LATE, "b")]
SEVERAL: list[Layer] = [(EARLY, "a"), (LATE, "b"), (LATE, "c"), (LATE, "d")]


def _chosen(layers: list[Layer], most: Mapping[Layer, int]) -> list[Choice]:
    chosen = [choose(layer[0], NEON, {}, most_bytes=most.get(layer)) for layer in layers]
    return [choice for choice in chosen if choice is not None]


def _bytes(layers: list[Layer], most: Mapping[Layer, int]) -> int:
    return sum(choice.weight_bytes for choice in _chosen(layers, most))


def test_without_need_every_kernel_has_its_fastest_choice() -> None:
    assert fit_weights(BOTH, NEON, _bytes(BOTH, {})) == {}


def test_layer_with_most_bytes_for_an_instruction_saved_gives_up_first() -> None:
    """The same weights save a sixteenth of the instructions on the smaller map."""
    first, second = _chosen(BOTH, fit_weights(BOTH, NEON, _bytes(BOTH, {}) - 1))
    assert first == all_choices(EARLY, NEON)[0]
    assert second.weight_bytes < all_choices(LATE, NEON)[0].weight_bytes


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
def test_weights_stay_below_a_limit_that_can_be_met(share: float) -> None:
    limit = int(share * _bytes(BOTH, {}))
    assert _bytes(BOTH, fit_weights(BOTH, NEON, limit)) <= limit


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.35])
def test_no_other_choices_within_the_limit_take_fewer_instructions(share: float) -> None:
    limit = int(share * _bytes(SEVERAL, {}))
    chosen = _chosen(SEVERAL, fit_weights(SEVERAL, NEON, limit))
    every = product(*(all_choices(work, NEON)[:1] + _smaller(work) for work, _ in SEVERAL))
    # Bytes are counted in steps, so the last hundredth of the room may stay empty.
    least = min(
        sum(choice.cost for choice in some)
        for some in every
        if sum(choice.weight_bytes for choice in some) <= 0.99 * limit
    )
    assert sum(choice.cost for choice in chosen) <= least


def _smaller(work: ConvWorkload) -> tuple[Choice, ...]:
    """The fastest choice of each size."""
    return tuple({choice.weight_bytes: choice for choice in reversed(all_choices(work, NEON))}.values())


def test_layers_of_one_workload_may_have_different_choices() -> None:
    layers: list[Layer] = [(LATE, "a"), (LATE, "b")]
    most = fit_weights(layers, NEON, _bytes(layers, {}) - 1)
    assert len({choice.weight_bytes for choice in _chosen(layers, most)}) == 2


def test_the_choices_of_a_workload_are_listed_once() -> None:
    assert all(all_choices(replace(work), NEON) is all_choices(work, NEON) for work, _ in BOTH)


def test_nothing_is_given_up_for_a_limit_that_no_choice_meets() -> None:
    least = sum(min(one.weight_bytes for one in all_choices(work, NEON)) for work, _ in BOTH)
    assert fit_weights(BOTH, NEON, least)
    assert fit_weights(BOTH, NEON, least - 1) == {}


def _model(channels: int = 64) -> ir.Model:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4, name="conv")]
    weights = {"w": np.ones((channels, channels, 3, 3))}
    return make(nodes, {"x": (1, channels, 20, 20)}, {"y": (1, channels, 20, 20)}, weights)


def _fast(profile: HardwareProfile) -> Options:
    options: Options = validate_options(TARGET.Options, profile)
    return replace(options, prefer=Preference.SPEED)


@pytest.mark.needs_tvm
def test_weights_grow_by_a_quarter_at_most_unless_speed_is_preferred(pi5: HardwareProfile) -> None:
    pytest.importorskip("tvm")
    small = validate_options(TARGET.Options, pi5)
    (fast,), (default,) = (TARGET.tunables(_model(), TargetPlan("fp32", way), pi5) for way in (_fast(pi5), small))
    assert fast.default["family"] == "winograd"
    assert (default.default["family"], default.default.get("late")) == ("winograd", 1)


@pytest.mark.needs_tvm
def test_weights_that_several_nodes_share_are_stored_once(
    tmp_path: Path, cache_dir: Path, pi5: HardwareProfile
) -> None:
    pytest.importorskip("tvm")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Tanh", ["m"], ["t"])]
    nodes += [helper.make_node("MatMul", ["t", "w"], ["n"]), helper.make_node("Tanh", ["n"], ["u"])]
    # The same numbers under another name, and the transpose that Gemm reads.
    nodes += [helper.make_node("MatMul", ["u", "v"], ["o"]), helper.make_node("Gemm", ["o", "wt"], ["y"], transB=1)]
    weight = np.random.default_rng(0).standard_normal((64, 64))
    weights = {"w": weight, "v": weight.copy(), "wt": np.ascontiguousarray(weight.T)}
    model = make(nodes, {"x": (8, 64)}, {"y": (8, 64)}, weights)
    lowered = lower(model, validate_options(TARGET.Options, pi5), workdir=tmp_path, cache_dir=cache_dir, schedule={})
    assert sum(array.nbytes for array in lowered.weights) < 1.25 * 64 * 64 * 4


@pytest.mark.needs_tvm
def test_payload_of_a_build_keeps_the_limit_and_its_kernels_say_so(
    tmp_path: Path, cache_dir: Path, pi5: HardwareProfile
) -> None:
    pytest.importorskip("tvm")
    free = TargetPlan("fp32", _fast(pi5), cache_dir=cache_dir)
    given = 64 * 64 * 9 * 4
    bound = replace(free, payload_bytes=2 * given + (150 << 10))
    (before,), (after,) = (TARGET.tunables(_model(), plan, pi5) for plan in (free, bound))
    assert before.default["family"] == "winograd"
    assert before.default["m"] > 2
    assert "limit" in after.name
    assert set(map(str, after.choices)) < set(map(str, before.choices))
    TARGET.build(_model(), bound, pi5, workdir=tmp_path)
    payload = sum(file.stat().st_size for file in (tmp_path / "payload").iterdir())
    assert payload <= bound.payload_bytes
