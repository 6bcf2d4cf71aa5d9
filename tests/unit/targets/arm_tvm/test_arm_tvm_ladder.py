"""The C program's ladder and its look at memory, without a model: functions of the time and of the files they read."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from targets.arm_tvm.bundle.link import NATIVE
from targets.arm_tvm.bundle.zig import run_zig
from targets.arm_tvm.run.emulate import host_arch

pytestmark = pytest.mark.needs_tvm
DRIVER = r"""
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "ladder.h"
#include "memory.h"
int main(int argc, char **argv) {
  Ladder ladder;
  char verb[16];
  double a, b, c, d;
  (void)argv;
  if (argc > 1) return printf("%lld", free_bytes()), 0;
  while (scanf("%15s %lf %lf %lf %lf", verb, &a, &b, &c, &d) == 5) {
    Head head = {.arrival_us = b, .deadline_us = c, .waiting = (int)d, .size = 1};
    if (strcmp(verb, "init") == 0) init_ladder(&ladder, (int)a);
    if (strcmp(verb, "back") == 0) put_back(&ladder, (int)a, b);
    if (strcmp(verb, "out") == 0) take_out(&ladder, (int)a, b, c), printf("%.0f\n", ladder.rungs[(int)a].retry_us - c);
    if (strcmp(verb, "ran") == 0) observe_run(&ladder, (int)a, b, c);
    if (strcmp(verb, "late") == 0) printf("%d\n", is_too_late(&ladder, a, 1, b));
    if (strcmp(verb, "choose") == 0) printf("%d\n", choose_rung(&ladder, &head, a));
    if (strcmp(verb, "predict") == 0) printf("%.0f\n", predict_us(&ladder, (int)a, b));
  }
}
"""
MS, S = 1e3, 1e6


@dataclass
class Script:
    """Calls of the ladder's functions, one a line, and what each that gives something gave."""

    program: Path
    lines: list[str]

    def add(self, verb: str, *values: float) -> None:
        self.lines.append(" ".join([verb, *map(repr, map(float, values)), *["0"] * (4 - len(values))]))

    def choose(self, now_us: float, time_us: float, waiting: int = 1) -> None:
        self.add("choose", now_us, now_us, now_us + time_us, waiting)

    def run(self) -> list[int]:
        text = "\n".join(self.lines).replace("inf", "INF")
        ended = subprocess.run([self.program], input=text, capture_output=True, text=True, timeout=30, check=True)
        return [int(line) for line in ended.stdout.split()]


@pytest.fixture(scope="module")
def program(tmp_path_factory, cache_dir) -> Path:
    place = tmp_path_factory.mktemp("ladder")
    (place / "driver.c").write_text(DRIVER)
    root = f'-DMEMORY_ROOT="{place / "root"}"'
    sources = (place / "driver.c", NATIVE / "ladder.c", NATIVE / "memory.c")
    strict = ("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-I", NATIVE, root)
    run_zig(
        "cc",
        *("-target", f"{host_arch()}-linux-gnu.2.28", *strict, *sources, "-o", place / "driver", "-lm"),
        cache_dir=cache_dir,
    )
    return place / "driver"


@pytest.fixture
def script(program) -> Script:
    """Three builds that take 40, 10 and 1 ms, all loaded."""
    script = Script(program, [])
    script.add("init", 3)
    for place, base_ms in enumerate((40, 10, 1)):
        script.add("back", place, base_ms * MS)
    return script


def test_the_most_accurate_build_that_is_in_time_answers(script):
    cases = [(np.inf, 1, 0), (60 * MS, 1, 0), (20 * MS, 1, 1), (20 * MS, 2, 2), (2 * MS, 1, 2), (0.1 * MS, 1, 2)]
    for place, (time_us, waiting, _) in enumerate(cases):
        script.choose((1 + place) * S, time_us, waiting)
    assert script.run() == [rung for _, _, rung in cases]


def test_it_steps_down_at_once_and_climbs_after_the_dwell_time(script):
    for now_us, time_us in ((0, np.inf), (1 * S, 5 * MS), (1.1 * S, np.inf), (1.16 * S, np.inf)):
        script.choose(now_us, time_us)
    assert script.run() == [0, 2, 2, 0]


def test_it_climbs_to_what_was_needed_within_the_dwell_time(script):
    for now_us, time_us in ((1 * S, 5 * MS), (1.1 * S, 20 * MS), (1.2 * S, np.inf), (1.3 * S, np.inf)):
        script.choose(now_us, time_us)
    assert script.run() == [2, 2, 1, 0]


def test_climbs_are_as_many_as_the_account_has(script):
    for step in range(200):
        script.choose(step * 0.2 * S, 5 * MS if step % 2 else np.inf)
    found = script.run()
    climbs = sum(later < earlier for earlier, later in pairwise(found))
    assert climbs <= 6 + 40 / 2.5


def test_slow_runs_are_believed_after_three_and_forgotten_after_ten_seconds(script):
    for step, took_ms in enumerate((80, 80, 80)):
        script.add("predict", 0, step * MS)
        script.add("ran", 0, took_ms * MS, step * MS)
    script.add("predict", 0, 1 * S)
    script.add("predict", 1, 1 * S)  # a throttled machine slows them all
    script.add("predict", 0, 11 * S)
    assert script.run() == [40_000, 40_000, 40_000, 80_000, 20_000, 40_000]


def test_one_hiccup_among_many_runs_changes_no_prediction(script):
    for step in range(15):
        script.add("ran", 0, 40 * MS, step * MS)
    script.add("ran", 0, 4 * S, 20 * MS)
    script.add("predict", 0, 21 * MS)
    assert script.run() == [40_000]


def test_nothing_is_too_late_by_predictions_that_slow_runs_made(script):
    for step in range(16):
        script.add("ran", 2, 50 * MS, step * MS)
    for time_ms in (0.5, 2):
        script.add("late", 20 * MS + time_ms * MS, 20 * MS)
    assert script.run() == [1, 0]


def test_build_that_fails_again_waits_twice_as_long_until_it_is_forgiven(script):
    for now_s in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 400):
        script.add("out", 0, 0, now_s * S)
    script.add("out", 1, 30 * S, 0)
    assert [found / S for found in script.run()] == [0, 0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60, 0, 30]


def test_build_that_is_out_is_never_chosen_and_none_left_is_said(script):
    draw, out, expected = np.random.default_rng(3), set(), []
    for step in range(300):
        place, now_us = int(draw.integers(3)), step * 0.3 * S
        if place in out:
            script.add("back", place, (40, 10, 1)[place] * MS)
            out.remove(place)
        else:
            script.add("out", place, 0, now_us)
            out.add(place)
        script.choose(now_us, float(draw.choice([np.inf, 20 * MS, 2 * MS])))
        expected.append(frozenset(out))
    printed = iter(script.run())
    before: frozenset[int] = frozenset()
    for gone in expected:
        if len(gone) > len(before):
            next(printed)  # how long it stays away
        chosen = next(printed)
        assert chosen == -1 if len(gone) == 3 else chosen in {0, 1, 2} - gone
        before = gone


def free_bytes(program: Path, files: dict[str, str]) -> int:
    root = program.parent / "root"
    subprocess.run(["rm", "-rf", root], check=True)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return int(subprocess.run([program, "free"], capture_output=True, text=True, timeout=30, check=True).stdout)


MEMINFO = {"proc/meminfo": "MemTotal:  900 kB\nMemAvailable:     500 kB\n"}
V2, V1 = "sys/fs/cgroup/a/b/memory.", "sys/fs/cgroup/memory/a/memory."
GROUPS = {
    "none": ({}, 500 << 10),
    "version 2": (
        {"proc/self/cgroup": "0::/a/b\n", V2 + "max": "1000", V2 + "current": "700",
         V2 + "stat": "x 1\ninactive_file 100\n"},
        400,
    ),
    "a group above": (
        {"proc/self/cgroup": "0::/a/b\n", V2 + "max": "max", V2 + "current": "7", "sys/fs/cgroup/a/memory.max": "90",
         "sys/fs/cgroup/a/memory.current": "40"},
        50,
    ),
    "no limit": ({"proc/self/cgroup": "0::/a/b\n", V2 + "max": "max", V2 + "current": "700"}, 500 << 10),
    "more used than allowed": ({"proc/self/cgroup": "0::/a/b\n", V2 + "max": "10", V2 + "current": "700"}, 0),
    "version 1": (
        {"proc/self/cgroup": "3:cpu:/\n2:pids,memory:/a\n0::/\n", V1 + "limit_in_bytes": "1000",
         V1 + "usage_in_bytes": "800", V1 + "stat": "inactive_file 5\ntotal_inactive_file 300\n"},
        500,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GROUPS)
def test_free_memory_is_the_least_of_the_machine_and_its_control_groups(program, case):
    files, expected = GROUPS[case]
    assert free_bytes(program, {**MEMINFO, **files}) == expected
