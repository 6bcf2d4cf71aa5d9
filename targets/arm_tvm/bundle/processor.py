"""Which instruction sets compiled code needs of an x86-64 processor, by the names that Linux has for them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from compiler.target import FleetError

if TYPE_CHECKING:
    from compiler.target import HardwareProfile
    from targets.arm_tvm.options import Options

_FLAGS = {
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "bmi": "bmi1",
    "lzcnt": "abm",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
    "avxvnni": "avx_vnni",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    **dict.fromkeys(("ssse3", "popcnt", "movbe", "avx", "avx2", "fma", "f16c", "bmi2")),
    **dict.fromkeys(("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl", "avx512ifma", "avx512vbmi")),
}
"""LLVM's feature → the flag of /proc/cpuinfo; None: the same. Of AMX that which our kernels use."""

_VECTOR = ("amx", "avx", "fma", "f16c")
"""How the flags begin that a profile's `cpu.isa` states where it states any."""


def needed_flags(options: Options) -> tuple[str, ...]:
    """The flags that an x86-64 processor must have to run what is compiled for the options; none for ARM."""
    if options.arch != "x86_64":
        return ()
    import tvm
    from tvm.target.codegen import llvm_get_cpu_features

    features = {str(feature) for feature in llvm_get_cpu_features(tvm.target.Target(options.target))}
    return tuple(sorted(flag or feature for feature, flag in _FLAGS.items() if feature in features))


def refuse_other_processor(needs: Collection[str], options: Options, profile: HardwareProfile) -> None:
    """Raises FleetError where code would be compiled for instructions that the profile's `cpu.isa` does not have."""
    stated = set(profile.cpu.isa if profile.cpu else ())
    # a profile of an ARM board that is built for this machine says nothing of x86-64
    surplus = [flag for flag in needs if flag.startswith(_VECTOR) and flag not in stated]
    if not surplus or not stated or "asimd" in stated:
        return
    raise FleetError(
        f"{' '.join((options.mcpu, *options.mattr))} has {', '.join(surplus)}, which cpu.isa does not state",
        where=f"profile {profile.name}: target_options of tvm",
        remedy="Name the device's own core, switch them off with - in mattr, or state them in cpu.isa.",
    )
