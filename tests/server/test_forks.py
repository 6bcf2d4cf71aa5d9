"""Builds are forked from a process that has imported what they need: it may be killed, and its code may change."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from compiler.model.forks import ForkServer
from server.builds import fork_server
from server.process import BuildProcess
from tests.server.conftest import wait_until

THREADS = """import os, sys
from server.builds import prepare
prepare()
print(len(os.listdir("/proc/self/task")), {"onnxruntime", "openvino", "tvm", "torch", "matplotlib"} & set(sys.modules))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A module that every process of Python imports at its start, as an installed package would be."""
    path = tmp_path_factory.mktemp("site") / "sitecustomize.py"
    path.write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(path.parent), *sys.path]))
        yield path


@pytest.fixture(scope="module")
def forks(source: Path) -> Iterator[ForkServer]:
    server = fork_server()
    yield server
    server.close()


def finished(process: BuildProcess) -> int:
    wait_until(lambda: process.exit_code() is not None or process.lines(wait_s=0) == ["never"])
    code = process.exit_code()
    process.close()
    assert code is not None
    return code


def version(forks: ForkServer, folder: Path) -> str:
    """A build that only says which version it is of, with a variable that this process does not have."""
    folder.mkdir()
    assert finished(BuildProcess(forks, ["--version"], folder, {"FLEETC_CACHE": "elsewhere"})) == 0
    return (folder / "out.json").read_text()


def test_nothing_that_starts_threads_is_imported_before_a_fork() -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # BLAS ends its threads around a fork by itself
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["1", "set()"]


def test_a_killed_fork_server_takes_its_builds_along_and_the_next_build_has_another(
    forks: ForkServer, tmp_path: Path
) -> None:
    assert version(forks, tmp_path / "first").startswith("fleetc, version")
    process = BuildProcess(forks, ["server", "--data", "data", "--port", "0", "--slots", "0"], tmp_path, {})
    build = psutil.Process(process.pid)
    wait_until(lambda: (tmp_path / "out.json").read_text() != "")
    server = build.parent()
    assert server is not None
    server.kill()
    assert finished(process) == -signal.SIGKILL
    wait_until(lambda: not build.is_running())
    assert version(forks, tmp_path / "second").startswith("fleetc, version")


def test_an_upgrade_under_a_worker_is_noticed_and_what_runs_goes_on(
    forks: ForkServer, source: Path, tmp_path: Path
) -> None:
    process = BuildProcess(forks, ["server", "--data", "data", "--port", "0", "--slots", "0"], tmp_path, {})
    before = psutil.Process(process.pid).parent()
    source.write_text("UPGRADED = True\n")
    assert version(forks, tmp_path / "after").startswith("fleetc, version")
    assert process.exit_code() is None and before is not None and before.is_running()
    process.end()
    wait_until(lambda: not before.is_running() or before.status() == psutil.STATUS_ZOMBIE)
