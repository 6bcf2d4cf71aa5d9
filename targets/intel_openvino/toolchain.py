"""OpenVINO itself, imported where it is used and kept quiet."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

INPUT_LIMIT = 2**30 - 1
"""Largest size of an integer that a model may be given: half the range, so that two of them may be added."""

_LAYER_TYPE = re.compile(r'<layer [^>]*\btype="(\w+)"')
"""An IR's XML has each tag on a line of its own."""

_FUSED_FROM = "ReduceMean"
"""What every normalization that OpenVINO fuses into one layer (MVN) has in it."""


def openvino() -> Any:
    """The module, with the telemetry that it would send on import replaced by OpenVINO's own stub."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes its import fail
    import openvino

    return openvino


def layer_types(path: Path) -> frozenset[str]:
    """Types of the layers of an IR, those that OpenVINO fuses when it loads it included."""
    with path.open(encoding="utf-8") as lines:  # a large model's XML is tens of megabytes
        written = frozenset(match[1] for line in lines for match in _LAYER_TYPE.finditer(line))
    return written | _fused_types(path) if _FUSED_FROM in written else written


def _fused_types(path: Path) -> frozenset[str]:
    """Types of the layers after OpenVINO's common transformations, as its plugins run them first."""
    network = openvino().Core().read_model(path)
    transform(network)
    return frozenset(operator.get_type_name() for operator in network.get_ops())


def transform(network: Any) -> None:
    """OpenVINO's common transformations, in place: what `openvino.convert_model` runs, and the plugins again."""
    from openvino._offline_transformations import apply_moc_transformations

    apply_moc_transformations(network, cf=False, smart_reshape=False)


def input_name(port: Any) -> str:
    """The model's name of an input of a network; tensor names may be an output's."""
    return str(port.get_node().get_friendly_name())


def first_lines(error: Exception) -> str:
    """The message without the C++ source lines that OpenVINO puts around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "src/" not in line]
    return " ".join(lines)[:600] or str(error)[:600]
