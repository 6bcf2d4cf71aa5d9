"""A build as one archive that a device takes: the artifact, samples for its health run, and digests for `sha256sum`.

    artifact/      the delivered folder, as it is
    health/        health.json, inputs and the outputs that were computed here
    SHA256SUMS     for boards without Python
    install.sh     installs it there

The same artifact gives the same bytes: names are sorted, and there are no times and no owners.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler import find_target, read_artifact
from compiler.artifact.artifact import Artifact
from compiler.errors import CompilerError, DataError
from compiler.evaluate.samples import read_arrays

Arrays = Mapping[str, NDArray[Any]]

LEAST_SQNR_DB = 30.0
"""How near a device's results must be to those computed here: processors round otherwise, and use other kernels."""

INSTALL = Path(__file__).with_name("install.sh")


@dataclass(frozen=True)
class Bundle:
    """An artifact that is ready to be sent.

    Args:
        archive: The archive.
        manifest_sha256: Digest of the artifact's manifest: the name of the build.
        device_class: Device class that it was built for.
        precision: Precision that it computes in.
        runtime: The toolchain and its version.
        gates: Gate → its limit, unit and the figure that was judged.
    """

    archive: bytes
    manifest_sha256: str
    device_class: str
    precision: str
    runtime: str
    gates: Mapping[str, Mapping[str, Any]]

    @property
    def custom(self) -> dict[str, Any]:
        """What a signed target says of it; numbers as text, since canonical JSON has no fractions."""
        return {
            "device_class": self.device_class,
            "precision": self.precision,
            "manifest_sha256": self.manifest_sha256,
            "runtime": self.runtime,
            "gates": {name: {key: str(fact) for key, fact in gate.items()} for name, gate in self.gates.items()},
        }


def make_bundle(folder: Path, *, samples: Path | None = None, expected: Path | None = None) -> Bundle:
    """Reads an artifact, every file compared with its digest, and packs it.

    Args:
        folder: `dist/<device>`.
        samples: Inputs of the health run, .npz; random ones by default.
        expected: Their outputs, .npz; computed here by default.

    Raises:
        ArtifactError: The folder is not whole.
        DataError: It is deferred, or cannot be run here and no outputs were given.
    """
    delivered = read_artifact(folder)
    manifest, artifact = delivered.manifest, delivered.artifact
    if artifact.deferred:
        remedy = "Run `fleetc finish` on such a device first."
        raise DataError(f"the artifact is deferred: {artifact.deferred}", where=str(folder), remedy=remedy)
    raw = {f"artifact/{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*") if path.is_file()}
    contents = {name: path.read_bytes() for name, path in raw.items()} | _health(delivered, samples, expected)
    modes = {name: path.stat().st_mode & 0o111 for name, path in raw.items()}
    contents["install.sh"], modes["install.sh"] = INSTALL.read_bytes(), 0o111
    sums = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(contents.items())]
    contents["SHA256SUMS"] = "".join(sums).encode()
    return Bundle(
        pack(contents, modes),
        hashlib.sha256(contents["artifact/manifest.json"]).hexdigest(),
        manifest.device,
        artifact.precision,
        " ".join(f"{name} {version}" for name, version in sorted(artifact.tools.items())),
        {
            str(gate.name): {"limit": gate.limit, "unit": str(gate.unit), "observed": gate.value}
            for gate in manifest.gates
        },
    )


def pack(contents: Mapping[str, bytes], modes: Mapping[str, int]) -> bytes:
    """An archive of files; the same files give the same bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in sorted(contents.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644 | modes.get(name, 0)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _health(delivered: Any, samples: Path | None, expected: Path | None) -> dict[str, bytes]:
    """The samples, in the form that the artifact's own program reads: .npy a tensor, or .npz."""
    artifact: Artifact = delivered.artifact
    inputs = dict(read_arrays(samples)) if samples is not None else _random_inputs(delivered)
    outputs = dict(read_arrays(expected)) if expected is not None else _computed(artifact, inputs, delivered.folder)
    if "run" in artifact.files:
        files = {f"in-{place}.npy": _npy(inputs[spec.name]) for place, spec in enumerate(artifact.inputs)}
        results = {f"out-{place}.npy": _npy(outputs[spec.name]) for place, spec in enumerate(artifact.outputs)}
        command = ["{artifact}/run", "{inputs}", "{outputs}"]
    else:
        files, results = {"inputs.npz": _npz(inputs)}, {"outputs.npz": _npz(outputs)}
        command = ["fleetc", "run", "{artifact}", "{inputs}", "{outputs}"]
    facts = {
        "command": command,
        "inputs": list(files),
        "outputs": list(results),
        "least_sqnr_db": LEAST_SQNR_DB,
    }
    named = {**files, **results, "health.json": json.dumps(facts, indent=1, sort_keys=True).encode()}
    return {f"health/{name}": content for name, content in named.items()}


def _random_inputs(delivered: Any) -> dict[str, NDArray[Any]]:
    """Numbers from a fixed seed, at the smallest sizes of the plan."""
    generator = np.random.default_rng(0)
    sizes = {name: size.min for name, size in delivered.manifest.plan.dims.items()}
    inputs = {}
    for spec in delivered.artifact.inputs:
        shape = [size if isinstance(size, int) else sizes[size] for size in spec.shape]
        values = generator.random(shape)
        inputs[spec.name] = values.astype(spec.dtype) if spec.dtype.startswith("float") else np.zeros(shape, spec.dtype)
    return inputs


def _computed(artifact: Artifact, inputs: Arrays, folder: Path) -> Arrays:
    try:
        runner = find_target(artifact.target).load(artifact)
    except CompilerError as error:
        raise DataError(
            f"the artifact cannot be run on this machine, and a device's health run needs its outputs: {error.what}",
            where=str(folder),
            remedy="Give --samples and --expected, computed where it runs.",
        ) from error
    try:
        return runner.run(inputs)
    finally:
        runner.close()


def _npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array))
    return stream.getvalue()


def _npz(arrays: Arrays) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for one of the arrays
    return stream.getvalue()
