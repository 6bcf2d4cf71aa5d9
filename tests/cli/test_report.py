from __future__ import annotations

import hashlib
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.cli.conftest import Place, make_place


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Place:
    """A build of one device that is delivered and one whose results are wrong."""
    place = make_place(tmp_path_factory.mktemp("report"), site)
    place.moody({"good": {}, "bad": {"wrong_at": "MatMul"}})
    outcome = place.build()
    assert outcome.code == 6
    assert f"report: {place.dist / 'report.html'}" in outcome.out
    return place


def test_a_build_ends_with_a_page_that_has_failed_devices_too(mixed: Place) -> None:
    page = (mixed.dist / "report.html").read_text()
    assert "1 of 2 devices failed" in page and "GateFailed" in page and 'id="device-2"' in page


def test_the_page_is_made_again_with_the_same_bytes(mixed: Place) -> None:
    before = (mixed.dist / "report.html").read_bytes()
    outcome = mixed.run("report", mixed.dist, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json == {"report": str(mixed.dist / "report.html")}
    assert (mixed.dist / "report.html").read_bytes() == before


def test_summaries_are_all_of_stdout(mixed: Place) -> None:
    root = ET.fromstring(mixed.run("report", mixed.dist, "--summary", "junit").out)
    assert [suite.get("failures") for suite in root] == ["0", "1"]
    assert mixed.run("report", mixed.dist, "--summary", "md").out.startswith("### ")
    assert mixed.run("report", mixed.dist, "--summary", "yaml").out.startswith("supported_devices:")
    assert mixed.run("report", mixed.dist, "--summary", "md", "--json").code == 2


def test_a_tampered_manifest_ends_with_two_and_its_name(mixed: Place) -> None:
    path = mixed.dist / "good" / "manifest.json"
    kept = path.read_text()
    path.write_text(json.dumps({**json.loads(kept), "device": "other"}))
    outcome = mixed.run("report", mixed.dist)
    path.write_text(kept)
    assert outcome.code == 2 and str(mixed.dist / "good") in outcome.err and "was changed" in outcome.err
    assert "Traceback" not in outcome.err


def test_what_is_no_build_ends_with_two(mixed: Place, tmp_path: Path) -> None:
    for folder in (tmp_path, mixed.dist / "good", tmp_path / "absent"):
        outcome = mixed.run("report", folder)
        assert outcome.code == 2 and "there is no build.json" in outcome.err
    assert mixed.run("report", mixed.dist, "--previous", tmp_path).code == 2


def test_metrics_of_a_server_stand_beside_what_was_measured_here(mixed: Place, tmp_path: Path) -> None:
    digest = hashlib.sha256((mixed.dist / "good" / "manifest.json").read_bytes()).hexdigest()
    info = f'fleetc_build_info{{model="m",variant="v",manifest_sha256="{digest}"}} 1.0'
    lines = [
        "# HELP fleetc_build_info 1 for each build that is served.",
        info,
        'fleetc_requests_total{model="m",variant="v",outcome="ok"} 990.0',
        'fleetc_requests_total{model="m",variant="v",outcome="late"} 10.0',
        'fleetc_request_duration_seconds_bucket{model="m",le="0.005"} 600.0',
        'fleetc_request_duration_seconds_bucket{model="m",le="0.02"} 995.0',
        'fleetc_request_duration_seconds_bucket{model="m",le="+Inf"} 1000.0',
        'fleetc_build_resident_memory_bytes{model="m",variant="v"} 5.24288e+06',
    ]
    path = tmp_path / "metrics"
    path.write_text("\n".join(lines) + "\n")
    before = (mixed.dist / "report.html").read_text()
    assert mixed.run("report", mixed.dist, "--metrics", path).code == 0
    page = (mixed.dist / "report.html").read_text()
    (mixed.dist / "report.html").write_text(before)
    assert "In production" not in before
    for text in ("1,000: late 1.00%, ok 99.00%", "at most 5 ms", "at most 20 ms", "5.0 MiB"):
        assert f"<td>{text}</td>" in page
    path.write_text(info.replace(digest, "0" * 64))
    assert "the metrics are of other builds: 0000000000000000" in mixed.run("report", mixed.dist, "--metrics", path).err
    path.write_text("up 1\n")
    assert "there is no fleetc_build_info in it" in mixed.run("report", mixed.dist, "--metrics", path).err
