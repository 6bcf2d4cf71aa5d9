"""What the bench of a decoder's speed makes of the times it took."""

import os
from pathlib import Path

import pytest
from bench_language_speed import BASE, PROMPTS, Entrant, bars_of, measure, row_of
from language_programs import TOKENS


def rounds(ours, base):
    """Of rounds in which a token took each of both so many seconds of the clock, and half of them of the processor."""

    def times(token_s):
        return {
            size: {
                part: (count * token_s, count * token_s / 2) for part, count in (("prompt", size), ("answer", TOKENS))
            }
            for size in PROMPTS
        }

    return [{"ours": times(left), BASE: times(right)} for left, right in zip(ours, base, strict=True)]


def test_a_ratio_is_of_the_same_round_and_above_one_for_who_is_faster():
    row = row_of(Entrant("ours", "ours", Path("absent.onnx")), rounds([0.01, 0.02, 0.01], [0.02, 0.03, 0.01]))
    figures = row["answer behind 64"]
    assert figures["tokens/s by round"] == [100, 50, 100] and figures["tokens/s of processor time, median"] == 200
    assert figures[f"speed to {BASE} by round"] == [2, 1.5, 1] and figures[f"speed to {BASE}, median"] == 1.5
    absolute, relative = bars_of(row)
    assert absolute["found"] == 5 and absolute["is_met"] and absolute["is_stated"]
    assert relative["found"] == pytest.approx(1 / 1.5, abs=1e-3) and not relative["is_stated"]


def test_a_program_that_ends_is_named_with_its_exit_code(tmp_path, capfd):
    core = min(os.sched_getaffinity(0))
    with pytest.raises(SystemExit, match="broken ended with exit code 1"):
        measure([Entrant("broken", "no such kind", tmp_path)], rounds=1, core=core)
    assert "KeyError: 'no such kind'" in capfd.readouterr().err
