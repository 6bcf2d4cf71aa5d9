"""Finding the loop in a block of disassembled code, and what it is measured against."""

from arm_loop import Block, find_loop, independent, main_arithmetic

BODY = ("ldr\tq1, [x1], #16", "fmla\tv2.4s, v1.4s, v0.s[1]", "fmla\tv3.4s, v1.4s, v0.s[2]", "subs\tx0, x0, #1")


def test_loop_is_what_the_last_branch_repeats():
    block = Block(3, ("mov\tx0, #9", *BODY, "b.ne\t#-16"))
    assert find_loop(block) == (*BODY, "b.ne\t#-16")
    assert block.instructions == 18


def test_branch_out_of_the_block_forwards_or_none_is_no_loop():
    assert find_loop(Block(1, (*BODY, "b.ne\t#-400"))) == ()
    assert find_loop(Block(1, (*BODY, "b.ne\t#16"))) == ()
    assert find_loop(Block(1, BODY)) == ()
    assert find_loop(Block(1, ())) == ()


def test_arithmetic_that_occurs_most_is_found():
    assert main_arithmetic((*BODY, "sdot\tv4.4s, v1.16b, v2.4b[0]")) == ("fmla .4s", 2)
    assert main_arithmetic(("fmadd\ts1, s2, s3, s1",)) == ("fmadd s", 1)
    assert main_arithmetic(("add\tx0, x0, x1",)) == ("", 0)


def test_peak_is_measured_without_dependences():
    lines = independent(BODY, "fmla .4s")
    assert len({line.split(",")[0] for line in lines}) == len(lines) == 24
    assert lines[3] == "fmla\tv3.4s, v15.4s, v15.s[1]"
