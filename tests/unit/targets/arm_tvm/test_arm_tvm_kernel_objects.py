"""Kernels as object files: named by what they compute, compiled once, the same bytes from the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from arm_tvm_models import make
from onnx import helper

from compiler.fleet.profile import HardwareProfile, load_profile, validate_options
from targets.arm_tvm import TARGET
from targets.arm_tvm.graph.kernel_objects import FOLDER
from targets.arm_tvm.graph.lower import lower
from targets.arm_tvm.kernels.floating_point.families import FAMILIES

pytestmark = pytest.mark.needs_tvm


def _model(filters: int, *, before: bool = False) -> ir.Model:
    """Two equal convolutions and one of its own; `before` puts another kernel in front, so that all places change."""
    nodes = [helper.make_node("Exp", ["x"], ["e"])] if before else []
    nodes += [
        helper.make_node("Conv", ["e" if before else "x", "w0"], ["a"], pads=[1] * 4),
        helper.make_node("Conv", ["a", "w1"], ["b"], pads=[1] * 4),
        helper.make_node("Conv", ["b", "w2"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    shapes = {"w0": (8, 8, 3, 3), "w1": (8, 8, 3, 3), "w2": (filters, 8, 1, 1)}
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return make(nodes, {"x": (1, 8, 6, 6)}, {"y": (1, filters, 6, 6)}, weights)


def _objects(model: ir.Model, folder: Path, cache: Path, profile: HardwareProfile) -> dict[str, bytes]:
    folder.mkdir()
    options = validate_options(TARGET.Options, profile)
    lowered = lower(model, options, workdir=folder, cache_dir=cache, schedule={})
    return {path.name: path.read_bytes() for path in lowered.objects}


def test_equal_kernels_are_compiled_once_and_shared_by_models(tmp_path: Path, pi5: HardwareProfile) -> None:
    pytest.importorskip("tvm")
    first = _objects(_model(8), tmp_path / "a", tmp_path / "cache", pi5)
    kept = {path.name for path in (tmp_path / "cache" / FOLDER).iterdir()}
    assert sum(name.startswith(tuple(FAMILIES)) for name in first) == 2
    second = _objects(_model(16, before=True), tmp_path / "b", tmp_path / "cache", pi5)
    shared = first.keys() & second.keys() - {"lib0.o", "devc.o"}
    assert any(name.startswith(tuple(FAMILIES)) for name in shared)
    assert all(first[name] == second[name] for name in shared)
    assert kept < {path.name for path in (tmp_path / "cache" / FOLDER).iterdir()}


def test_a_build_from_the_cache_has_the_same_bytes_as_one_without(tmp_path: Path, pi5: HardwareProfile) -> None:
    pytest.importorskip("tvm")
    builds = [_objects(_model(8), tmp_path / name, tmp_path / cache, pi5) for name, cache in ("ax", "bx", "cy")]
    assert builds[0] == builds[1] == builds[2]


def test_another_core_does_not_find_the_objects_of_this_one(tmp_path: Path, pi5: HardwareProfile) -> None:
    pytest.importorskip("tvm")
    _objects(_model(8), tmp_path / "a", tmp_path / "cache", pi5)
    count = len(list((tmp_path / "cache" / FOLDER).iterdir()))
    _objects(_model(8), tmp_path / "b", tmp_path / "cache", load_profile("raspberry-pi-4"))
    assert len(list((tmp_path / "cache" / FOLDER).iterdir())) > count
