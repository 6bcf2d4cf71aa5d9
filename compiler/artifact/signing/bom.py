"""What an artifact is made of: a CycloneDX 1.6 bill of materials with a model card (ML-BOM).

The same manifest gives the same bytes: the serial number follows from it, and there is no time of writing. Licences of
toolchains are those that the installed packages state; one that is not installed here, in that version, has none.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from compiler.artifact.manifest import MANIFEST, Delivered
from compiler.artifact.schema import Manifest
from compiler.artifact.signing.provenance import package_url
from compiler.model.spec import TensorSpec
from compiler.store import file_digest

NAMESPACE = uuid.UUID("2b1f9f0c-4f0f-5a53-9f3d-3a9f6d1c7e52")
"""Of serial numbers: a random number, the same for ever."""

ABSENT = "absent"
"""What a plan has for the version of a toolchain that was not installed where it was planned."""

MOST_LICENCE_CHARS = 64
"""A longer text in a package's licence field is the licence itself and not its name."""


def make_bom(delivered: Delivered) -> dict[str, Any]:
    """The bill of materials of an artifact, as a JSON-ready value."""
    manifest = delivered.manifest
    digest = file_digest(delivered.folder / MANIFEST)
    parts = [_source(manifest), *_data(manifest), *_tools(manifest), *_files(manifest)]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, digest)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "fleetc", "version": manifest.fleetc}]},
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "artifact",
                "name": manifest.device,
                "version": digest[:16],
                "description": f"{manifest.inputs.model.file} compiled for {manifest.inputs.profile.name}",
                "hashes": [{"alg": "SHA-256", "content": digest}],
                "modelCard": _model_card(manifest),
                "properties": _properties(manifest),
            },
        },
        "components": parts,
        "dependencies": [{"ref": "artifact", "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def _model_card(manifest: Manifest) -> dict[str, Any]:
    evaluation, artifact = manifest.inputs.evaluation, manifest.artifact
    datasets = [{"ref": part["bom-ref"]} for part in _data(manifest)]
    return {
        "modelParameters": {
            **({"task": evaluation.task} if evaluation else {}),
            "datasets": datasets,
            "inputs": [{"format": _format(spec)} for spec in artifact.inputs],
            "outputs": [{"format": _format(spec)} for spec in artifact.outputs],
        },
        "quantitativeAnalysis": {"performanceMetrics": list(_metrics(manifest))},
    }


def _metrics(manifest: Manifest) -> Iterator[dict[str, str]]:
    """Each gate's figure with where it is from, and the parity: what nobody measured is left out."""
    for gate in manifest.gates:
        if gate.value is not None:
            yield {"type": f"{gate.name}, {gate.unit}", "value": f"{gate.value:g}", "slice": str(gate.evidence)}
    parity = manifest.verdict.parity
    if parity.worst_sqnr_db is not None:
        kind = f"signal-to-noise ratio against the {manifest.verdict.reference}, dB"
        yield {"type": kind, "value": f"{parity.worst_sqnr_db:.1f}", "slice": str(parity.evidence)}


def _properties(manifest: Manifest) -> list[dict[str, str]]:
    artifact = manifest.artifact
    pruned = f"{manifest.chosen.pruned:g}" if manifest.chosen else "0"
    values = {"target": artifact.target, "precision": artifact.precision, "pruned": pruned}
    if artifact.deferred:
        values["deferred"] = artifact.deferred
    return [{"name": f"fleetc:{name}", "value": value} for name, value in values.items()]


def _source(manifest: Manifest) -> dict[str, Any]:
    model = manifest.inputs.model
    return {
        "type": "machine-learning-model",
        "bom-ref": "source-model",
        "name": model.file,
        "hashes": [_hash(digest) for digest in model.sha256.split("+")],
    }


def _data(manifest: Manifest) -> list[dict[str, Any]]:
    """The data sets: what calibrated and verified, and what accuracy was judged on."""
    samples, evaluation = manifest.inputs.samples, manifest.inputs.evaluation
    sets = [_data_set("samples", samples.origin, samples.sha256)]
    return sets + ([_data_set("evaluation", evaluation.origin, evaluation.sha256)] if evaluation else [])


def _data_set(role: str, origin: str, digest: str) -> dict[str, Any]:
    return {
        "type": "data",
        "bom-ref": role,
        "name": origin,
        "hashes": [_hash(digest)],
        "data": [{"type": "dataset", "name": role}],
    }


def _tools(manifest: Manifest) -> list[dict[str, Any]]:
    tools = {**manifest.plan.toolchain, **manifest.artifact.tools}
    return [_tool(name, version) for name, version in sorted(tools.items()) if version != ABSENT]


def _tool(name: str, version: str) -> dict[str, Any]:
    url = package_url(name, version)
    licence = _licence(name, version)
    return {
        "type": "library",
        "bom-ref": url,
        "name": name,
        "version": version,
        "purl": url,
        **({"licenses": [{"license": {"name": licence}}]} if licence else {}),
    }


def _licence(name: str, version: str) -> str:
    """What a package says its licence is; empty where that version is not installed or says nothing."""
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return ""
    if package.version != version:
        return ""
    metadata = package.metadata
    stated = next((metadata[key] for key in ("License-Expression", "License") if key in metadata), "")
    return stated if len(stated) <= MOST_LICENCE_CHARS and "\n" not in stated else ""


def _files(manifest: Manifest) -> list[dict[str, Any]]:
    """Every delivered file: the payload, the border model, and the runtime libraries that are shipped with it."""
    return [
        {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [_hash(file.sha256)]}
        for name, file in sorted(manifest.files.items())
    ]


def _hash(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}


def _format(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype}[{', '.join(map(str, spec.shape))}]"
