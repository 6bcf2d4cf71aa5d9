from __future__ import annotations

import os
from pathlib import Path

import pytest

from compiler.errors import InternalError, TargetNotFound, ToolchainFailed
from compiler.target.isolate import CONTROL, ChildLimits, run_child


def test_error_of_the_child_comes_back_in_its_own_class_with_the_place(tmp_path: Path) -> None:
    request = {"artifact": _artifact("no_such_target"), "inputs": [], "outputs": [], "repeat": 0, "instructions": False}
    with pytest.raises(TargetNotFound, match="no_such_target") as raised:
        run_child("execute", request, folder=tmp_path, limits=ChildLimits(), where="kiosk: verify")
    assert raised.value.where == "kiosk: verify"


def test_unexpected_error_of_the_child_is_our_bug_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="ValidationError") as raised:
        run_child("execute", {}, folder=tmp_path, limits=ChildLimits(), where="kiosk: verify")
    assert "last words" in raised.value.what


def test_child_over_its_time_is_killed_and_the_option_named(tmp_path: Path) -> None:
    with pytest.raises(ToolchainFailed, match=r"did not finish within 0\.05 s") as raised:
        run_child("execute", {}, folder=tmp_path, limits=ChildLimits(timeout_s=0.05), where="kiosk: verify")
    assert "--build-timeout" in raised.value.remedy


def test_module_of_the_current_folder_does_not_reach_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('taken over')\n")
    (tmp_path / "numpy.py").write_text("raise SystemExit('taken over')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InternalError, match="ValidationError"):
        run_child("execute", {}, folder=tmp_path, limits=ChildLimits(), where="kiosk: verify")


def test_memory_limit_defaults_to_what_this_machine_has() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0.8 * total < ChildLimits().memory_bytes() < total
    assert ChildLimits(memory_mib=3).memory_bytes() == 3 << 20


def test_colours_and_control_characters_leave_a_message() -> None:
    assert CONTROL.sub("", "\x1b[1;31merror\x1b[0m\tat\rline\n") == "error\tatline\n"


def _artifact(target: str) -> dict[str, object]:
    empty: dict[str, object] = {"inputs": [], "outputs": [], "files": [], "tools": {}, "facts": {}}
    return {**empty, "non_reproducible": {}, "deferred": "", "target": target, "precision": "fp32", "root": "."}
