"""The threads that a bundle's program spreads kernels over: each task is done once, whoever is there to do it."""

import subprocess
from pathlib import Path

import pytest

from targets.arm_tvm.bundle.link import GLIBC, NATIVE
from targets.arm_tvm.bundle.zig import run_zig
from targets.arm_tvm.run.emulate import host_arch

pytestmark = pytest.mark.needs_tvm
ROUNDS = 3000
PROGRAM = r"""
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "pool.h"
void *__TVMBackendParallelLaunch; /* as a model's library has it */
#ifdef BARRIER
void *__TVMBackendParallelBarrier;
#endif
static int (*launch)(Task, void *, int);
static atomic_int done[64], widest, nested;
static int inner(int task, Group *group, void *data) { nested += group->num_task; return 0; }
static int count(int task, Group *group, void *data) {
  ++done[task];
  if (group->num_task > widest) widest = group->num_task;
  for (volatile int i = 0; i < *(int *)data; ++i) {}
  return 0;
}
static int nest(int task, Group *group, void *data) { return launch(inner, NULL, 0); }
static int refuse(int task, Group *group, void *data) { return task == group->num_task - 1 ? -1 : 0; }
int main(int argc, char **argv) {
  int threads = atoi(argv[1]), rounds = atoi(argv[2]);
  use_pool(NULL, threads);
  launch = __TVMBackendParallelLaunch;
  if (!launch) { puts("not used"); return 0; }
  for (int i = 0; i < rounds; ++i) {
    int length = i % 50 * 20, given = i % 3 ? 0 : 2;
    if (launch(count, &length, given) != 0) return 1;
    if (i % (rounds / 10) == 0) usleep(1000); /* longer than threads look for work */
  }
  int refused = launch(refuse, NULL, 0), ended = launch(nest, NULL, 0);
  int least = rounds, most = 0;
  for (int i = 0; i < widest; ++i) { if (done[i] < least) least = done[i]; if (done[i] > most) most = done[i]; }
  printf("%d %d %d %d %d %d\n", widest, most, least, refused, ended, nested);
}
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    place = tmp_path_factory.mktemp("pool")
    (place / "main.c").write_text(PROGRAM)
    for name, more in (("plain", ()), ("barrier", ("-DBARRIER",))):
        run_zig(
            "cc",
            # As the bundle's program is compiled: another way would have zig compile its C library again.
            *("-target", f"{host_arch()}-linux-gnu.{GLIBC}", "-std=c11", "-D_GNU_SOURCE", "-O2", "-g0", "-s"),
            *("-I", NATIVE, *more, place / "main.c", NATIVE / "pool.c", NATIVE / "tensor.c"),
            *("-rdynamic", "-o", place / name, "-ldl"),
            cache_dir=cache_dir,
        )
    return place


def run(programs: Path, name: str, threads: int) -> str:
    arguments = [programs / name, str(threads), str(ROUNDS)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


@pytest.mark.parametrize("threads", [2, 7], ids=["two", "more-than-cores"])
def test_every_task_is_done_once_and_a_failure_is_told(programs: Path, threads: int) -> None:
    # Every third round asks for two tasks; a launch inside of a task runs alone.
    least = ROUNDS if threads == 2 else ROUNDS - ROUNDS // 3
    assert run(programs, "plain", threads) == f"{threads} {ROUNDS} {least} -1 0 {threads}"


def test_one_thread_does_everything_in_one_task(programs: Path) -> None:
    assert run(programs, "plain", 1) == f"1 {ROUNDS} {ROUNDS} -1 0 1"


def test_a_model_whose_tasks_wait_for_each_other_keeps_tvm_s_threads(programs: Path) -> None:
    assert run(programs, "barrier", 2) == "not used"
