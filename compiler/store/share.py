"""Files with the same bytes as one file under several names."""

from __future__ import annotations

from pathlib import Path

from compiler.store.atomic import replace_by_link
from compiler.store.store import file_digest


def share_files(folder: Path) -> None:
    """Makes files of a folder that have the same bytes one file with several names, where the disk can."""
    known: dict[str, Path] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        first = known.setdefault(file_digest(path), path)
        if first is path or path.suffix == ".json":
            continue
        replace_by_link(path, first)
