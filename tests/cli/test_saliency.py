"""Saliency by the real command: a gate with both numbers, pictures in the manifest, and models without any."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Place, make_place, write_model


def write_images(place: Place) -> None:
    values = np.random.default_rng(1).random((8, 3, 8, 8)).astype(np.float32)
    np.savez(place.root / "images.npz", x=values)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, site: Path, shared: Place) -> Place:
    """A place whose cache holds what is measured of a device with the pictures and a limit: maps, times, memory."""
    place = make_place(tmp_path_factory.mktemp("saliency"), site, repeat=1)
    shutil.copytree(shared.cache, place.cache)
    write_images(place)
    limited(place, 0.9, precision="fp16")
    outcome = place.build()
    assert outcome.code == 0, outcome.err
    return place


@pytest.fixture
def images(place: Place, measured: Place) -> Place:
    """Eight pictures to calibrate with, and what is measured once for all tests of them."""
    shutil.copytree(measured.cache, place.cache, dirs_exist_ok=True)
    write_images(place)
    return replace(place, repeat=1)


def limited(place: Place, limit: float, **more: object) -> None:
    data = {"calibration": {"path": "images.npz"}, "limits": {"saliency_correlation_min": limit}, **more}
    place.write_fleet({"one": place.profile("one")}, **data)


def test_a_build_that_looks_elsewhere_fails_with_both_numbers_and_is_told_the_nearest_limit(images: Place) -> None:
    limited(images, 1.0, precision="fp16")
    outcome = images.build()
    assert outcome.code == 5, outcome.err
    assert "saliency failed: 0.9" in outcome.err and "correlation, limit at least 1 (mean of 6 images" in outcome.err
    assert "would pass with `limits: {saliency_correlation_min: 0.9" in outcome.err
    assert not (images.dist / "one").exists()


def test_a_gate_that_holds_keeps_figures_and_pictures_and_repeats_from_the_store(images: Place) -> None:
    limited(images, 0.9, precision="fp16")
    assert images.build().code == 0
    before = images.digests()
    found = images.manifest("one")
    (gate,) = found["gates"]
    assert gate["name"] == "saliency" and gate["passed"] and 0.9 <= gate["value"] <= 1
    saliency = found["saliency"]
    assert saliency["measured_on"] == "artifact" and saliency["evidence"] == "measured-host"
    assert saliency["images"] == 6 and len(saliency["shown"]) == 3
    assert np.array(saliency["shown"][0]["build"]).shape == (7, 7)
    assert found["trials"][-1]["saliency"]["correlation"] == saliency["correlation"] == gate["value"]
    assert "<img" in (images.dist / "report.html").read_text(encoding="utf-8")
    assert "saliency maps of 6 images: rank correlation" in images.run("inspect", images.dist / "one").out
    assert images.build().code == 0
    assert images.digests() == before


@pytest.mark.slow
def test_pictures_are_kept_out_where_the_fleet_file_says_so_and_the_figures_stay(place: Place) -> None:
    images = replace(place, repeat=1)  # a store of its own: no picture of another test is in it
    write_images(images)
    judged = {"task": "embedding", "path": "images.npz", "pictures": False}
    limits = {"saliency_correlation_min": 0.9, "memory_reduction_pct": 0, "accuracy_drop_pct": 50}
    limited(images, 0.9, precision="fp16", evaluation=judged, limits=limits)
    assert images.build().code == 0
    saliency = images.manifest("one")["saliency"]
    assert saliency["shown"] == [] and saliency["correlation"] >= 0.9 and saliency["images"] == 6
    assert "no pictures are kept: the fleet file says `pictures: false`" in saliency["note"]
    page = (images.dist / "report.html").read_text(encoding="utf-8")
    assert "data:image/png" not in page and "no pictures are kept" in page
    questions = list(images.cache.rglob("question.json"))
    assert questions and all(json.loads(one.read_text(encoding="utf-8"))["pictures"] == [] for one in questions)


@pytest.mark.slow
def test_a_model_without_an_image_input_is_not_judged_and_says_why(images: Place) -> None:
    write_model(images.root / "model.onnx", "(float[batch, 6] x) => (float[batch, 6] y) { y = MatMul(x, w) }", w=(6, 6))
    np.savez(images.root / "images.npz", x=np.ones((4, 6), np.float32))
    limited(images, 0.9)
    assert images.build().code == 0
    (gate,) = images.manifest("one")["gates"]
    assert gate["passed"] is None and "no image input" in gate["why"]


@pytest.mark.slow
def test_pictures_of_one_colour_leave_the_gate_open(images: Place) -> None:
    np.savez(images.root / "images.npz", x=np.full((6, 3, 8, 8), 0.5, np.float32))
    limited(images, 0.9, precision="fp32")
    assert images.build().code == 0
    (gate,) = images.manifest("one")["gates"]
    assert gate["passed"] is None and "6 of 6 images" in gate["why"] and "whatever is covered" in gate["why"]


def test_a_limit_without_samples_is_refused_before_anything_is_built(images: Place) -> None:
    text = {"one": {"profile": images.profile("one"), "limits": {"saliency_correlation_min": 0.9}}}
    images.write_fleet(text)
    outcome = images.run("plan", images.fleet, "--json")
    assert outcome.code == 2 and "no data to measure it on" in json.loads(outcome.out)["what"]
