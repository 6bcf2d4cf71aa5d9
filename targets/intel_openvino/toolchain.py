"""OpenVINO itself, imported where it is used and kept quiet."""

from __future__ import annotations

import os
import sys
from collections.abc import Set
from typing import Any

_ISA_LEVELS: tuple[tuple[str, frozenset[str]], ...] = (
    ("SSE41", frozenset({"sse4_1"})),
    ("AVX", frozenset({"avx"})),
    ("AVX2", frozenset({"avx2"})),
    ("AVX2_VNNI", frozenset({"avx2", "avx_vnni"})),
    ("AVX512_CORE", frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"})),
    ("AVX512_CORE_VNNI", frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"})),
    ("AVX512_CORE_BF16", frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"})),
    ("AVX512_CORE_FP16", frozenset({"avx512_vnni", "avx512_bf16", "avx512_fp16"})),
    ("AVX512_CORE_AMX", frozenset({"avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"})),
    ("AVX512_CORE_AMX_FP16", frozenset({"amx_tile", "amx_int8", "amx_bf16", "amx_fp16"})),
)
"""oneDNN's values of ONEDNN_MAX_CPU_ISA, ascending, and the flags of /proc/cpuinfo that each needs."""


def openvino() -> Any:
    """The module, with the telemetry that it would send on import replaced by OpenVINO's own stub."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes its import fail
    import openvino

    return openvino


def limit_isa(device: Set[str], host: Set[str]) -> None:
    """Keeps OpenVINO on this machine to the instruction sets that the device has too.

    Otherwise a machine with more of them runs other kernels, on weights in another layout: neither speed nor memory
    would be the device's. oneDNN reads the setting once: the first model that a process loads decides.
    """
    level = isa_level(device, host)
    if level:
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", level)


def isa_level(device: Set[str], host: Set[str]) -> str:
    """oneDNN's name of the device's instruction sets; empty where it states none or this machine lacks some."""
    levels = [(name, flags) for name, flags in _ISA_LEVELS if flags <= device]
    if not levels:
        return ""
    name, flags = levels[-1]
    return name if flags <= host else ""


def input_name(port: Any) -> str:
    """The model's name of an input of a network; tensor names may be an output's."""
    return str(port.get_node().get_friendly_name())


def first_lines(error: Exception) -> str:
    """The message without the C++ source lines that OpenVINO puts around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "src/" not in line]
    return " ".join(lines)[:600] or str(error)[:600]
