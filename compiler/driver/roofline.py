"""A model of performance where nobody can measure: each layer takes the longer of computing and moving its data.

    seconds = Σ max(MACs ÷ (cores × clock × MACs per cycle), bytes ÷ memory bandwidth)

It is a lower bound: caches, launches and the operators between the products are left out. It compares precisions of one
device; as a latency it is optimistic, and every figure made of it is labelled estimated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from compiler.driver.work import LayerWork
from compiler.fleet.profile import Accelerator, Cpu, HardwareProfile

CYCLES_HZ_PER_MHZ = 1e6


@dataclass(frozen=True)
class Machine:
    """What the model knows of a device.

    Args:
        macs_per_s: Precision → multiply-accumulates per second of the whole device.
        bytes_per_s: Bandwidth of its memory; 0 where the profile does not state it.
        source: Where the constants are from.
    """

    macs_per_s: Mapping[str, float]
    bytes_per_s: float
    source: str


_X86: tuple[tuple[str, Mapping[str, float]], ...] = (
    ("sse4_1", {"fp32": 4, "int8": 8}),
    ("avx", {"fp32": 8, "int8": 8}),
    ("avx2", {"fp32": 16, "int8": 32}),
    ("avx_vnni", {"int8": 64}),
    ("avx512f", {"fp32": 32, "int8": 64}),
    ("avx512_vnni", {"int8": 128}),
    ("avx512_bf16", {"bf16": 64}),
    ("avx512_fp16", {"fp16": 64}),
    ("amx_bf16", {"bf16": 512}),
    ("amx_fp16", {"fp16": 512}),
    ("amx_int8", {"int8": 1024}),
)
"""Flag of /proc/cpuinfo → multiply-accumulates per core and cycle, two vector units of that width; a later flag
overrides an earlier one. Intel 64 and IA-32 Architectures Optimization Reference Manual, instruction throughput."""

_ARM: tuple[tuple[str, Mapping[str, float]], ...] = (
    ("asimd", {"fp32": 8, "int8": 16}),
    ("asimdhp", {"fp16": 16}),
    ("asimddp", {"int8": 32}),
    ("i8mm", {"int8": 64}),
    ("bf16", {"bf16": 32}),
)
"""The same of ARM: two 128-bit pipes. Arm Software Optimization Guides of Cortex-A76 and Neoverse N1 and V1."""

_GPU: Mapping[str, Mapping[str, float]] = {
    "7.5": {"fp32": 1, "fp16": 8, "int8": 16},
    "8.0": {"fp32": 1, "fp16": 16, "bf16": 16, "int8": 32},
    "8.6": {"fp32": 1, "fp16": 4, "bf16": 4, "int8": 8},
    "8.7": {"fp32": 1, "fp16": 8, "bf16": 8, "int8": 16},
    "8.9": {"fp32": 1, "fp16": 4, "bf16": 4, "int8": 8, "fp8": 8},
    "9.0": {"fp32": 1, "fp16": 16, "bf16": 16, "int8": 32, "fp8": 32},
    "12.0": {"fp32": 1, "fp16": 4, "bf16": 4, "int8": 8, "fp8": 8},
    "12.1": {"fp32": 1, "fp16": 4, "bf16": 4, "int8": 8, "fp8": 8},
}
"""Compute capability → multiply-accumulates per CUDA core and cycle, dense tensor cores. NVIDIA's architecture
whitepapers: the ratio of their peak rates to that of float32 outside the tensor cores."""

_SAME_AS = {"fp16-weights": "fp32", "int8-weights": "fp32", "int4-weights": "fp32", "int4-weights-int8": "int8"}
"""Precision that only stores → the one it computes in."""

_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "fp8": 1.0}
_WEIGHT_BYTES = {"fp16-weights": 2.0, "int8-weights": 1.0, "int4-weights": 0.5, "int4-weights-int8": 0.5}


def describe_machine(profile: HardwareProfile) -> Machine | None:
    """The device as the model sees it; None where the profile does not say enough."""
    if profile.accelerator is not None:
        return _gpu(profile.accelerator, profile.memory_bandwidth_gbps)
    return _cpu(profile.cpu, profile.memory_bandwidth_gbps) if profile.cpu is not None else None


def arithmetic_rate(isa: Collection[str], precision: str) -> float:
    """Multiply-accumulates per core and cycle in a precision, else in float32; 0 where the flags name no unit."""
    rates = _rates(isa)
    return float(rates.get(_SAME_AS.get(precision, precision), rates.get("fp32", 0)))


def weight_bytes(precision: str) -> float:
    """Bytes of one weight as a precision stores it."""
    return _WEIGHT_BYTES.get(precision, _BYTES.get(precision, 4.0))


def layer_seconds(layer: LayerWork, machine: Machine, precision: str, *, overlaps: bool = True) -> float:
    """One layer's time at peak rates in a precision; one the machine has no rate for counts as float32.

    Args:
        layer: Its arithmetic and the bytes it moves.
        machine: The device.
        precision: What the layer computes in.
        overlaps: Whether memory is read while the device computes: then it is a lower bound.
    """
    computed = _SAME_AS.get(precision, precision)
    computed = computed if computed in machine.macs_per_s else "fp32"
    width = _BYTES.get(computed, 4.0)
    moved = layer.weights * _WEIGHT_BYTES.get(precision, width) + layer.activations * width
    arithmetic = layer.macs / machine.macs_per_s[computed]
    transfer = moved / machine.bytes_per_s if machine.bytes_per_s else 0.0
    return max(arithmetic, transfer) if overlaps else arithmetic + transfer


def model_seconds(layers: Iterable[LayerWork], machine: Machine, precision: str, *, overlaps: bool = True) -> float:
    """One inference at peak rates, a lower bound where memory overlaps arithmetic; float layers count as float32."""
    rules = ((layer, precision if layer.is_low else "fp32") for layer in layers)
    return sum(layer_seconds(layer, machine, rule, overlaps=overlaps) for layer, rule in rules)


def _cpu(cpu: Cpu, bandwidth_gbps: float | None) -> Machine | None:
    if not cpu.clock_mhz:
        return None
    source = "Arm Software Optimization Guides" if "asimd" in cpu.isa else "Intel Optimization Manual"
    rates = _rates(cpu.isa)
    cycles = cpu.cores * cpu.clock_mhz * CYCLES_HZ_PER_MHZ
    return _machine(rates, cycles, bandwidth_gbps, f"cores × clock × MACs per cycle ({source})")


def _rates(isa: Collection[str]) -> dict[str, float]:
    """Precision → multiply-accumulates per core and cycle."""
    rates: dict[str, float] = {}
    for flag, flag_rates in _ARM if "asimd" in isa else _X86:
        if flag in isa:
            rates |= flag_rates
    return rates


def _gpu(gpu: Accelerator, bandwidth_gbps: float | None) -> Machine | None:
    rates = _GPU.get(gpu.compute_capability or "", {})
    if not gpu.cores or not gpu.clock_mhz:
        return None
    cycles = gpu.cores * gpu.clock_mhz * CYCLES_HZ_PER_MHZ
    own = gpu.memory_bandwidth_gbps or bandwidth_gbps
    return _machine(rates, cycles, own, "cores × clock × MACs per cycle (NVIDIA architecture whitepapers)")


def _machine(rates: Mapping[str, float], cycles: float, bandwidth_gbps: float | None, source: str) -> Machine | None:
    if "fp32" not in rates:
        return None
    return Machine({name: rate * cycles for name, rate in rates.items()}, (bandwidth_gbps or 0.0) * 1e9, source)
