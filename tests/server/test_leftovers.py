"""What a killed server or worker left is removed at the next start, and nothing else."""

from __future__ import annotations

from pathlib import Path

from server.attempt import clear_attempts
from server.housekeeping import clear_drafts


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


KEPT = {
    "cache/face/ac/ab/ab12",
    "cache/face/cas/ab/ab12",
    "blobs/face/parts/ab12",  # an upload that goes on
    "blobs/face/ab/ab12",
    "artifacts/face/0123/kiosk.tar",
    "reports/0123/report.html",
    "signing/server.pem",
    "jobs.sqlite",
}


def test_drafts_of_a_killed_server_are_removed(tmp_path: Path) -> None:
    write(tmp_path, *KEPT)
    left = [
        "cache/face/tmp/0a1b",
        "scratch/sign-x1/kiosk/border.onnx",
        "scratch/tmpq/fleet.yaml",
        ".signing-q/server.pem",
    ]
    write(tmp_path, *left, "reports/.draft-x/build.json", "artifacts/face/0123/.4567.tar")
    assert clear_drafts(tmp_path) == 6
    assert files(tmp_path) == KEPT
    assert clear_drafts(tmp_path) == 0


def test_attempts_of_a_killed_worker_are_removed(tmp_path: Path) -> None:
    write(
        tmp_path, "attempts/x/inputs/model.onnx", "inputs/face/.ab12.0a1b", "inputs/face/ab12", "cache/face/entries/a"
    )
    clear_attempts(tmp_path)
    assert files(tmp_path) == {"inputs/face/ab12", "cache/face/entries/a"}
