from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from junitparser import JUnitXml, Skipped
from markdown_it import MarkdownIt
from ruamel.yaml import YAML

from compiler.artifact.report import read_build
from compiler.artifact.report.summary import cloud_yaml, junit, markdown
from tests.unit.compiler.artifact.report.conftest import failure, gate, manifest, write_dist

NASTY = "a|b <img src=x> *bold* \x1b[31m `code`"


def test_markdown_has_a_row_per_device_and_why_the_others_failed(dist: Path) -> None:
    text = markdown(read_build(dist))
    assert text.startswith("### fleet.yaml: 2 of 3 devices failed")
    assert "| kiosk | int8 | 10.0 MiB (measured-host), 50 % less than the float original |" in text
    assert "- **broken**: no compiler; Relax it." in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 5 and len({line.count(" | ") for line in rows}) == 1


def test_markdown_tells_the_change_where_a_previous_build_is_given(dist: Path) -> None:
    assert "| no change |" in markdown(read_build(dist), read_build(dist))


def test_names_cannot_add_markup_to_markdown(tmp_path: Path) -> None:
    text = markdown(read_build(write_dist(tmp_path, {}, {"one": failure(what=NASTY)})))
    assert "<img" not in text and "\\*bold\\*" in text and "a\\|b" in text


def test_junit_has_a_case_per_gate(dist: Path) -> None:
    root = ET.fromstring(junit(read_build(dist)))
    kiosk, broken = root.find("*[@name='kiosk']"), root.find("*[@name='broken']")
    assert kiosk is not None and broken is not None
    assert (kiosk.get("tests"), kiosk.get("failures"), kiosk.get("skipped")) == ("3", "0", "1")
    assert kiosk.find("testcase[@name='memory: run']/skipped") is not None
    assert broken.get("failures") == "1"


def test_a_ci_server_s_reader_counts_what_the_suites_say(dist: Path, tmp_path: Path) -> None:
    path = tmp_path / "gates.xml"
    path.write_text(junit(read_build(dist)))
    suites = list(JUnitXml.fromfile(str(path)))
    stated = [(suite.name, suite.tests, suite.failures, suite.skipped) for suite in suites]
    for suite in suites:
        suite.update_statistics()
    assert stated == [(suite.name, suite.tests, suite.failures, suite.skipped) for suite in suites]
    (unjudged,) = [case for case in suites[-1] if case.name == "memory: run"]
    assert unjudged.classname == "kiosk" and isinstance(unjudged.result[0], Skipped)


@pytest.mark.parametrize("what", ["no disk", NASTY])
def test_markdown_is_read_as_one_heading_one_table_and_one_list(tmp_path: Path, what: str) -> None:
    failed = {"one": failure(what=what), "two": failure(what=what)}
    text = markdown(read_build(write_dist(tmp_path, {"kiosk": manifest("kiosk")}, failed)))
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    kinds = [token.type for token in tokens]
    assert [kinds.count(kind) for kind in ("heading_open", "table_open", "tr_open", "list_item_open")] == [1, 1, 4, 2]
    assert kinds.count("th_open") * 4 == kinds.count("th_open") + kinds.count("td_open")
    assert "html_block" not in kinds and "<img" not in MarkdownIt().enable("table").render(text)


def test_a_failed_gate_is_a_failed_case(tmp_path: Path) -> None:
    failed = gate(value=3.0, passed=False)
    facts = manifest("one", gates=[failed])
    root = ET.fromstring(junit(read_build(write_dist(tmp_path, {"one": facts}))))
    found = root.find("*/testcase[@name='accuracy']/failure")
    assert found is not None and "accuracy failed: 3 points lost, limit at most 2" in str(found.text)


def test_junit_is_well_formed_whatever_the_names_hold(tmp_path: Path) -> None:
    root = ET.fromstring(junit(read_build(write_dist(tmp_path, {}, {"one": failure(what=NASTY)}))))
    assert "<img src=x>" in str(root.findtext("*/testcase/failure"))


@pytest.mark.parametrize(
    ("profile", "unit"),
    [
        ({}, "CPU"),
        ({"accelerator": {"model": "L4", "compute_capability": "8.9"}}, "GPU"),
        ({"accelerator": {"model": "X"}}, "NPU"),
    ],
)
def test_yaml_has_the_shape_of_device_clouds(tmp_path: Path, profile: dict[str, dict[str, str]], unit: str) -> None:
    facts = manifest("kiosk")
    facts["inputs"]["profile"]["facts"] = profile
    value = YAML(typ="safe").load(cloud_yaml(read_build(write_dist(tmp_path, {"kiosk": facts}, {"two": failure()}))))
    assert value["supported_devices"] == ["kiosk"]
    assert value["supported_chipsets"] == [one["model"] for one in profile.values()]
    metrics = value["precisions"]["int8"]["components"]["fleet.yaml"]["performance_metrics"]["kiosk"]["reference"]
    assert metrics["inference_time_milliseconds"] == 4.0
    assert metrics["evidence"] == "measured-host"
    assert metrics["estimated_peak_memory_range_mb"] == {"min": 25.0, "max": 25.0}
    assert metrics["primary_compute_unit"] == unit
    assert metrics["layer_counts"] == {"total": 2, "npu": 0, "gpu": 0, "cpu": 0, unit.lower(): 2}
    assert metrics["tool_versions"] == {"onnxruntime": "1.32.0"}
