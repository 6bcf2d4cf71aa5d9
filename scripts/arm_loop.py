"""The loop in which a bundle executes most instructions, and how near it comes to the core's peak by llvm-mca.

QEMU counts how often each of its translated blocks runs; the hottest one that multiplies and accumulates is taken, or
of it the loop it ends with. QEMU cuts long bodies at page borders: then it is a part of one (`is_whole_loop` is false).
llvm-mca simulates it with LLVM's model of the core, without cache misses. The peak is what the same model gives for
the same multiply-accumulate instruction alone, on independent registers; for a scalar one, for its vector form.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_models import BenchModel
from bench_record import Figures

from targets.arm_tvm.bundle.link import link_plugin
from targets.arm_tvm.run.emulate import emulator, host_arch, plugin_api

PLUGIN = Path(__file__).with_name("hot_blocks.c")
ITERATIONS = 200
MCA_CPU = {"cortex-a76": "neoverse-n1", "cortex-a72": "cortex-a72"}
"""LLVM schedules cortex-a76 as a Cortex-A57, with half its multiply-adds; Neoverse N1 is the same core in a server."""
FEATURES = "+neon,+fp-armv8,+fullfp16,+dotprod,+i8mm,+bf16"
"""By name: what LLVM before 15 does not know as `all` it leaves out of the code without an error."""
ARITHMETIC = re.compile(r"^(fmla|fmls|sdot|udot|usdot|smmla|ummla|smlal2?|umlal2?)\s+v\d+(\.\w+)")
SOURCE = 15
"""The last register whose halves can be taken one by one."""
SCALAR = re.compile(r"^(fmadd|fmsub)\s+s\d+")
VECTOR_OF_SCALAR = "fmla\tv0.4s, v1.4s, v2.4s"
SCALARS_PER_VECTOR = 4
BRANCH = re.compile(r"^(?:b\.\w+|cbn?z|tbn?z)\s.*#(-?\d+)$")
NEWEST_LLVM = 30


@dataclass(frozen=True)
class Block:
    """A translated block.

    Args:
        executions: How often it ran.
        code: Its instructions as assembly text.
    """

    executions: int
    code: tuple[str, ...]

    @property
    def instructions(self) -> int:
        """Instructions executed in it."""
        return self.executions * len(self.code)


def find_loop(block: Block) -> tuple[str, ...]:
    """The instructions that the block's last branch repeats, itself included; empty if it leaves the block."""
    found = BRANCH.match(block.code[-1]) if block.code else None
    if not found:
        return ()
    back = -int(found[1]) // 4
    return block.code[-1 - back :] if 0 < back < len(block.code) else ()


def main_arithmetic(code: Sequence[str]) -> tuple[str, int]:
    """The multiply-accumulate instruction that occurs most, as `fmla .4s` or the scalar `fmadd s`, and how often."""
    kinds = Counter(f"{found[1]} {found[2]}" for line in code if (found := ARITHMETIC.match(line)))
    scalars = sum(bool(SCALAR.match(line)) for line in code)
    return kinds.most_common(1)[0] if kinds else ("fmadd s" if scalars else "", scalars)


def independent(code: Sequence[str], kind: str) -> list[str]:
    """Twenty-four of that instruction, each on an accumulator of its own, with sources nothing writes."""
    opcode, arrangement = kind.split()
    line = next(line for line in code if line.startswith(f"{opcode}\t") and arrangement in line)
    operands = line.split("\t", 1)[1].split(", ")
    rest = ", ".join(re.sub(r"v\d+", f"v{SOURCE}", one) for one in operands[1:])
    return [f"{opcode}\tv{number}{arrangement}, {rest}" for number in range(25) if number != SOURCE]


def hottest_loop(folder: Path, model: BenchModel, cpu: str, cache: Path) -> Figures:
    """Figures of the hottest loop of a bundle, or why there are none."""
    try:
        tools = {name: find_tool(name) for name in ("llvm-mc", "llvm-mca")}
    except FileNotFoundError as error:
        return {"unavailable": str(error)}
    blocks = [_disassembled(block, tools["llvm-mc"]) for block in _hot_blocks(folder, model, cpu, cache)]
    working = [block for block in blocks if main_arithmetic(block.code)[1]]
    if not working:
        return {"unavailable": "none of the hottest blocks multiplies and accumulates"}
    block = working[0]
    code = find_loop(block) or block.code
    kind, count = main_arithmetic(code)
    cycles = _cycles(code, cpu, tools["llvm-mca"])
    is_scalar = kind == "fmadd s"
    alone = independent([VECTOR_OF_SCALAR], "fmla .4s") if is_scalar else independent(code, kind)
    peak_per_cycle = len(alone) / _cycles(alone, cpu, tools["llvm-mca"])
    return {
        "tool": version(tools["llvm-mca"]),
        "model_of": MCA_CPU[cpu],
        "executed_instructions": block.instructions,
        "rank_among_blocks": blocks.index(block) + 1,
        "is_whole_loop": bool(find_loop(block)),
        "length": len(code),
        "arithmetic": kind.replace(" ", ""),
        "arithmetic_share_of_loop": round(count / len(code), 3),
        "cycles_per_iteration": round(cycles, 2),
        "peak_per_cycle": round(peak_per_cycle, 2),
        "share_of_peak": round(count / (SCALARS_PER_VECTOR if is_scalar else 1) / cycles / peak_per_cycle, 3),
        "code": [line.replace("\t", " ") for line in code],
    }


def find_tool(name: str) -> str:
    """The newest installed version of one of LLVM's programs: newer models of cores are better.

    Raises:
        FileNotFoundError: None is installed.
    """
    names = [f"{name}-{number}" for number in range(NEWEST_LLVM, 10, -1)] + [name]
    found = next((path for one in names if (path := shutil.which(one))), None)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed; on Debian: apt-get install llvm")
    return found


def _hot_blocks(folder: Path, model: BenchModel, cpu: str, cache: Path) -> list[tuple[int, str]]:
    """Executions and code in hex of QEMU's hottest blocks during one start and a few inferences."""
    given = model.folder / "in.npy"
    np.save(given, model.item())
    with tempfile.TemporaryDirectory() as place:
        plugin = Path(place) / "blocks.so"
        link_plugin(PLUGIN, plugin, arch=host_arch(), plugin_api=plugin_api(), workdir=Path(place))
        command = [*emulator(cpu), "-plugin", str(plugin), "-d", "plugin", str(folder / "run"), "--repeat", "2"]
        files = (str(given), str(Path(place) / "out.npy"))
        ended = subprocess.run(
            [*command, *files], env={"TVM_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
        )
    lines = re.findall(r"^block (\d+) \d+ ([0-9a-f]+)$", ended.stderr, re.MULTILINE)
    return [(int(executions), code) for executions, code in lines]


def _disassembled(block: tuple[int, str], tool: str) -> Block:
    executions, code = block
    spelled = " ".join(f"0x{code[at : at + 2]}" for at in range(0, len(code), 2))
    command = [tool, "--disassemble", "--triple=aarch64", f"--mattr={FEATURES}"]
    text = subprocess.run(command, input=spelled, capture_output=True, text=True, check=True).stdout
    lines = [line.strip() for line in text.splitlines()]
    return Block(executions, tuple(line for line in lines if line and not line.startswith(".")))


def _cycles(code: Sequence[str], cpu: str, tool: str) -> float:
    return mca_cycles(code, tool, "--mtriple=aarch64", f"--mcpu={MCA_CPU[cpu]}", f"--mattr={FEATURES}")


def mca_cycles(code: Sequence[str], tool: str, *options: str) -> float:
    """Cycles of one iteration when it follows itself many times, by llvm-mca; options say for which core."""
    command = [tool, *options, f"--iterations={ITERATIONS}"]
    text = subprocess.run(command, input="\n".join(code) + "\n", capture_output=True, text=True, check=True).stdout
    found = re.search(r"^Total Cycles:\s+(\d+)$", text, re.MULTILINE)
    if not found:
        raise RuntimeError(f"llvm-mca gave no cycles: {text[:300]}")
    return int(found[1]) / ITERATIONS


def version(tool: str) -> str:
    """What one of LLVM's programs says of itself."""
    text = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    return " ".join(text.split()[:4])
