"""Delivered artifacts as the rungs of a ladder: what each takes, how accurate and how fast it is, and its gates."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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


def read_builds(folders: Sequence[Path]) -> tuple[Signature, tuple[Build, ...]]:
    """Reads artifacts, every file compared with its digest, and orders them: the most accurate first.

    A build that another beats in accuracy and speed has no place on a ladder, and is left out.

    Raises:
        ArtifactError: A folder is not whole.
        DataError: One cannot be served, or they are not builds of one model.
    """
    read = [_read(folder) for folder in folders]
    signature = read[0][0]
    others = [folder for folder, (other, _) in zip(folders, read, strict=True) if other != signature]
    if others:
        raise combine(
            [
                DataError(
                    f"it takes or gives other tensors than {folders[0]}",
                    where=str(folder),
                    remedy="Serve builds of one model for one device class together.",
                )
                for folder in others
            ]
        )
    return signature, order_builds([build for _, build in read])


def order_builds(builds: Sequence[Build]) -> tuple[Build, ...]:
    """The most accurate first, without those that one at least as accurate is faster than."""
    ranked = sorted(builds, key=lambda build: (-build.rung.accuracy, _item_s(build)))
    kept: list[Build] = []
    for build in ranked:
        if not kept or _item_s(build) < _item_s(kept[-1]):
            kept.append(build)
    return tuple(kept)


def _item_s(build: Build) -> float:
    """Seconds of one item at the best batch; nothing is faster than what nobody has measured."""
    return min((seconds / size for size, seconds in build.rung.service_s.items()), default=0.0)


def _read(folder: Path) -> tuple[Signature, Build]:
    delivered = read_artifact(folder)
    manifest, artifact = delivered.manifest, delivered.artifact
    if artifact.deferred:
        raise DataError(
            f"the artifact is deferred: {artifact.deferred}",
            where=str(folder),
            remedy="Run `fleetc finish` on the device first.",
        )
    sizes = {name: (sizes.min, sizes.max) for name, sizes in manifest.plan.dims.items() if not sizes.is_fixed}
    signature = signature_of(artifact, sizes, where=str(folder))
    trial = manifest.chosen
    rung = Rung(
        name=manifest.decision.precision or artifact.precision,
        accuracy=_accuracy(trial),
        service_s=_service_s(delivered.measurements),
        memory_bytes=(trial.footprint.run_bytes or 0) if trial and trial.footprint else 0,
    )
    return signature, Build(
        rung=rung,
        artifact=artifact,
        manifest_sha256=_digest(folder / "manifest.json"),
        device=manifest.device,
        profile=manifest.inputs.profile.name,
        runtime=" ".join(f"{name} {version}" for name, version in sorted(artifact.tools.items())),
        gates=tuple(GateFigure(str(gate.name), gate.limit, gate.value) for gate in manifest.gates),
    )


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


def _service_s(measurements: Any) -> dict[int, float]:
    """Batch size → seconds, by the build's own timing where it was of a machine like the device."""
    if measurements.evidence not in _TIMED:
        return {}
    return {
        max(1, round(latency.items_per_s * latency.p50_ms / 1e3)): latency.p99_ms / 1e3
        for latency in measurements.latency
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
