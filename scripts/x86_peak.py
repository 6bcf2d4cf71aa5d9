"""What one thread of this machine multiplies and accumulates at most by the very instruction (x86_peak.c)."""

from __future__ import annotations

import subprocess
from collections.abc import Set
from pathlib import Path

from bench_record import Figures

from targets.arm_tvm.bundle.zig import run_zig

PROGRAM = Path(__file__).with_name("x86_peak.c")
INSTRUCTIONS = {
    "fp32": (("avx512f", "fma512", "vfmadd231ps zmm"), ("fma", "fma", "vfmadd231ps ymm")),
    "int8": (("avx512_vnni", "vnni512", "vpdpbusd zmm"), ("avx_vnni", "vnni", "vpdpbusd ymm")),
    "bf16": (("avx512_bf16", "bf16", "vdpbf16ps zmm"),),
}
"""Precision → the flag a processor has for it, the program's name of it, and the instruction; the best first."""

TILES = {"int8": "amx_int8", "bf16": "amx_bf16"}
"""Where a processor has these, kernels use them, and vectors' peak is none of theirs."""


def measure_peak(precision: str, flags: Set[str], cache: Path) -> Figures:
    """Multiply-accumulates a second and a cycle of one thread; why there is none, where there is none.

    Args:
        precision: `fp32`, `int8` or `bf16`.
        flags: The processor's, as /proc/cpuinfo names them.
        cache: Folder for the program.
    """
    if TILES.get(precision) in flags:
        return {"unavailable": f"the peak of {TILES[precision]} is not measured"}
    found = next((row for row in INSTRUCTIONS[precision] if row[0] in flags), None)
    if found is None:
        return {"unavailable": f"this processor has no instruction of {precision}"}
    _, kind, instruction = found
    built = cache / "x86_peak"
    run_zig("cc", "-O2", "-o", built, PROGRAM, cache_dir=cache)
    told = subprocess.run([built, kind], check=True, capture_output=True, text=True).stdout
    macs_per_s, clock_hz = map(float, told.split())
    return {
        "instruction": instruction,
        "gmacs_per_s": round(macs_per_s / 1e9, 1),
        "clock_mhz": round(clock_hz / 1e6),
        "macs_per_cycle": round(macs_per_s / clock_hz, 1),
    }
