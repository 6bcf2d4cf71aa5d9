"""Which CPUs the program on the device keeps to, from what a kernel would say of them."""

import os
import subprocess
from pathlib import Path

import pytest

from targets.arm_tvm.bundle.link import NATIVE
from targets.arm_tvm.bundle.zig import run_zig
from targets.arm_tvm.run.emulate import host_arch

pytestmark = pytest.mark.needs_tvm
ALLOWED = sorted(os.sched_getaffinity(0))
two_cpus = pytest.mark.skipif(len(ALLOWED) < 2, reason="one CPU leaves no choice")
PRINT = r"""
#include <stdio.h>
#include "cores.h"
int main(int argc, char **argv) {
  Cores cores = use_fast_cores(argv[argc - 1]);
  printf("%d", cores.threads);
  for (int i = 0; i < cores.num_cpus; ++i) printf(" %d", cores.cpus[i]);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory, cache_dir) -> Path:
    """A program that prints threads and CPUs; facts about the CPUs are read from `facts` beside it."""
    place = tmp_path_factory.mktemp("cores")
    (place / "print.c").write_text(PRINT)
    facts = f'-DCPU_FACTS="{place / "facts"}"'
    sources = (place / "print.c", NATIVE / "cores.c", NATIVE / "tensor.c")
    target = f"{host_arch()}-linux-gnu.2.28"
    common = ("-std=c11", "-D_GNU_SOURCE", "-I", NATIVE, facts)
    run_zig("cc", "-target", target, *common, *sources, "-o", place / "print", cache_dir=cache_dir)
    return place / "print"


def chosen(program: Path, facts: dict[int, dict[str, str]], *, threads: int, fast: int) -> list[int]:
    for cpu in ALLOWED:
        for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq", "topology/thread_siblings_list"):
            path = program.parent / "facts" / f"cpu{cpu}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if name in facts.get(cpu, {}):
                path.write_text(facts[cpu][name])
    wishes = program.parent / "cores.txt"
    wishes.write_text(f"threads {threads}\nfast_cores {fast}\n")
    ended = subprocess.run(
        [program, wishes],
        env={},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, ALLOWED),  # TVM keeps the thread that ran a model to one CPU
    )
    return [int(word) for word in ended.stdout.split()]


@two_cpus
@pytest.mark.parametrize("fact", ["cpu_capacity", "cpufreq/cpuinfo_max_freq"])
def test_faster_cpu_is_taken_whatever_its_number(program, fact):
    little, big = ALLOWED[:2]
    facts = {cpu: {fact: "400\n"} for cpu in ALLOWED} | {big: {fact: "1024\n"}}
    assert chosen(program, facts, threads=4, fast=1) == [1, big]
    facts = {cpu: {fact: "400\n"} for cpu in ALLOWED} | {little: {fact: "1024\n"}}
    assert chosen(program, facts, threads=4, fast=1) == [1, little]


@two_cpus
def test_capacity_counts_more_than_the_clock(program):
    first, second = ALLOWED[:2]
    facts = {cpu: {"cpu_capacity": "400", "cpufreq/cpuinfo_max_freq": "2400000"} for cpu in ALLOWED}
    facts[second] = {"cpu_capacity": "1024", "cpufreq/cpuinfo_max_freq": "1800000"}
    assert chosen(program, facts, threads=1, fast=2) == [1, second, first]


@two_cpus
def test_second_thread_of_a_core_comes_last(program):
    first, second = ALLOWED[:2]
    facts = {cpu: {"topology/thread_siblings_list": f"{second},{first}"} for cpu in (first, second)}
    assert chosen(program, facts, threads=1, fast=1) == [1, second]


def test_cpus_of_which_nothing_is_known_are_taken_in_order(program):
    count = len(ALLOWED)
    assert chosen(program, {}, threads=count, fast=count + 5) == [count, *ALLOWED]
