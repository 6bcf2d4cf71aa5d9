"""Which integer dot products a core has."""

from __future__ import annotations

from collections.abc import Iterable

from targets.arm_tvm.kernels.integer.specs import Dot
from targets.arm_tvm.kernels.x86_cores import has

_DOTPROD = frozenset(
    """
    cortex-a55 cortex-a75 cortex-a76 cortex-a76ae cortex-a77 cortex-a78 cortex-a78ae cortex-a78c cortex-x1 cortex-x1c
    neoverse-n1 neoverse-e1
""".split()  # noqa: SIM905 - a list of names, not of strings
)
_I8MM = frozenset(
    """
    cortex-a510 cortex-a520 cortex-a710 cortex-a715 cortex-a720 cortex-a725 cortex-x2 cortex-x3 cortex-x4 cortex-x925
    neoverse-n2 neoverse-n3 neoverse-v1 neoverse-v2 neoverse-v3
""".split()  # noqa: SIM905
)


def dot_of(arch: str, mcpu: str, mattr: Iterable[str]) -> Dot:
    """The best way to multiply int8 on a core.

    Args:
        arch: First part of the triple.
        mcpu: LLVM's name of the core.
        mattr: Features switched on or off; they win over what the core is known to have.
    """
    features = tuple(mattr)
    if arch != "aarch64":
        return _dot_of_x86(mcpu, features)
    if "-i8mm" not in features and ("+i8mm" in features or mcpu in _I8MM):
        return "smmla"
    if "-dotprod" not in features and ("+dotprod" in features or mcpu in _DOTPROD | _I8MM):
        return "sdot"
    return "widen"


def _dot_of_x86(mcpu: str, mattr: tuple[str, ...]) -> Dot:
    # Switching AVX-512 off leaves nothing to AVX512-VNNI; AVX-VNNI is a feature of its own.
    if has("avx512f", mcpu, mattr) and has("avx512vnni", mcpu, mattr):
        if has("amx-tile", mcpu, mattr) and has("amx-int8", mcpu, mattr):
            return "amx_int8"
        return "avx512_vnni"
    return "avx_vnni" if has("avx2", mcpu, mattr) and has("avxvnni", mcpu, mattr) else "generic"
