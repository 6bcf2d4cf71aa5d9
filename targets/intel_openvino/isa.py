"""The device's instruction sets, imposed on the code that OpenVINO generates on this machine.

OpenVINO's CPU plugin generates code by oneDNN for the newest instruction sets of the processor it runs on. A build
server has newer ones than a kiosk, and kernels for them have other speeds, other weight layouts and so another memory.
oneDNN reads the limit `ONEDNN_MAX_CPU_ISA` once, before its first kernel (oneDNN developer guide, "CPU Dispatcher
Control").
"""

from __future__ import annotations

import os
from collections.abc import Collection

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

_in_force: str | None = None
"""The limit that this process started with: oneDNN does not read a later one."""


def isa_limit(device: Collection[str], host: Collection[str]) -> str:
    """oneDNN's name of the newest level of a device; empty where its flags name none or this machine lacks some.

    Under the limit of a level that this machine does not have whole, oneDNN would go down further than it has to: a
    processor with AVX-512 VNNI and without AVX-VNNI would multiply int8 without either.
    """
    level, needed = next(((level, set(needed)) for level, needed in _LEVELS if set(needed) <= set(device)), ("", set()))
    return level if needed <= set(host) else ""


def impose_isa(device: Collection[str], host: Collection[str]) -> str:
    """Limits the code of this process to a device's instruction sets; call it before OpenVINO compiles anything.

    Args:
        device: Processor flags of the device; none: no limit.
        host: Processor flags of this machine.

    Returns:
        Empty, or why the limit does not hold: another device's was imposed on this process before.
    """
    global _in_force
    limit = isa_limit(device, host)
    if _in_force is None:
        _in_force = limit
        if limit:
            os.environ[VARIABLE] = limit
    return "" if _in_force == limit else f"computed with instructions of {_in_force or 'this machine'}, not {limit}"
