"""What Linux tells of a machine becomes a valid profile, and what it hides is left out."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from compiler.errors import ProfileError
from compiler.fleet.detect import detect_gpu_profiles, detect_profile, gpu_profiles, host_isa, missing_isa
from compiler.fleet.profile import HardwareProfile, list_profiles, load_profile, to_yaml

ARM_FLAGS = "fp asimd evtstrm crc32 atomics fphp asimdhp asimdrdm asimddp"
X86_FLAGS = "fpu sse2 sse4_2 avx avx2 fma f16c avx512f avx512vl avx512_vnni avx512_bf16"


def write(root: Path, name: str, text: str) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def arm_processor(root: Path, number: int, part: str, *, capacity: int, khz: int) -> str:
    folder = f"sys/devices/system/cpu/cpu{number}"
    write(root, f"{folder}/cpu_capacity", f"{capacity}\n")
    write(root, f"{folder}/cpufreq/cpuinfo_max_freq", f"{khz}\n")
    for index, (level, kind, size, shared) in enumerate(
        [(1, "Data", "64K", number), (1, "Instruction", "64K", number), (2, "Unified", "512K", number)]
    ):
        cache = f"{folder}/cache/index{index}"
        for key, value in {"level": level, "type": kind, "size": size, "shared_cpu_list": shared}.items():
            write(root, f"{cache}/{key}", f"{value}\n")
    flags = f"Features\t: {ARM_FLAGS}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
    return f"processor\t: {number}\n{flags}\n"


@pytest.fixture
def big_little(tmp_path: Path) -> Path:
    small = [arm_processor(tmp_path, n, "0xd05", capacity=400, khz=1_800_000) for n in range(4)]
    big = [arm_processor(tmp_path, n, "0xd0b", capacity=1024, khz=2_400_000) for n in range(4, 6)]
    write(tmp_path, "proc/cpuinfo", "".join(small + big))
    write(tmp_path, "proc/meminfo", "MemTotal:        8000000 kB\nMemFree: 1 kB\n")
    return tmp_path


def test_the_fast_cores_of_an_arm_chip_are_the_cpu_and_the_others_stand_beside(big_little: Path) -> None:
    profile = detect_profile(big_little)
    assert profile.target == "tvm"
    assert profile.target_options["mcpu"] == "cortex-a76"
    assert profile.target_options["mattr"] == ["+neon", "+fullfp16", "+dotprod"]
    cpu = profile.cpu
    assert cpu is not None and cpu.efficiency_cores is not None
    assert (cpu.cores, cpu.clock_mhz, cpu.l1_kib, cpu.l2_kib, cpu.l3_kib) == (2, 2400, 64, 512, None)
    assert (cpu.efficiency_cores.model, cpu.efficiency_cores.cores) == ("cortex-a55", 4)
    assert profile.memory_mib == 7812
    assert profile.precisions == ("fp64", "fp32", "fp16", "int8")


@pytest.fixture
def xeon(tmp_path: Path) -> Path:
    shared = f"model name\t: Intel(R) Xeon(R) Gold\nphysical id\t: 0\nflags\t\t: {X86_FLAGS}\n"
    blocks = [f"processor\t: {n}\n{shared}core id\t\t: {n // 2}\n" for n in range(4)]
    write(tmp_path, "proc/cpuinfo", "\n".join(blocks))
    for number, shared in enumerate(["0-1", "0-1", "2-3", "2-3"]):
        cache = f"sys/devices/system/cpu/cpu{number}/cache/index3"
        for key, value in {"level": "3", "type": "Unified", "size": "32768K", "shared_cpu_list": shared}.items():
            write(tmp_path, f"{cache}/{key}", value)
    return tmp_path


def test_an_x86_machine_goes_to_openvino_with_cores_threads_and_all_of_its_level_3_cache(xeon: Path) -> None:
    profile = detect_profile(xeon)
    assert (profile.name, profile.target) == ("intel-r-xeon-r-gold", "openvino")
    assert profile.cpu is not None
    assert (profile.cpu.cores, profile.cpu.threads, profile.cpu.l3_kib) == (2, 4, 65536)
    assert "fpu" not in profile.cpu.isa and "avx512_vnni" in profile.cpu.isa
    assert profile.precisions == ("fp64", "fp32", "bf16", "int8")
    assert profile.memory_mib is None and "memory_mib" not in profile.provenance


def test_flags_one_processor_lacks_are_not_the_machines(xeon: Path) -> None:
    info = xeon / "proc/cpuinfo"
    info.write_text(info.read_text().replace(" avx512_bf16", "", 1))
    assert "avx512_bf16" not in host_isa(xeon) and "avx512f" in host_isa(xeon)


def test_a_machine_that_hides_everything_still_gives_a_valid_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    profile = detect_profile(tmp_path)
    assert profile.cpu is not None and profile.cpu.cores >= 1 and profile.cpu.isa == ()
    assert host_isa(tmp_path) == frozenset()


def test_a_machine_no_target_builds_for_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\nisa\t: rv64imafdc\n")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(ProfileError, match="riscv64"):
        detect_profile(tmp_path)


@pytest.mark.parametrize("text", ["", "\0\0", ":::\n\n:\n", "processor\n", "processor : ../../x\nflags : sse2\n"])
def test_a_garbled_cpuinfo_is_survived(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    write(tmp_path, "proc/cpuinfo", text)
    assert detect_profile(tmp_path).target == "openvino"


def test_the_profile_of_this_machine_can_be_saved_and_loaded(tmp_path: Path) -> None:
    profile = detect_profile()
    file = tmp_path / "here.yaml"
    file.write_text(to_yaml(profile))
    assert load_profile(file) == profile
    assert missing_isa(profile, host_isa()) == []
    for gpu in detect_gpu_profiles():
        file.write_text(to_yaml(gpu))
        assert load_profile(file) == gpu


def test_each_kind_of_gpu_is_one_profile_and_unknown_facts_are_left_out() -> None:
    listing = (
        "NVIDIA L4, 8.9, 23034, 72.00, 2040\n"
        "NVIDIA L4, 8.9, 23034, 72.00, 2040\n"
        "NVIDIA H100 80GB HBM3, 9.0, 81559, [N/A], 1980\n"
        "Quadro, [N/A], 1, 1, 1\n"
        "an error message\n"
    )
    l4, h100 = gpu_profiles(listing)
    assert l4.target_options == {"library": "tensorrt-rtx", "compute_capability": "8.9"}
    assert (l4.power_w, "fp8" in l4.precisions, "int4" in l4.precisions) == (72.0, True, True)
    assert h100.target_options == {"library": "tensorrt", "compute_capability": "9.0"}
    assert (h100.power_w, "int4" in h100.precisions) == (None, False)
    assert h100.accelerator is not None and h100.accelerator.memory_mib == 81559


def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detect_gpu_profiles() == []


def test_a_driver_that_fails_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "nvidia-smi"
    broken.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detect_gpu_profiles() == []


@pytest.mark.parametrize(
    ("name", "host", "missing"),
    [
        ("intel-n100", {"avx512_vnni", "avx512vl"}, []),
        ("intel-n100", {"avx512_vnni"}, ["avx_vnni"]),
        ("intel-n100", {"avx_vnni"}, []),
        ("amd-epyc-genoa", set(), ["avx512_bf16"]),
        (
            "intel-xeon-sapphire-rapids",
            {"avx512_fp16", "avx_vnni", "avx512_bf16"},
            ["amx_tile", "amx_int8", "amx_bf16"],
        ),
    ],
)
def test_flags_the_host_lacks_are_named_unless_others_serve(name: str, host: set[str], missing: list[str]) -> None:
    icelake = load_profile("intel-xeon-icelake").cpu
    assert icelake is not None
    base = frozenset(icelake.isa) - {"avx512_vnni", "avx512vl"} if name == "intel-n100" else frozenset(icelake.isa)
    assert missing_isa(load_profile(name), base | host) == missing


def test_an_arm_profile_is_never_covered_by_an_x86_host() -> None:
    x86 = frozenset(X86_FLAGS.split())
    profiles = [load_profile(name) for name in list_profiles()]
    assert all(missing_isa(profile, x86) for profile in profiles if profile.target == "tvm")


def test_a_profile_without_a_processor_lacks_nothing() -> None:
    assert missing_isa(HardwareProfile(schema=1, name="card", target="tensorrt"), frozenset()) == []
