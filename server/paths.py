"""Names that strangers give to files: what is taken as a path below a folder, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from compiler.errors import FleetError, combine

MAX_PART_BYTES = 255
"""Longest name of one file or folder that Linux file systems take."""


def path_problem(name: str) -> str:
    """What is wrong with a relative path as a stranger wrote it; empty if nothing is."""
    if not name or not name.isprintable() or "\\" in name:
        return "has characters that are no part of a path"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.as_posix() != name or not path.parts:
        return "must be a plain path below the folder of the fleet file"
    if any(len(part.encode("utf-8", "surrogatepass")) > MAX_PART_BYTES for part in path.parts):
        return f"has a name of more than {MAX_PART_BYTES} bytes"
    return ""


def refuse_paths(names: Iterable[str], *, fleet: str) -> None:
    """Refuses the files of a job where their paths are none, or stand in each other's way.

    Raises:
        FleetError: Every problem.
    """
    names = set(names)
    problems = [FleetError(f"{path_problem(name)}", where=repr(name[:100])) for name in names if path_problem(name)]
    folders = {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}
    clashes = sorted((folders & names) | ({fleet} & (names | folders)))
    problems += [FleetError("is a file and a folder, or the fleet file itself", where=repr(name)) for name in clashes]
    if problems:
        raise combine(problems[:20])


def below(folder: Path, name: str) -> Path:
    """The path of a name below a folder; `refuse_paths` has seen the name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
