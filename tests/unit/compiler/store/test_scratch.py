"""Temporary folders go with their owner: at once where it ends, at the next start where it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import compiler
from compiler.store.scratch import PREFIX, remove_abandoned, scratch_folder

OWNER = """
import sys, time
from compiler.store.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "half").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of this test alone."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_a_folder_of_a_living_process_stays_and_one_of_a_killed_process_goes(temporary: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(compiler.__file__).parents[1])}
    command = [sys.executable, "-c", OWNER]
    owners = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
        for _ in range(2)
    ]
    first, second = (Path(owner.stdout.readline().strip()) for owner in owners if owner.stdout)
    try:
        assert remove_abandoned() == 0
        assert (first / "half").exists() and (second / "half").exists()
        owners[0].send_signal(signal.SIGKILL)
        owners[0].wait(30)
        assert first.exists()
        assert remove_abandoned() == 1
        assert not first.exists() and (second / "half").exists()
    finally:
        for owner in owners:
            owner.kill()
            owner.communicate()
    assert remove_abandoned() == 1 and list(temporary.iterdir()) == []


def test_a_folder_is_gone_after_its_block_and_is_never_taken_for_abandoned_inside(temporary: Path) -> None:
    with scratch_folder() as folder, scratch_folder() as other:
        assert folder != other and folder.is_dir() and folder.parent == temporary
        assert remove_abandoned() == 0
    assert list(temporary.iterdir()) == []


def test_what_is_not_ours_is_left(temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (temporary / "fleetc-something-else").mkdir()
    (temporary / f"{PREFIX}1-link").symlink_to(elsewhere)
    (temporary / f"{PREFIX}1-file").write_text("a file")
    assert remove_abandoned() == 0
    assert len(list(temporary.iterdir())) == 3 and elsewhere.is_dir()


def test_no_module_of_the_compiler_makes_temporary_folders_of_its_own() -> None:
    """They would stay for ever where the process is killed."""
    package = Path(compiler.__file__).parent
    makers = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(call in path.read_text(encoding="utf-8") for call in ("TemporaryDirectory", "mkdtemp"))
    ]
    assert makers == ["store/scratch.py"]
