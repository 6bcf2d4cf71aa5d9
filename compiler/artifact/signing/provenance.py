"""Where an artifact is from: an in-toto statement with SLSA provenance v1 (slsa.dev/spec/v1.2/build-provenance).

All of it is read from the manifest: times, and what was measured, are left out, so that a second build of the same
inputs states the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compiler.artifact.adapter import to_json
from compiler.artifact.manifest import MANIFEST, Delivered
from compiler.artifact.signing.bundle import IN_TOTO, STATEMENT
from compiler.store import canonical_json, file_digest
from compiler.store.envelope import Envelope

PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:fleetc:build:1"
"""What `externalParameters` and `resolvedDependencies` mean: docs/signing.md."""


def make_statement(delivered: Delivered, *, builder: str, only_reproducible: bool = False) -> Envelope:
    """The statement, unsigned.

    Args:
        delivered: The artifact.
        builder: URI of who built it.
        only_reproducible: Whether it is stated of the files alone that every build has the same bytes of.
    """
    statement = {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": digest}}
            for name, digest in sorted(_subjects(delivered, only_reproducible).items())
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": _parameters(delivered),
                "internalParameters": {"stages": to_json(delivered.manifest)["stages"]},
                "resolvedDependencies": list(_dependencies(delivered)),
            },
            "runDetails": {"builder": {"id": builder, "version": {"fleetc": delivered.manifest.fleetc}}},
        },
    }
    return Envelope(IN_TOTO, canonical_json(statement).encode())


def default_builder(key_id: str) -> str:
    """Who built it, where nobody says: whoever has the key."""
    return f"urn:fleetc:key:{key_id}"


def _subjects(delivered: Delivered, only_reproducible: bool) -> dict[str, str]:
    """What was built; the manifest stands for what was decided."""
    loose: Mapping[str, Any] = {} if only_reproducible else delivered.measurements.non_reproducible_files
    files = {name: file.sha256 for name, file in {**loose, **delivered.manifest.files}.items()}
    return {**files, MANIFEST: file_digest(delivered.folder / MANIFEST)}


def _parameters(delivered: Delivered) -> dict[str, Any]:
    """What was asked for: the device's entry in the fleet file, and the profile's options."""
    plan = to_json(delivered.manifest.plan)
    return {
        "device": delivered.manifest.device,
        "profile": plan["profile"],
        "target": plan["target"],
        "target_options": plan["target_options"],
        "precision": plan["decisions"].get("precision", {}).get("value", ""),
        "dims": plan["dims"],
        "inputs": to_json(delivered.manifest.inputs.model)["fixed"],
        "limits": plan["gates"]["limits"],
    }


def _dependencies(delivered: Delivered) -> Iterator[dict[str, Any]]:
    """What went in: model, profile and data by digest, toolchains by name and version."""
    inputs = delivered.manifest.inputs
    yield _by_digest("model", inputs.model.file, inputs.model.sha256)
    yield _by_digest("profile", inputs.profile.name, inputs.profile.sha256)
    yield _by_digest("samples", inputs.samples.origin, inputs.samples.sha256)
    if inputs.evaluation is not None:
        yield _by_digest("evaluation", inputs.evaluation.origin, inputs.evaluation.sha256)
    tools = {**delivered.manifest.plan.toolchain, **delivered.artifact.tools, "fleetc": delivered.manifest.fleetc}
    for name, version in sorted(tools.items()):
        yield {"name": name, "uri": package_url(name, version)}


def _by_digest(role: str, name: str, digest: str) -> dict[str, Any]:
    """A thing by its digest; two of a model with weights beside it, which in-toto has no word for."""
    first, *more = digest.split("+")
    annotations = {"role": role, **({"external_data_sha256": more} if more else {})}
    return {"name": name, "digest": {"sha256": first}, "annotations": annotations}


def package_url(name: str, version: str) -> str:
    """A package of the Python package index as others name it (github.com/package-url/purl-spec)."""
    return f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
