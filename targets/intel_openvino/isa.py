"""The device's instruction sets, imposed on the code that OpenVINO generates on this machine.

OpenVINO's CPU plugin generates code by oneDNN for the newest instruction sets of the processor it runs on. A build
server has newer ones than a kiosk, and kernels for them have other speeds, other weight layouts and so another memory.
oneDNN reads the limit `ONEDNN_MAX_CPU_ISA` once, before its first kernel (oneDNN developer guide, "CPU Dispatcher
Control").
"""

from __future__ import annotations

import os
from collections.abc import Collection

from compiler.target import TargetUnavailable

VARIABLE = "ONEDNN_MAX_CPU_ISA"

_AVX2 = ("avx2", "fma")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
_LEVELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("AVX512_CORE_AMX", (*_AVX512, "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")),
    ("AVX512_CORE_FP16", (*_AVX512, "avx512_vnni", "avx512_bf16", "avx512_fp16")),
    ("AVX512_CORE_BF16", (*_AVX512, "avx512_vnni", "avx512_bf16")),
    ("AVX512_CORE_VNNI", (*_AVX512, "avx512_vnni")),
    ("AVX512_CORE", _AVX512),
    ("AVX2_VNNI", (*_AVX2, "avx_vnni")),
    ("AVX2", _AVX2),
    ("AVX", ("avx",)),
    ("SSE41", ("sse4_1",)),
)
"""oneDNN's levels, the newest first, with the processor flags that each needs."""

OWN_KERNELS = frozenset({"MVN"})
"""Layers whose kernels the plugin chooses by the processor and not by the limit: under one below AVX-512, on a
processor that has it, OpenVINO 2026.4 mixes the two and crashes."""

OWN = "own_kernels"
"""Which of them a build has; a fact of its artifact."""

_HALF_PRECISIONS = frozenset({"bf16", "fp16"})
"""Precisions the plugin chooses by the processor and not by the limit: under one below AVX-512, OpenVINO 2026.4 finds
no kernel and answers with an empty tensor."""

_in_force: str | None = None
"""The limit that this process started with: oneDNN does not read a later one."""


def isa_limit(device: Collection[str], host: Collection[str], layers: Collection[str] = ()) -> str:
    """oneDNN's name of the newest level of a device; empty where its flags name none or this machine lacks some.

    Under the limit of a level that this machine does not have whole, oneDNN would go down further than it has to: a
    processor with AVX-512 VNNI and without AVX-VNNI would multiply int8 without either.

    Args:
        device: Processor flags of the device.
        host: Processor flags of this machine.
        layers: Types of the model's layers.
    """
    level, needed = next(((level, set(needed)) for level, needed in _LEVELS if set(needed) <= set(device)), ("", set()))
    if not needed <= set(host):
        return ""
    if level and mixes_kernels(level, host, layers):
        has_vnni = {"avx_vnni", "avx512_vnni"} & set(device) and "avx512_vnni" in host
        return "AVX512_CORE_VNNI" if has_vnni else "AVX512_CORE"
    return level


def mixes_kernels(level: str, host: Collection[str], layers: Collection[str]) -> bool:
    """Whether a limit would have the plugin mix kernels of two instruction sets in one layer."""
    return _is_below_avx512(level, host) and bool(OWN_KERNELS & set(layers))


def _is_below_avx512(level: str, host: Collection[str]) -> bool:
    return bool(level) and not level.startswith("AVX512") and "avx512f" in host


def refuse_half_precision(precision: str, host: Collection[str]) -> None:
    """Raises TargetUnavailable where this process is limited so far that a half precision gives no result."""
    if precision in _HALF_PRECISIONS and _is_below_avx512(_in_force or "", host):
        raise TargetUnavailable(
            f"this process is limited to {_in_force}, with which OpenVINO computes nothing in {precision}",
            remedy="Run this artifact in a process of its own.",
        )


def impose_isa(device: Collection[str], host: Collection[str], layers: Collection[str] = ()) -> str:
    """Limits the code of this process to a device's instruction sets; call it before OpenVINO compiles anything.

    A limit that the environment states already stays.

    Args:
        device: Processor flags of the device; none: no limit.
        host: Processor flags of this machine.
        layers: Types of the model's layers.

    Returns:
        Empty, or with which instruction sets instead of the device's it is computed, and why.

    Raises:
        TargetUnavailable: Another model limited this process so far that this one would crash.
    """
    global _in_force
    exact, limit = isa_limit(device, host), isa_limit(device, host, layers)
    if _in_force is None:
        _in_force = os.environ.get(VARIABLE, limit)
        if _in_force:
            os.environ[VARIABLE] = _in_force
    if _in_force and mixes_kernels(_in_force, host, layers):
        raise TargetUnavailable(
            f"this process is limited to {_in_force}, with which OpenVINO crashes in {', '.join(sorted(OWN_KERNELS))}",
            remedy="Run this artifact in a process of its own.",
        )
    return "" if _in_force == exact else f"computed with instructions of {_in_force or 'this machine'}, not {exact}"
