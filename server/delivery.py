"""A finished job as `fleetc build` would have left it: one folder for all devices, the report, what changed.

The report and the difference are made by the command in a process of its own, which needs the plotting library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from compiler.errors import ArtifactError
from compiler.store.atomic import write_atomic
from server.artifacts import BUILD, merge_builds, unpack
from server.schema import JobView

REPORT_S = 120.0
"""Longest time for a report: a hundred devices take ten seconds."""


def assemble(view: JobView, artifacts: Path, folder: Path) -> Path | None:
    """The output folder of a finished job; None where no device left anything.

    Args:
        view: The job.
        artifacts: Folder of its artifacts.
        folder: Where output folders of jobs are kept.
    """
    final = folder / view.id
    if final.is_dir():
        return final
    folder.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder, prefix=".draft-"))
    try:
        builds = [
            unpack(tar, one.name, draft).build
            for one in view.devices
            if (tar := artifacts / f"{one.name}.tar").is_file()
        ]
        text = merge_builds(builds, order=[one.name for one in view.devices])
        if not text:
            return None
        write_atomic(draft / BUILD, text.encode())
        _run("report", str(draft))
        _put(draft, final)
        return final
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _put(draft: Path, final: Path) -> None:
    try:
        draft.rename(final)
    except OSError:  # another request has just made the same
        if not final.is_dir():
            raise


def difference(first: Path, second: Path) -> str:
    """What changed from one output folder to another, in the words of `fleetc diff`."""
    return _run("diff", str(first), str(second))


def _run(*arguments: str) -> str:
    command = [sys.executable, "-P", "-c", "from compiler.cli import main; main()", "-q", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLEETC_")}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=REPORT_S,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise ArtifactError(f"it could not be read: {done.stderr.strip()[:500]}", where=arguments[0])
    return done.stdout
