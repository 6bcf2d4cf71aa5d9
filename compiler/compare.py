"""What changed between two builds or two artifacts, read from their manifests alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import ArtifactError
from compiler.manifest import MANIFEST, MEASUREMENTS, read_manifest
from compiler.store import folder_digests

SECTIONS = ("inputs", "plan", "pruning", "border", "passes", "artifact", "files", "verdict")


@dataclass(frozen=True)
class Change:
    """One value that differs.

    Args:
        device: Device class it belongs to.
        section: Section of the manifest: what was given (`inputs`), decided (`plan`), made or found.
        key: Dotted path inside the section.
        before: Value in the first build; None if it is not there.
        after: Value in the second.
    """

    device: str
    section: str
    key: str
    before: Any
    after: Any


def compare_builds(first: Path, second: Path) -> tuple[Change, ...]:
    """Every difference between two `dist` folders, or two device folders, in the order cause before effect.

    Raises:
        ArtifactError: A folder holds no manifest.
    """
    left, right = _manifests(first), _manifests(second)
    if set(left) == {""} or set(right) == {""}:
        if len(left) != 1 or len(right) != 1:
            raise ArtifactError("one is a device's folder, the other a whole build", where=f"{first}, {second}")
        left, right = ({"": next(iter(side.values()))} for side in (left, right))
    return tuple(
        change for name in sorted({*left, *right}) for change in _device(name, left.get(name), right.get(name))
    )


def compare_files(first: Path, second: Path) -> tuple[str, ...]:
    """Files of two device folders whose bytes differ though nothing says they may.

    What may differ is `measurements.json`, and what one of the two manifests names as unrepeatable.
    """
    left, right = folder_digests(first), folder_digests(second)
    free = {MEASUREMENTS, *_unrepeatable(first), *_unrepeatable(second)}
    return tuple(sorted(name for name in {*left, *right} if name not in free and left.get(name) != right.get(name)))


def _unrepeatable(folder: Path) -> list[str]:
    return list(read_manifest(folder)["artifact"]["unrepeatable"])


def _manifests(folder: Path) -> dict[str, Mapping[str, Any]]:
    paths = (
        {"": folder / MANIFEST}
        if (folder / MANIFEST).is_file()
        else {p.parent.name: p for p in folder.glob(f"[!.]*/{MANIFEST}")}
    )
    if not paths:
        raise ArtifactError(
            "no artifact is here", where=str(folder), remedy="Name a dist folder, or one device's folder in it."
        )
    return {name: read_manifest(path.parent) for name, path in paths.items()}


def _device(name: str, left: Mapping[str, Any] | None, right: Mapping[str, Any] | None) -> Iterator[Change]:
    if left is None or right is None:
        yield Change(name, "build", "device", None if left is None else "built", None if right is None else "built")
        return
    for section in SECTIONS:
        before, after = dict(_leaves(left.get(section))), dict(_leaves(right.get(section)))
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                yield Change(name, section, key, before.get(key), after.get(key))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value
