"""What code for x86-64 needs of a processor is known, written beside it, and refused by name where it is missing."""

import subprocess
from dataclasses import replace

import numpy as np
import pytest
from arm_tvm_models import make
from onnx import helper

from compiler.errors import FleetError, TargetUnavailable, ToolchainFailed
from compiler.fleet.detect import host_isa
from compiler.fleet.profile import Cpu, HardwareProfile
from compiler.target import TargetPlan
from targets.arm_tvm import TARGET, Options
from targets.arm_tvm.bundle.folder import write_server
from targets.arm_tvm.bundle.processor import needed_flags, refuse_other_processor
from targets.arm_tvm.bundle.zig import run_zig
from targets.arm_tvm.run.emulate import host_arch

pytestmark = pytest.mark.needs_tvm
HASWELL = Options("x86_64-linux-gnu", "haswell")
NO_SUCH = "avx1024"


def board(*isa: str) -> HardwareProfile:
    return HardwareProfile(schema=1, name="board", target="tvm", cpu=Cpu(model="a core", cores=2, isa=isa))


def test_the_flags_are_linux_s_names_of_what_llvm_compiles_for() -> None:
    assert {"avx2", "fma", "bmi1", "abm", "sse4_2"} <= set(needed_flags(HASWELL))
    assert "avx512_vnni" in needed_flags(Options("x86_64-linux-gnu", "icelake-server"))
    assert {"amx_tile", "amx_int8"} <= set(needed_flags(Options("x86_64-linux-gnu", "sapphirerapids")))
    assert "amx_int8" not in needed_flags(Options("x86_64-linux-gnu", "sapphirerapids", ("-amx-int8",)))
    assert needed_flags(replace(HASWELL, mcpu="generic")) == ()
    assert needed_flags(Options("aarch64-linux-gnu", "cortex-a76", ("+dotprod",))) == ()


def test_a_core_with_more_than_the_profile_states_is_refused_by_name() -> None:
    icelake = Options("x86_64-linux-gnu", "icelake-server")
    with pytest.raises(FleetError, match=r"icelake-server has avx512_vnni.*, which cpu.isa does not state"):
        refuse_other_processor(["avx2", "avx512_vnni"], icelake, board("sse4_1", "avx2"))
    with pytest.raises(FleetError, match=r"has amx_int8, which cpu.isa does not state"):
        refuse_other_processor(["avx2", "amx_int8"], icelake, board("avx2"))
    refuse_other_processor(["avx2", "abm"], HASWELL, board("avx2"))
    refuse_other_processor(["avx2"], HASWELL, board())


@pytest.mark.skipif(not {"avx2", "fma", "abm"} <= host_isa(), reason="this machine has no AVX2")
def test_a_processor_without_the_instruction_sets_is_refused_before_the_model_is_loaded(tmp_path, cache_dir) -> None:
    model = make([helper.make_node("Neg", ["x"], ["y"])], {"x": (2, 2)}, {"y": (2, 2)})
    plan = TargetPlan("fp32", HASWELL, threads=1, cache_dir=cache_dir)
    artifact = TARGET.build(model, plan, board("avx", "avx2", "fma", "f16c"), workdir=tmp_path)
    x = np.arange(4, dtype=np.float32).reshape(2, 2)
    np.testing.assert_array_equal(TARGET.load(artifact).run({"x": x})["y"], -x)

    newer = replace(artifact, facts={**artifact.facts, "needs": ["avx2", NO_SUCH]})
    with pytest.raises(TargetUnavailable, match=f"this machine's processor lacks {NO_SUCH}, which"):
        TARGET.load(newer)

    with (tmp_path / "payload" / "cpu.txt").open("a") as file:
        file.write(f"{NO_SUCH}\n")
    with pytest.raises(ToolchainFailed, match=f"this processor lacks {NO_SUCH}, which the model is compiled for"):
        TARGET.load(artifact).run({"x": x})


LOGGED_CALLS = """
#include <stdarg.h>
#include <stdio.h>
long syscall(long number, ...) {
  va_list rest;
  va_start(rest, number);
  long first = va_arg(rest, long), second = va_arg(rest, long);
  va_end(rest);
  printf("%ld %#lx %ld\\n", number, first, second);
  fflush(stdout);
  return 0;
}
"""


@pytest.mark.skipif(host_arch() != "x86_64", reason="AMX is of x86-64")
def test_the_program_that_measures_kernels_asks_linux_for_amx(tmp_path, cache_dir) -> None:
    """Its sessions are processes that it starts, which have the permission from it."""
    write_server("x86_64", workdir=tmp_path / "server", cache_dir=cache_dir)
    (tmp_path / "calls.c").write_text(LOGGED_CALLS)
    target = ("-target", "x86_64-linux-gnu.2.28", "-shared", "-fPIC")
    run_zig("cc", *target, tmp_path / "calls.c", "-o", tmp_path / "calls.so", cache_dir=cache_dir)
    ended = subprocess.run(
        [tmp_path / "server" / "serve", "127.0.0.1", "1", "board"],
        env={"LD_PRELOAD": str(tmp_path / "calls.so")},
        capture_output=True,
        text=True,
    )
    arch_prctl, ask_permission, tile_data = 158, 0x1023, 18
    assert f"{arch_prctl} {ask_permission:#x} {tile_data}\n" in ended.stdout
    assert "no tracker at 127.0.0.1:1" in ended.stderr
