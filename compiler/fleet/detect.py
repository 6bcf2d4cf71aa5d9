"""Profile the machine this runs on, from what Linux and the NVIDIA driver tell.

One profile per target that can build for the machine: one of its processor, one of each kind of NVIDIA GPU in it.
What cannot be read (containers hide files, other systems lack them) is left out of the profile.
"""

from __future__ import annotations

import csv
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from compiler.errors import ProfileError
from compiler.fleet.machine import available_cpus, available_memory_bytes
from compiler.fleet.profile import HardwareProfile, profile_of
from compiler.fleet.yamlfile import Document, Origin

_NUMERIC_X86 = re.compile(r"s?sse|avx|amx|fma|f16c|bmi|popcnt|gfni|v?aes|vpclmulqdq")
# Arm's part numbers (implementer 0x41) and the names LLVM has for them.
_ARM_PARTS = {
    "0xd03": "cortex-a53",
    "0xd05": "cortex-a55",
    "0xd07": "cortex-a57",
    "0xd08": "cortex-a72",
    "0xd09": "cortex-a73",
    "0xd0a": "cortex-a75",
    "0xd0b": "cortex-a76",
    "0xd0c": "neoverse-n1",
    "0xd0d": "cortex-a77",
    "0xd40": "neoverse-v1",
    "0xd41": "cortex-a78",
    "0xd42": "cortex-a78ae",
    "0xd44": "cortex-x1",
    "0xd46": "cortex-a510",
    "0xd47": "cortex-a710",
    "0xd48": "cortex-x2",
    "0xd49": "neoverse-n2",
    "0xd4b": "cortex-a78c",
    "0xd4f": "neoverse-v2",
}
_ARM_FEATURES = {"asimd": "+neon", "asimdhp": "+fullfp16", "asimddp": "+dotprod", "i8mm": "+i8mm", "bf16": "+bf16"}
_AHEAD_OF_TIME = {"7.5", "8.0", "8.6", "8.9", "12.0", "12.1"}  # what TensorRT-RTX builds for
_QUERY = ["name", "compute_cap", "memory.total", "power.max_limit", "clocks.max.sm"]
# The same instructions under another encoding: a flag on the left is served by all flags on the right.
_SERVED_BY = {"avx_vnni": {"avx512_vnni", "avx512vl"}}

_CPU_SOURCES = {
    "cpu": "detected: /proc/cpuinfo",
    "cpu.clock_mhz": "detected: /sys/devices/system/cpu/cpu*/cpufreq",
    "cpu.l1_kib": "detected: /sys/devices/system/cpu/cpu*/cache",
    "cpu.l2_kib": "detected: /sys/devices/system/cpu/cpu*/cache",
    "cpu.l3_kib": "detected: /sys/devices/system/cpu/cpu*/cache",
    "memory_mib": "detected: /proc/meminfo (MemTotal, which leaves out what the firmware keeps)",
    "precisions": "derived from cpu.isa",
}

_Facts = dict[str, Any]
_Block = dict[str, str]  # one processor of /proc/cpuinfo


def detect_profile(root: Path = Path("/")) -> HardwareProfile:
    """The profile of this machine's processor and memory.

    Args:
        root: Folder that holds `proc` and `sys`.

    Raises:
        ProfileError: No target builds for this kind of processor.
    """
    blocks = _cpuinfo(root)
    isa = _common_flags(blocks)
    fast, slow = _kinds(blocks, root)
    flags = isa if "asimd" in isa else filter(_NUMERIC_X86.match, isa)
    cpu = _cpu(fast, root) | {"isa": sorted(flags)} | _caches(fast, root)
    if slow:
        cpu["efficiency_cores"] = {key: _cpu(slow, root).get(key) for key in ("model", "cores", "clock_mhz")}
    return _profile(
        name=re.sub(r"[^a-z0-9]+", "-", cpu["model"].lower()).strip("-")[:64].strip("-") or "detected",
        description="The machine this profile was detected on",
        cpu=cpu,
        memory_mib=_memory_mib(root),
        precisions=_cpu_precisions(isa),
        provenance=_CPU_SOURCES | ({} if blocks else {"cpu": "detected: Python's platform and os modules"}),
        **_target(isa, fast),
    )


def detect_gpu_profiles() -> list[HardwareProfile]:
    """One profile of each kind of NVIDIA GPU the driver lists; none where there is no driver."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # no driver, or one that does not answer
        return []
    return gpu_profiles(listing)


def gpu_profiles(listing: str) -> list[HardwareProfile]:
    """The profiles of the GPUs in what nvidia-smi printed as CSV, each kind once."""
    rows = dict.fromkeys(tuple(cell.strip() for cell in row) for row in csv.reader(listing.splitlines()))
    return [_gpu_profile(*row) for row in rows if len(row) == len(_QUERY) and re.fullmatch(r"\d+\.\d", row[1])]


def host_isa(root: Path = Path("/")) -> frozenset[str]:
    """The instruction-set flags all processors of this machine share; empty where Linux does not tell."""
    return _common_flags(_cpuinfo(root))


def missing_isa(profile: HardwareProfile, host: frozenset[str]) -> list[str]:
    """Flags the profile's processor has and the host lacks; empty when what is built for it runs here."""
    wanted = profile.cpu.isa if profile.cpu else ()
    return [flag for flag in wanted if flag not in host and not _SERVED_BY.get(flag, {flag}) <= host]


def _profile(**facts: Any) -> HardwareProfile:
    """The validated profile of the facts that were found, with the provenance of those only."""
    data = _known({"schema": 1, **facts})
    data["provenance"] = {
        key: source
        for key, source in facts["provenance"].items()
        for top, _, below in [key.partition(".")]
        if top in data and (not below or below in data[top])
    }
    return profile_of(Document(data, Origin("detected")))


def _known(facts: _Facts) -> _Facts:
    nested = {key: _known(value) if isinstance(value, dict) else value for key, value in facts.items()}
    return {key: value for key, value in nested.items() if value not in (None, [], {})}


def _target(isa: frozenset[str], processors: list[_Block]) -> _Facts:
    machine = platform.machine().lower()
    if "asimd" in isa or (not isa and machine in ("aarch64", "arm64")):
        mattr = [feature for flag, feature in _ARM_FEATURES.items() if flag in isa]
        mcpu = _arm_core(processors[0]) if processors else "generic"
        return {"target": "tvm", "target_options": {"mtriple": "aarch64-linux-gnu", "mcpu": mcpu, "mattr": mattr}}
    if "sse2" in isa or (not isa and machine in ("x86_64", "amd64")):
        return {"target": "openvino", "target_options": {"performance_hint": "latency"}}
    raise ProfileError(
        f"no target builds for this machine ({machine})", remedy="Profile a device of the fleet instead."
    )


def _cpu(processors: list[_Block], root: Path) -> _Facts:
    """Name, counts and clock of processors of one kind."""
    if not processors:
        return {"model": platform.processor() or platform.machine() or "unknown", "cores": available_cpus()}
    first = processors[0]
    cores = {(block.get("physical id"), block["core id"]) for block in processors if "core id" in block}
    clock_khz = _number(_cpu_folder(first, root) / "cpufreq/cpuinfo_max_freq")
    return {
        "model": first.get("model name") or _arm_core(first),
        "cores": len(cores) or len(processors),
        "threads": len(processors),
        "clock_mhz": clock_khz // 1000 if clock_khz else None,
    }


def _arm_core(processor: _Block) -> str:
    """LLVM's name of an Arm core."""
    is_arm = processor.get("CPU implementer") == "0x41"
    return _ARM_PARTS.get(processor.get("CPU part", "").lower(), "generic") if is_arm else "generic"


def _kinds(blocks: list[_Block], root: Path) -> tuple[list[_Block], list[_Block]]:
    """The processors of the fastest kind, and of the next one where a chip has several."""
    kinds: dict[str, list[_Block]] = {}
    for block in blocks:
        kinds.setdefault(block.get("CPU part", ""), []).append(block)

    def speed(kind: list[_Block]) -> tuple[int, int]:
        folder = _cpu_folder(kind[0], root)
        return _number(folder / "cpu_capacity") or 0, _number(folder / "cpufreq/cpuinfo_max_freq") or 0

    ranked = [*sorted(kinds.values(), key=speed, reverse=True), [], []]
    return ranked[0], ranked[1]


def _caches(processors: list[_Block], root: Path) -> _Facts:
    """Data caches in KiB: level 1 and 2 as one core sees them, level 3 summed over the chip."""
    sizes: dict[tuple[int, str], int] = {}
    for block in processors:
        for folder in sorted((_cpu_folder(block, root) / "cache").glob("index*")):
            level, size = _number(folder / "level"), _number(folder / "size")
            if level and size and _text(folder / "type") != "Instruction":
                sizes[level, _text(folder / "shared_cpu_list")] = size
    first = {level: next((size for (at, _), size in sizes.items() if at == level), None) for level in (1, 2)}
    last = sum(size for (level, _), size in sizes.items() if level == 3)
    return {"l1_kib": first[1], "l2_kib": first[2], "l3_kib": last or None}


def _memory_mib(root: Path) -> int | None:
    total = re.search(r"^MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(total[1]) // 1024 or None if total else None


def _cpu_precisions(isa: frozenset[str]) -> list[str]:
    has = {
        "fp64": {"sse2", "asimd"},
        "fp32": {"sse2", "asimd"},
        "fp16": {"avx512_fp16", "asimdhp"},
        "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
        "int8": {"sse2", "asimd"},
    }
    return [precision for precision, flags in has.items() if flags & isa]


def _gpu_profile(name: str, capability: str, memory: str, power: str, clock: str) -> HardwareProfile:
    watts = re.fullmatch(r"\d+(\.\d+)?", power)
    return _profile(
        name=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:64].strip("-") or "detected-gpu",
        description="A GPU of the machine this profile was detected on",
        target="tensorrt",
        target_options={
            "library": "tensorrt-rtx" if capability in _AHEAD_OF_TIME else "tensorrt",
            "compute_capability": capability,
        },
        accelerator={
            "vendor": "NVIDIA",
            "model": name,
            "compute_capability": capability,
            "clock_mhz": _integer(clock),
            "memory_mib": _integer(memory),
        },
        power_w=float(power) if watts else None,
        precisions=_gpu_precisions(float(capability)),
        provenance={
            "accelerator": "detected: nvidia-smi",
            "power_w": "detected: nvidia-smi (power.max_limit)",
            "precisions": f"NVIDIA CUDA C++ programming guide, compute capability {capability}",
        },
    )


def _gpu_precisions(capability: float) -> list[str]:
    since = {"fp64": 1.3, "tf32": 8.0, "fp32": 1.0, "fp16": 5.3, "bf16": 8.0, "fp8": 8.9, "fp4": 10.0, "int8": 6.1}
    has_int4 = 7.5 <= capability < 9.0  # Hopper's tensor cores dropped it
    return [precision for precision, first in since.items() if capability >= first] + (["int4"] if has_int4 else [])


def _cpuinfo(root: Path) -> list[_Block]:
    blocks = []
    for paragraph in re.split(r"\n\s*\n", _text(root / "proc/cpuinfo")):
        pairs = (line.partition(":") for line in paragraph.splitlines() if ":" in line)
        block = {key.strip(): value.strip() for key, _, value in pairs}
        if "processor" in block:
            blocks.append(block)
    return blocks


def _common_flags(blocks: list[_Block]) -> frozenset[str]:
    flags = [frozenset((block.get("flags") or block.get("Features") or "").split()) for block in blocks]
    return frozenset.intersection(*flags) if flags else frozenset()


def _cpu_folder(processor: _Block, root: Path) -> Path:
    return root / "sys/devices/system/cpu" / f"cpu{processor['processor']}"


def _number(path: Path) -> int | None:
    return _integer(_text(path).removesuffix("K"))


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,12}", text) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except (OSError, ValueError):
        return ""


def host_fingerprint() -> str:
    """What a time measured here depends on: system, processor, and how much of it and of memory is available."""
    blocks = _cpuinfo(Path("/"))
    model = blocks[0].get("model name") or _arm_core(blocks[0]) if blocks else platform.processor()
    memory_mib = available_memory_bytes() >> 20  # a container of half the machine measures other times
    return f"{platform.system()} {platform.machine()} {model} x{available_cpus()} {memory_mib} MiB {sorted(host_isa())}"
