"""Maps in the report: pictures that need no network, words for who does not see them, and manifests from anywhere."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from compiler.artifact.adapter import parse
from compiler.artifact.report import read_build
from compiler.artifact.report.saliency import strips
from compiler.artifact.report.summary import junit
from compiler.artifact.schema.saliency import Saliency
from compiler.errors import ArtifactError
from tests.unit.compiler.artifact.report.conftest import gate, manifest, saliency, write_dist
from tests.unit.compiler.artifact.report.test_page import Elements, page_of


def png(size: tuple[int, int]) -> str:
    file = io.BytesIO()
    Image.new("L", size).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_the_figures_and_a_strip_are_on_the_page(tmp_path: Path) -> None:
    page = page_of(write_dist(tmp_path, {"kiosk": manifest("kiosk", saliency=saliency(top_overlap=0.9))}))
    text = " ".join(Elements(page).text.split())
    assert "maps with the float model's: 0.950 on average over 6 pictures, 0.910 at least" in text
    assert "Picture, float model, build: rank correlation 0.970" in text and "90 % of the most important" in text
    assert page.count("<img") == 1 and "what matters most is at the middle centre and at the middle centre" in page
    assert "img-src data:" in page


def test_a_strip_is_a_small_picture_and_repeats_to_the_same_bytes() -> None:
    (first,), (again,) = (strips(parse(Saliency, saliency())) for _ in range(2))
    assert first == again and len(first.uri) < 40_000
    kind, _, content = first.uri.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.size == (360, 120)
        red = image.convert("RGB").getpixel((60, 60))
        assert red == (200, 30, 30)


def test_what_was_not_compared_says_why(tmp_path: Path) -> None:
    nothing = saliency(
        correlation=None, shown=[], images=0, lowest_correlation=None, note="the model has no image input"
    )
    text = Elements(page_of(write_dist(tmp_path, {"kiosk": manifest("kiosk", saliency=nothing)}))).text
    assert "Saliency maps were not compared: the model has no image input." in text
    assert "Where it looks" not in Elements(page_of(write_dist(tmp_path, {"kiosk": manifest("kiosk")}))).text


@pytest.mark.parametrize("bad", ["", "AAAA", "no base64 <img>", png((400, 8))])
def test_a_picture_that_is_none_is_left_out(bad: str) -> None:
    found = saliency()
    found["shown"][0]["png"] = bad
    assert strips(parse(Saliency, found)) == ()


@pytest.mark.parametrize("map_", [[], [[]], [[0.0] * 65], [[float("nan")]], "x"])
def test_a_map_of_another_shape_makes_the_manifest_unreadable(tmp_path: Path, map_: Any) -> None:
    found = saliency()
    found["shown"][0]["build"] = map_
    build = read_build(write_dist(tmp_path, {"kiosk": manifest("kiosk", saliency=found)}))
    (problem,) = build.problems
    assert isinstance(problem, ArtifactError) and "saliency" in problem.what


def test_the_gate_is_a_case_of_its_own_for_ci(tmp_path: Path) -> None:
    facts = {"limit": 0.9, "value": 0.85, "unit": "correlation", "passed": False}
    open_gate = {"limit": 0.9, "value": None, "unit": "correlation", "passed": None, "why": "no image input"}
    kinds = {"kiosk": gate("saliency", **facts), "other": gate("saliency", **open_gate)}
    build = read_build(write_dist(tmp_path, {name: manifest(name, gates=[one]) for name, one in kinds.items()}))
    text = junit(build)
    assert 'message="saliency failed: 0.85 correlation, limit at least 0.9 (point; measured-host)"' in text
    assert 'skipped message="saliency: not judged: no image input' in text
