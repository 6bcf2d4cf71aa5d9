"""A small fleet on disk: builds that are shell scripts, a TUF repository, and devices."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rollout.bundle import pack
from rollout.device.agent import Agent, Settings
from rollout.device.source import Source
from rollout.repository import FleetRepository

CLASS = "kiosk"
PROGRAM = '#!/bin/sh\nexec cp "$1" "$2"\n'


@dataclass(frozen=True)
class Fake:
    """A build: its name, and the archive that devices fetch."""

    digest: str
    archive: bytes


def fake_build(weights: str, *, factor: float = 1.0, program: str = PROGRAM, **more: bytes) -> Fake:
    """A build whose program copies its input; where the factor is not 1, it should not have."""
    values = io.BytesIO(), io.BytesIO()
    np.save(values[0], np.arange(8, dtype=np.float32))
    np.save(values[1], factor * np.arange(8, dtype=np.float32))
    files = {"payload/weights": weights.encode(), "run": program.encode()}
    listed = {name: {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)} for name, raw in files.items()}
    files["manifest.json"] = json.dumps({"files": listed}).encode()
    facts = {"command": ["{artifact}/run", "{inputs}", "{outputs}"], "inputs": ["in-0.npy"], "outputs": ["out-0.npy"]}
    contents = {f"artifact/{name}": raw for name, raw in files.items()}
    contents |= {
        "health/health.json": json.dumps(facts).encode(),
        "health/in-0.npy": values[0].getvalue(),
        "health/out-0.npy": values[1].getvalue(),
    }
    contents |= {name.replace("__", "/"): raw for name, raw in more.items()}
    sums = [f"{hashlib.sha256(raw).hexdigest()}  {name}\n" for name, raw in sorted(contents.items())]
    contents["SHA256SUMS"] = "".join(sums).encode()
    digest = hashlib.sha256(files["manifest.json"]).hexdigest()
    return Fake(digest, pack(contents, {"artifact/run": 0o111}))


def make_repository(folder: Path, *builds: Fake) -> FleetRepository:
    """A repository with builds for one class; the first is assigned to everybody."""
    repository = FleetRepository(folder)
    repository.create()
    repository.add_class(CLASS)
    for build in builds:
        custom = {"device_class": CLASS, "manifest_sha256": build.digest, "precision": "fp32"}
        repository.add_build(CLASS, build.digest, build.archive, custom)
    assign(repository, builds[0])
    return repository


def assign(repository: FleetRepository, build: Fake, rollout: str = "first") -> None:
    """Tells every device to run a build."""
    repository.assign(CLASS, {"schema": 1, "rollout": rollout, "default": build.digest, "devices": {}})


def settings_of(folder: Path, **changes: object) -> Settings:
    """A device that keeps a build as soon as it is healthy."""
    return replace(Settings(folder, folder.name, CLASS, watch_s=0.0), **changes)  # type: ignore[arg-type]


def make_agent(fleet: Path, folder: Path, **changes: object) -> Agent:
    """An agent as it starts."""
    settings = settings_of(folder, **changes)
    root = (fleet / "root.json").read_bytes()
    source = Source(f"file://{fleet}/repository", folder, root=root, device_class=settings.device_class)
    return Agent(settings, source)


def verified_build(folder: Path) -> str | None:
    """The build in use, every byte compared with its digest; None before the first."""
    link = folder / "current"
    if not link.is_symlink():
        return None
    digest = link.readlink().name
    artifact = link.resolve() / "artifact"
    raw = (artifact / "manifest.json").read_bytes()
    assert hashlib.sha256(raw).hexdigest() == digest
    for name, file in json.loads(raw)["files"].items():
        assert hashlib.sha256((artifact / name).read_bytes()).hexdigest() == file["sha256"], name
    return digest


ONE, TWO, SICK = fake_build("one"), fake_build("two"), fake_build("sick", factor=2.0)
