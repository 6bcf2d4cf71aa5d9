"""Which vector extensions x86-64 cores have, by LLVM's names of both; a toolchain is not needed to know them."""

from __future__ import annotations

from collections.abc import Iterable

_AVX2 = """
    haswell broadwell skylake alderlake raptorlake meteorlake arrowlake arrowlake-s lunarlake pantherlake gracemont
    sierraforest grandridge clearwaterforest znver1 znver2 znver3 {avx512}
"""
_AVX512 = """
    skylake-avx512 cascadelake cooperlake cannonlake icelake-client icelake-server tigerlake rocketlake sapphirerapids
    emeraldrapids graniterapids graniterapids-d znver4 znver5
"""
_VNNI = """
    cascadelake cooperlake icelake-client icelake-server tigerlake rocketlake sapphirerapids emeraldrapids
    graniterapids graniterapids-d znver4 znver5
"""
_VNNI_OF_256_BITS = """
    alderlake raptorlake meteorlake arrowlake arrowlake-s lunarlake pantherlake gracemont sierraforest grandridge
    clearwaterforest sapphirerapids emeraldrapids graniterapids graniterapids-d znver5
"""
_BFLOAT16 = """
    cooperlake sapphirerapids emeraldrapids graniterapids graniterapids-d znver4 znver5
"""
_AMX = "sapphirerapids emeraldrapids graniterapids graniterapids-d"
CORES = {
    "avx2": frozenset(_AVX2.format(avx512=_AVX512).split()),
    "avx512f": frozenset(_AVX512.split()),
    "avx512vnni": frozenset(_VNNI.split()),
    "amx-tile": frozenset(_AMX.split()),
    "amx-int8": frozenset(_AMX.split()),
    "amx-bf16": frozenset(_AMX.split()),
    "avx512bf16": frozenset(_BFLOAT16.split()),
    "avxvnni": frozenset(_VNNI_OF_256_BITS.split()),
}
"""Extension → the cores that have it."""


def has(extension: str, mcpu: str, mattr: Iterable[str]) -> bool:
    """Whether code for a core may use an extension; features switched on or off win over what the core has."""
    features = set(mattr)
    return f"-{extension}" not in features and (f"+{extension}" in features or mcpu in CORES[extension])
