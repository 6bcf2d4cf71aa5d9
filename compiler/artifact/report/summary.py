"""A build for other programs and for a pull request: Markdown, JUnit XML of the gates, YAML as clouds write it."""

from __future__ import annotations

import html
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML

from compiler.artifact.report.page import MIB
from compiler.artifact.report.plots import precision_counts
from compiler.artifact.report.read import Build, Device, payload_bytes
from compiler.artifact.report.rows import Figure, Row, chosen_trial, rows_of
from compiler.artifact.schema import Evidence

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no spelling for."""


def markdown(build: Build, previous: Build | None = None) -> str:
    """A table with a row per device, and why what failed did; names cannot add markup."""
    rows = rows_of(build, previous)
    head = ["Device", "Precision", "Size", "Memory", "Speed", "Accuracy", "Gates", *(["Change"] if previous else [])]
    failed = f"{len(build.failed)} of {len(rows)} devices failed" if build.failed else f"{len(rows)} devices delivered"
    lines = [f"### {_text(build.fleet)}: {failed}", "", _line(head), _line(["---"] * len(head))]
    lines += [_line(_cells(row, previous is not None)) for row in rows]
    reasons = [f"- **{_text(device.name)}**: {_text(_why(device))}" for device in build.failed]
    return "\n".join([*lines, *(["", *reasons] if reasons else []), ""])


def junit(build: Build) -> str:
    """One suite per device, one case per gate: failed, skipped where nobody could judge, or passed; and one case for
    the build itself."""
    root = ET.Element("testsuites", name=_xml(build.fleet))
    for row in rows_of(build, None):
        suite = ET.SubElement(root, "testsuite", name=_xml(row.device.name))
        _case(suite, row, "build", row.device.failure is not None, _why(row.device))
        for gate in row.gates:
            _case(suite, row, gate.name, None if gate.passed is None else not gate.passed, str(gate))
        for count, path in (("tests", "testcase"), ("failures", "*/failure"), ("skipped", "*/skipped")):
            suite.set(count, str(len(suite.findall(path))))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def cloud_yaml(build: Build) -> str:
    """Per precision, device and runtime: latency, peak memory, layers by kind of unit, tool versions, status.

    The shape is that of the per-model performance files of device clouds. Times and memory are null where they were
    not measured; `evidence` says where the others are from.
    """
    precisions: dict[str, Any] = {}
    for device in build.devices:
        runtime = device.searched.plan.target if device.searched else "unknown"
        precision = device.manifest.artifact.precision if device.manifest else "none"
        entry = precisions.setdefault(precision, {"components": {build.fleet: {"performance_metrics": {}}}})
        metrics = entry["components"][build.fleet]["performance_metrics"]
        metrics[device.name] = {runtime: _performance(device)}
    made = [device for device in build.devices if device.manifest]
    value = {
        "supported_devices": [device.name for device in made],
        "supported_chipsets": list(dict.fromkeys(filter(None, map(_chipset, made)))),
        "precisions": precisions,
    }
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 120
    yaml.dump(value, text)
    return text.getvalue()


def _performance(device: Device) -> Mapping[str, Any]:
    trial = chosen_trial(device)
    run_bytes = trial.footprint.run_bytes if trial and trial.footprint else None
    peak = None if run_bytes is None else round(run_bytes / MIB, 3)
    layers = device.searched.layers if device.searched else ()
    unit = _unit(device.manifest.inputs.profile.facts) if device.manifest else ""
    latency = device.measurements.latency
    return {
        "job_status": "Failed" if device.failure else "Passed",
        "status": str(device.status),
        "inference_time_milliseconds": latency[0].p50_ms if latency else None,
        "instructions": device.measurements.instructions,
        "evidence": str(device.measurements.evidence),
        "estimated_peak_memory_range_mb": {"min": peak, "max": peak},
        "memory_evidence": str(trial.footprint.run_evidence if trial and trial.footprint else Evidence.NONE),
        "primary_compute_unit": unit.upper() or None,
        "layer_counts": {
            "total": len(layers),
            **{kind: len(layers) if kind == unit else 0 for kind in ("npu", "gpu", "cpu")},
        },
        "layer_precisions": precision_counts(layers),
        "artifact_bytes": payload_bytes(device),
        "tool_versions": dict(device.manifest.artifact.tools) if device.manifest else {},
    }


def _chipset(device: Device) -> str:
    """What runs the model, as the profile names it."""
    facts = device.manifest.inputs.profile.facts if device.manifest else {}
    unit = facts.get("accelerator") or facts.get("cpu") or {}
    return str(unit.get("model", "")) if isinstance(unit, dict) else ""


def _unit(profile: Mapping[str, Any]) -> str:
    """The unit that runs the model: an accelerator with a compute capability is a GPU, another one an NPU."""
    accelerator = profile.get("accelerator")
    if not isinstance(accelerator, dict):
        return "cpu"
    return "gpu" if accelerator.get("compute_capability") else "npu"


def _why(device: Device) -> str:
    failure = device.failure
    return "" if failure is None else "; ".join(part for part in (failure.what, failure.remedy) if part)


def _case(suite: ET.Element, row: Row, name: str, failed: bool | None, text: str) -> None:
    case = ET.SubElement(suite, "testcase", classname=_xml(row.device.name), name=_xml(name))
    if failed is None:
        ET.SubElement(case, "skipped", message=_xml(text))
    elif failed:
        ET.SubElement(case, "failure", message=_xml(text.splitlines()[0] if text else name)).text = _xml(text)
    elif text:
        ET.SubElement(case, "system-out").text = _xml(text)


def _cells(row: Row, compares: bool) -> list[str]:
    name = f"{row.device.name}"
    figures = [_figure(figure) for figure in (row.size, row.memory, row.speed, row.accuracy)]
    changes = [", ".join(row.changes)] if compares else []
    return [name, row.precision or row.device.status, *figures, row.verdict, *changes]


def _figure(figure: Figure) -> str:
    evidence = f" ({figure.evidence})" if figure.evidence != Evidence.NONE else ""
    return f"{figure.text}{evidence}" + (f", {figure.detail}" if figure.detail else "")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell if set(cell) == {"-"} else _text(cell) for cell in cells) + " |"


def _text(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no line's end."""
    return re.sub(r"([\\`*_{}\[\]|#~@])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
