"""Files that are there whole or not at all, whatever ends the process or the power."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

CHUNK = 1 << 20


def write_json(path: Path, value: Any) -> None:
    """Writes a file beside its place, forces it to the disk, and renames it."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none that can be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def point(link: Path, target: str) -> None:
    """Lets a link point elsewhere, in one step."""
    draft = link.with_name(f".{link.name}.draft")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    draft.symlink_to(target)
    draft.replace(link)
    sync(link.parent)


def remove(folder: Path) -> None:
    """Removes a folder; one that is half removed has no name that anybody looks at."""
    if not folder.exists():
        return
    grave = folder.with_name(f".removed.{folder.name}")
    shutil.rmtree(grave, ignore_errors=True)
    folder.replace(grave)
    shutil.rmtree(grave, ignore_errors=True)


def sync(path: Path) -> None:
    """Forces a file, or the names in a folder, to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_tree(folder: Path) -> None:
    """Forces everything below a folder to the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            sync(Path(place) / name)
        sync(Path(place))


def sha256(path: Path) -> str:
    """The digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
