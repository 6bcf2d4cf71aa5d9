"""What changed between two builds or two artifacts, and which change explains which; read from manifests alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from compiler.artifact.diff.explain import Change, explain
from compiler.artifact.diff.facts import Fact, facts_of
from compiler.artifact.manifest import MANIFEST, MEASUREMENTS, SIGNING_FILES, read_manifest
from compiler.artifact.report import read_build, read_device
from compiler.errors import ArtifactError, combine
from compiler.store import folder_digests

__all__ = ["Change", "compare_builds", "compare_files"]

Facts: TypeAlias = Mapping[str, Fact]

ARTIFACT = "artifact"
"""What the device of two device folders is called."""


def compare_builds(first: Path, second: Path) -> tuple[Change, ...]:
    """Every difference between two `dist` folders, or two device folders, cause before effect.

    Raises:
        ArtifactError: A folder holds no build and no artifact, one is the one and one the other, or a manifest is not
            the one that was delivered.
    """
    kinds = {(folder / MANIFEST).is_file() for folder in (first, second) if folder.is_dir()}
    if len(kinds) == 2:
        raise ArtifactError("one is a device's folder, the other a whole build", where=f"{first}, {second}")
    before, after = (_read_artifact(folder) if kinds == {True} else _read_build(folder) for folder in (first, second))
    names = dict.fromkeys((*after, *before))
    return tuple(change for name in names for change in _compare(name, before.get(name), after.get(name)))


def compare_files(first: Path, second: Path) -> tuple[str, ...]:
    """Files of two device folders whose bytes differ though nothing says they may.

    What may differ is `measurements.json`, what signing adds, and what one of the two manifests names as
    non-reproducible.
    """
    left, right = folder_digests(first), folder_digests(second)
    free = {MEASUREMENTS, *SIGNING_FILES, *_non_reproducible(first), *_non_reproducible(second)}
    return tuple(sorted(name for name in {*left, *right} if name not in free and left.get(name) != right.get(name)))


def _non_reproducible(folder: Path) -> list[str]:
    return list(read_manifest(folder).artifact.non_reproducible)


def _read_artifact(folder: Path) -> Mapping[str, Facts]:
    """One artifact under the same name whatever its device is called: two of different devices can be compared."""
    device = read_device(folder)
    manifest = device.manifest
    model, fleetc = (manifest.inputs.model.sha256, manifest.fleetc) if manifest else ("", "")
    return {ARTIFACT: facts_of(device, model=model, fleetc=fleetc)}


def _read_build(folder: Path) -> Mapping[str, Facts]:
    build = read_build(folder)
    if build.problems:
        raise combine(build.problems)
    return {device.name: facts_of(device, model=build.model, fleetc=build.fleetc) for device in build.devices}


def _compare(name: str, before: Facts | None, after: Facts | None) -> Iterator[Change]:
    if before is not None and after is not None:
        yield from explain(name, before, after)
    elif after is not None:
        yield Change(name, "build", "device", None, "built", now="new")
    else:
        yield Change(name, "build", "device", "built", None, was="there")
