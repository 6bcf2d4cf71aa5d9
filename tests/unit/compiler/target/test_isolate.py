from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from compiler.errors import InternalError, TargetNotFound, ToolchainFailed
from compiler.fleet.machine import available_memory_bytes
from compiler.model.forks import ForkServer
from compiler.target.isolate import CONTROL, ChildLimits, fork_server, run_child
from compiler.target.testing import install_plugin
from tests.control_group import memory_group, start_in

MIB = 1 << 20


@pytest.fixture(params=["forked", "sharing nothing"])
def forks(request: pytest.FixtureRequest) -> ForkServer | None:
    return fork_server() if request.param == "forked" else None


def test_error_of_the_child_comes_back_in_its_own_class_with_the_place(
    tmp_path: Path, forks: ForkServer | None
) -> None:
    request = {"artifact": _artifact("no_such_target"), "inputs": [], "outputs": [], "repeat": 0, "instructions": False}
    with pytest.raises(TargetNotFound, match="no_such_target") as raised:
        run_child("execute", request, folder=tmp_path, child_limits=ChildLimits(), where="kiosk: verify", forks=forks)
    assert raised.value.where == "kiosk: verify"


def test_unexpected_error_of_the_child_is_our_bug_with_the_end_of_its_log(
    tmp_path: Path, forks: ForkServer | None
) -> None:
    with pytest.raises(InternalError, match="ValidationError") as raised:
        run_child("execute", {}, folder=tmp_path, child_limits=ChildLimits(), where="kiosk: verify", forks=forks)
    assert "last lines of its log" in raised.value.what


def test_child_over_its_time_is_killed_and_the_option_named(
    tmp_path: Path, forks: ForkServer | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plugin(tmp_path, "sleeper", "import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    request = {"artifact": _artifact("sleeper"), "inputs": "none.npz"}
    with pytest.raises(ToolchainFailed, match=r"did not finish within 2 s") as raised:
        run_child("footprint", request, folder=tmp_path, child_limits=ChildLimits(timeout_s=2), where="x", forks=forks)
    assert "--build-timeout" in raised.value.remedy


def test_module_of_the_current_folder_does_not_reach_the_child(
    tmp_path: Path, forks: ForkServer | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('taken over')\n")
    (tmp_path / "numpy.py").write_text("raise SystemExit('taken over')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InternalError, match="ValidationError"):
        run_child("execute", {}, folder=tmp_path, child_limits=ChildLimits(), where="kiosk: verify", forks=forks)


def test_memory_limit_defaults_to_what_this_machine_has() -> None:
    total = available_memory_bytes()
    assert 0.7 * total < ChildLimits().memory_bytes() < 0.9 * total
    assert ChildLimits(memory_mib=3).memory_bytes() == 3 << 20


def test_memory_limit_defaults_to_the_containers_less_what_the_parent_holds() -> None:
    code = "from compiler.target.isolate import ChildLimits; print(ChildLimits().memory_bytes())"
    with memory_group(600 * MIB) as group:
        process = start_in(group, [sys.executable, "-c", code])
        limit = int(process.communicate(timeout=60)[0])
    assert 100 * MIB < limit < 0.9 * 600 * MIB


def test_a_child_that_eats_its_containers_memory_dies_alone(tmp_path: Path) -> None:
    """The parent tells what happened: neither our limit nor the kernel took it along."""
    code = f"""
from pathlib import Path
from compiler.errors import ToolchainFailed
from compiler.target.isolate import ChildLimits, run_child
try:
    request = {{"artifact": {_artifact("eater")!r}, "inputs": "none.npz"}}
    run_child("footprint", request, folder=Path({str(tmp_path)!r}), child_limits=ChildLimits(), where="x")
except ToolchainFailed as error:
    print(error)
"""
    site = tmp_path / "site"
    site.mkdir()
    install_plugin(site, "eater", "eaten = []\nwhile True:\n    eaten.append(bytearray(b'x') * (8 << 20))\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    with memory_group(600 * MIB) as group:
        process = start_in(group, [sys.executable, "-c", code], env=environment)
        said, trouble = process.communicate(timeout=120)
    assert process.returncode == 0, trouble
    assert "MiB of memory, more than its limit of" in said or "signal SIGKILL" in said


def test_colours_and_control_characters_leave_a_message() -> None:
    assert CONTROL.sub("", "\x1b[1;31merror\x1b[0m\tat\rline\n") == "error\tatline\n"


def _artifact(target: str) -> dict[str, object]:
    empty: dict[str, object] = {"inputs": [], "outputs": [], "files": [], "tools": {}, "facts": {}}
    return {**empty, "non_reproducible": {}, "deferred": "", "target": target, "precision": "fp32", "root": "."}
