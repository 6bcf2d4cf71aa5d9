"""Finding the loops of a disassembled library, and what they are measured against."""

import x86_loop
from x86_loop import Loop, find_loops, independent, innermost

CODE = [
    (0x10, "mov %rax,%rbx"),
    (0x14, "vmovdqa64 (%rdi),%zmm1"),
    (0x1A, "vpdpbusd %zmm1,%zmm2,%zmm3"),
    (0x20, "vpdpbusd (%rsi),%zmm2,%zmm4"),
    (0x26, "jne 14"),
    (0x28, "inc %rbx"),
    (0x2A, "jmp 40"),
    (0x2C, "jb 10"),
    (0x40, "ret"),
]


def test_loops_are_where_a_jump_goes_back() -> None:
    loops = find_loops(CODE)
    assert [(loop.start, loop.end) for loop in loops] == [(0x14, 0x26), (0x10, 0x2C)]
    assert loops[0].code == tuple(text for _, text in CODE[1:5])


def test_a_sample_belongs_to_the_innermost_loop() -> None:
    inner, outer = find_loops(CODE)
    assert innermost([outer, inner], 0x1A) == inner
    assert innermost([outer, inner], 0x28) == outer
    assert innermost([outer, inner], 0x40) is None


def test_arithmetic_that_occurs_most_is_found() -> None:
    inner, _ = find_loops(CODE)
    assert inner.arithmetic == ("vpdpbusd zmm", 2)
    assert Loop(0, 4, ("vfmadd231ps %ymm1,%ymm2,%ymm3",)).arithmetic == ("vfmadd231ps ymm", 1)
    assert Loop(0, 4, ("add %rax,%rbx", "jne 0")).arithmetic == ("", 0)


def test_peak_is_measured_without_dependences() -> None:
    lines = independent("vpdpbusd zmm")
    assert len({line.rsplit(",", 1)[1] for line in lines}) == len(lines) == x86_loop.INDEPENDENT
    assert all("%zmm31, %zmm30" in line for line in lines)
