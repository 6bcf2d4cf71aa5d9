"""The loops in which a bundle for this x86-64 machine spends its time, and how near they come to peak by llvm-mca.

    scripts/x86_loop.py BUNDLE INPUT.npy

perf samples where the program is; a sample belongs to the innermost loop of the disassembly around it. llvm-mca
simulates a loop with LLVM's model of an Ice Lake server, without cache misses: what remains between its bound and what
is measured is memory, and what runs outside of loops. The peak is what the same model gives for the multiply-accumulate
alone, on independent registers.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arm_loop import find_tool, mca_cycles, version
from bench_record import Figures

CPU = "icelake-server"
"""The newest server whose ports LLVM knows; Sapphire Rapids has the same two for 512-bit multiply-accumulates."""
SAMPLES_HZ = 1999
SHOWN = 4
ARITHMETIC = re.compile(r"^(vpdpbusds?|vdpbf16ps|vfmadd\d+ps|vpmaddubsw|vpdpwssds?)\s.*%([xyz]mm)\d+$")
JUMP = re.compile(r"^j\w+\s+([0-9a-f]+)")
INDEPENDENT = 24


@dataclass(frozen=True)
class Loop:
    """A loop of the disassembly, from the instruction that its last jump goes back to, up to that jump.

    Args:
        start: Address of its first instruction.
        end: Address of the jump.
        code: Its instructions.
    """

    start: int
    end: int
    code: tuple[str, ...]

    @property
    def arithmetic(self) -> tuple[str, int]:
        """The multiply-accumulate that occurs most, as `vpdpbusd zmm`, and how often; empty and 0 without any."""
        kinds = Counter(f"{found[1]} {found[2]}" for line in self.code if (found := ARITHMETIC.match(line)))
        return kinds.most_common(1)[0] if kinds else ("", 0)


def hot_loops(bundle: Path, given: Path, count: int) -> Figures:
    """Figures of the loops that take most time, or why there are none.

    Args:
        bundle: The artifact's folder.
        given: A .npy file with its input.
        count: Inferences that are sampled.
    """
    try:
        tool, perf, objdump = find_tool("llvm-mca"), find_tool("perf"), find_tool("objdump")
    except FileNotFoundError as error:
        return {"unavailable": str(error)}
    library = bundle / "payload" / "model.so"
    samples, others = _sample(perf, bundle, given, count)
    loops = find_loops(_disassemble(objdump, library))
    where: Counter[Loop | None] = Counter()
    for address, times in samples.items():
        where[innermost(loops, address)] += times
    total = sum(where.values()) + others
    rows = [_row(loop, times / total, tool) for loop, times in where.most_common() if loop is not None]
    working = [row for row in rows if row["arithmetic"]]
    inside = sum(row["share_of_samples"] for row in working)
    bound = sum(row["share_of_samples"] * row["share_of_peak"] for row in working)
    return {
        "tool": version(tool),
        "model_of": CPU,
        "samples": total,
        "in_model": round(1 - others / total, 3),
        "in_loops_that_multiply": round(inside, 3),
        "share_of_peak_there": round(bound / inside, 3) if inside else None,
        "hottest": [
            row if not number else {key: row[key] for key in row if key != "code"}
            for number, row in enumerate(working[:SHOWN])
        ],
    }


def find_loops(code: Sequence[tuple[int, str]]) -> list[Loop]:
    """All loops: where a jump goes back, in the order of their addresses."""
    places = {address: number for number, (address, _) in enumerate(code)}
    loops = []
    for number, (address, text) in enumerate(code):
        found = JUMP.match(text)
        first = places.get(int(found[1], 16), number + 1) if found else number + 1
        if first <= number:
            loops.append(Loop(code[first][0], address, tuple(line for _, line in code[first : number + 1])))
    return loops


def innermost(loops: Sequence[Loop], address: int) -> Loop | None:
    """The shortest loop around an address."""
    around = [loop for loop in loops if loop.start <= address <= loop.end]
    return min(around, key=lambda loop: len(loop.code), default=None)


def _row(loop: Loop, share: float, tool: str) -> Figures:
    kind, count = loop.arithmetic
    row: Figures = {"share_of_samples": round(share, 3), "length": len(loop.code), "arithmetic": kind}
    if not count:
        return row
    cycles, alone = _cycles(loop.code, tool), independent(kind)
    peak = len(alone) / _cycles(alone, tool)
    return row | {
        "arithmetic_share_of_loop": round(count / len(loop.code), 3),
        "cycles_per_iteration": round(cycles, 2),
        "share_of_peak": round(count / cycles / peak, 3),
        "code": list(loop.code),
    }


def independent(kind: str) -> list[str]:
    """Many of an instruction, each on an accumulator of its own, with sources nothing writes."""
    name, register = kind.split()
    return [f"{name} %{register}31, %{register}30, %{register}{number}" for number in range(INDEPENDENT)]


def _sample(perf: str, bundle: Path, given: Path, count: int) -> tuple[Counter[int], int]:
    """Address in the model's library → samples there; and samples elsewhere."""
    library = (bundle / "payload" / "model.so").resolve()
    with tempfile.TemporaryDirectory() as place:
        data = str(Path(place) / "perf.data")
        program = [str(bundle / "run"), "--repeat", str(count), str(given), "/dev/null"]
        record = [perf, "record", "-q", "-e", "cpu-clock:u", "-F", str(SAMPLES_HZ), "-o", data, *program]
        environment = {"TVM_NUM_THREADS": "1"}
        subprocess.run(record, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
        script = [perf, "script", "-i", data, "--show-mmap-events", "-F", "comm,ip,event"]
        text = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    mapped = [
        (int(start, 16), int(size, 16), int(offset, 16))
        for start, size, offset, path in re.findall(
            r"\[(0x[0-9a-f]+)\((0x[0-9a-f]+)\) @ (0x[0-9a-f]+|0) .*\]: r-xp (\S+)", text
        )
        if Path(path).resolve() == library
    ]
    segments = _segments(library)
    found: Counter[int] = Counter()
    others = 0
    for ip in re.findall(r"cpu-clock\S*:\s+([0-9a-f]+)", text):
        inside = [int(ip, 16) - start + offset for start, size, offset in mapped if 0 <= int(ip, 16) - start < size]
        if inside:
            found[_address(segments, inside[0])] += 1
        else:
            others += 1
    return found, others


def _segments(library: Path) -> list[tuple[int, int]]:
    """Offset in the file and address of each loaded segment, in order."""
    text = subprocess.run(["readelf", "-lW", str(library)], capture_output=True, text=True, check=True).stdout
    return sorted(
        (int(offset, 16), int(address, 16)) for offset, address in re.findall(r"LOAD\s+(0x\w+)\s+(0x\w+)", text)
    )


def _address(segments: Sequence[tuple[int, int]], offset: int) -> int:
    start, address = segments[bisect_right(segments, (offset, sys.maxsize)) - 1]
    return offset - start + address


def _disassemble(tool: str, library: Path) -> list[tuple[int, str]]:
    """Addresses and instructions."""
    command = [tool, "-d", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^\s*([0-9a-f]+):\t([^#<\n]+)", text, re.MULTILINE)
    return [(int(address, 16), re.sub(r"\s+", " ", line).strip()) for address, line in lines]


def _cycles(code: Sequence[str], tool: str) -> float:
    return mca_cycles([JUMP.sub("jne 0", line) for line in code], tool, "--mtriple=x86_64", f"--mcpu={CPU}")


if __name__ == "__main__":
    print(json.dumps(hot_loops(Path(sys.argv[1]), Path(sys.argv[2]), 300), indent=1))
