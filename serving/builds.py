"""Delivered artifacts as the rungs of a ladder: what each takes, how accurate and how fast it is, and its gates."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from compiler import read_artifact
from compiler.target import Artifact, DataError, Evidence, TensorSpec, combine
from serving.ladder import Rung
from serving.protocol import DATATYPES, Signature

BATCH = "batch"

_TIMED = (Evidence.HOST, Evidence.DEVICE)


@dataclass(frozen=True)
class GateFigure:
    """A gate that the build was judged by: its name, limit and figure (None where nobody measured it)."""

    name: str
    limit: float
    observed: float | None


@dataclass(frozen=True)
class Build:
    """One build that may answer.

    Args:
        rung: Its place on the ladder.
        artifact: What its process loads.
        manifest_sha256: Digest of the manifest that it was delivered with.
        device: Device class that it was built for.
        profile: Hardware profile that it was built for.
        runtime: The toolchain and its version.
        gates: The gates that it passed.
    """

    rung: Rung
    artifact: Artifact
    manifest_sha256: str
    device: str
    profile: str
    runtime: str
    gates: tuple[GateFigure, ...]

    @property
    def name(self) -> str:
        """What answers call it."""
        return self.rung.name


@dataclass(frozen=True)
class Served:
    """What folders hold for serving.

    Args:
        signature: What every build takes and gives.
        builds: The ladder, the most accurate first.
        slo_s: Time of a request that says nothing, by the fleet file; None where it says nothing.
        drift: What inputs and outputs looked like when the model was built; None where nobody wrote it down.
    """

    signature: Signature
    builds: tuple[Build, ...]
    slo_s: float | None
    drift: Any


def read_builds(folders: Sequence[Path]) -> Served:
    """Reads artifacts and the ladders in them, every file compared with its digest.

    A build that another beats in accuracy and speed has no place on a ladder, and is left out.

    Raises:
        ArtifactError: A folder is not whole.
        DataError: One cannot be served, or they are not builds of one model.
    """
    delivered = [read_artifact(folder) for folder in folders]
    read = [pair for one in delivered for pair in _ladder_of(one)]
    signature = read[0][0]
    others = [build for other, build in read if other != signature]
    if others:
        raise combine(
            [
                DataError(
                    f"it takes or gives other tensors than {folders[0]}",
                    where=str(build.artifact.root),
                    remedy="Serve builds of one model for one device class together.",
                )
                for build in others
            ]
        )
    manifest = delivered[0].manifest
    slo_s = manifest.ladder.slo_ms / 1e3 if manifest.ladder else None
    return Served(signature, order_builds([build for _, build in read]), slo_s, manifest.drift)


def order_builds(builds: Sequence[Build]) -> tuple[Build, ...]:
    """The most accurate first, without those that one at least as accurate is faster than; each name once."""
    ranked = sorted(builds, key=lambda build: (-build.rung.accuracy, _item_s(build)))
    kept: list[Build] = []
    for build in ranked:
        is_timed = all(one.rung.service_s for one in (build, *kept[-1:]))
        if kept and is_timed and _item_s(build) >= _item_s(kept[-1]):
            continue
        taken = sum(one.name.split("#")[0] == build.name for one in kept)
        name = f"{build.name}#{taken + 1}" if taken else build.name
        kept.append(replace(build, rung=replace(build.rung, name=name)))
    return tuple(kept)


def _ladder_of(delivered: Any) -> list[tuple[Signature, Build]]:
    """The builds of one folder: those of its ladder, or the one it holds."""
    ladder = delivered.manifest.ladder
    if ladder is None:
        return [_read(delivered)]
    found = []
    for rung in ladder.rungs:
        own = delivered if not rung.folder else _read_rung(delivered.folder, rung)
        signature, build = _read(own)
        facts = replace(
            build.rung,
            name=rung.name,
            accuracy=rung.accuracy_ratio,
            service_s={time.items: time.p95_ms / 1e3 for time in rung.service},
            memory_bytes=rung.memory_bytes or 0,
            is_degraded=rung.is_degraded,
        )
        found.append((signature, replace(build, rung=facts)))
    return found


def _read_rung(folder: Path, rung: Any) -> Any:
    """A rung's own artifact, which must be the one that the ladder was delivered with."""
    place = PurePosixPath(rung.folder)
    where = folder / place
    if place.is_absolute() or ".." in place.parts or where.is_symlink():
        raise DataError(f"the rung '{rung.name}' lies outside of the artifact", where=str(folder))
    delivered = read_artifact(where)
    if manifest_digest(where) != rung.manifest_sha256:
        raise DataError(
            "the manifest is not the one that the ladder was delivered with",
            where=str(where),
            remedy="Build the device again.",
        )
    return delivered


def _item_s(build: Build) -> float:
    """Seconds of one item at the best batch; nothing is faster than what nobody has measured."""
    return min((seconds / size for size, seconds in build.rung.service_s.items()), default=0.0)


def _read(delivered: Any) -> tuple[Signature, Build]:
    manifest, artifact, folder = delivered.manifest, delivered.artifact, delivered.folder
    signature = read_signature(delivered)
    trial = manifest.chosen
    rung = Rung(
        name=manifest.decision.precision or artifact.precision,
        accuracy=_accuracy(trial),
        service_s=service_times(delivered.measurements),
        memory_bytes=(trial.footprint.run_bytes or 0) if trial and trial.footprint else 0,
    )
    return signature, Build(
        rung=rung,
        artifact=artifact,
        manifest_sha256=manifest_digest(folder),
        device=manifest.device,
        profile=manifest.inputs.profile.name,
        runtime=" ".join(f"{name} {version}" for name, version in sorted(artifact.tools.items())),
        gates=tuple(GateFigure(str(gate.name), gate.limit, gate.value) for gate in manifest.gates),
    )


def read_signature(delivered: Any) -> Signature:
    """What a delivered artifact takes and gives.

    Raises:
        DataError: It is deferred, or `signature_of` refuses it.
    """
    artifact, where = delivered.artifact, str(delivered.folder)
    if artifact.deferred:
        raise DataError(
            f"the artifact is deferred: {artifact.deferred}",
            where=where,
            remedy="Run `fleetc finish` on the device first.",
        )
    dims = delivered.manifest.plan.dims
    ranges = {name: (sizes.min, sizes.max) for name, sizes in dims.items() if not sizes.is_fixed}
    return signature_of(artifact, ranges, where=where)


def signature_of(artifact: Artifact, sizes: Mapping[str, tuple[int, int]], *, where: str) -> Signature:
    """What a build takes and gives, as a server needs it.

    Raises:
        DataError: A type that the protocol has not, or a dimension that the plan says nothing of.
    """
    problems = [
        DataError(f"'{spec.name}' is of type {spec.dtype}, which the protocol has no tensors of", where=where)
        for spec in (*artifact.inputs, *artifact.outputs)
        if spec.dtype not in DATATYPES
    ]
    problems += [
        DataError(f"input '{spec.name}' has the dimension '{size}', which the plan has no range of", where=where)
        for spec in artifact.inputs
        for size in spec.shape
        if isinstance(size, str) and size not in sizes
    ]
    if problems:
        raise combine(problems)
    specs = (*artifact.inputs, *artifact.outputs)
    is_batched = BATCH in sizes and all(_is_batched(spec) for spec in specs)
    return Signature(artifact.inputs, artifact.outputs, dict(sizes), BATCH if is_batched else "")


def _is_batched(spec: TensorSpec) -> bool:
    return bool(spec.shape) and spec.shape[0] == BATCH and BATCH not in spec.shape[1:]


def _accuracy(trial: Any) -> float:
    """Of the float model's, 1 where nothing judged it."""
    drop = trial.accuracy.drop if trial and trial.accuracy else None
    if drop is None or not drop.reference.value_pct:
        return 1.0
    return float(drop.candidate.value_pct / drop.reference.value_pct)


def service_times(measurements: Any) -> dict[int, float]:
    """Batch size → seconds, by the build's own timing where it was of a machine like the device."""
    if measurements.evidence not in _TIMED:
        return {}
    return {
        max(1, round(latency.items_per_s * latency.p50_ms / 1e3)): latency.p99_ms / 1e3
        for latency in measurements.latency
    }


def manifest_digest(folder: Path) -> str:
    """SHA-256 of a delivered folder's manifest, which stands for all of its files."""
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
