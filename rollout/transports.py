"""A build in the form that other update systems carry: a Mender artifact, an OCI image layout, calls for hawkBit.

Transport is theirs. Each form holds the one archive of `rollout.bundle`, which installs itself the same way everywhere.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.store.atomic import write_atomic
from compiler.store.keys import PrivateKey
from rollout.bundle import Bundle, pack
from rollout.spec import Group, Spec

PAYLOAD = "fleetc-build.tar"
MENDER_TYPE = "fleetc"
"""Name of the update module on the device: `mender-module.sh`."""

OCI_TYPE = "application/vnd.fleetc.build.v1"
OCI_LAYER = "application/vnd.fleetc.build.v1.tar"
OCI_EMPTY = b"{}"

ALL_PERCENT = "100"


def mender_artifact(bundle: Bundle, key: PrivateKey | None = None) -> bytes:
    """A Mender artifact, format 3 (docs.mender.io): a device of another class or runtime refuses it.

    Args:
        bundle: The build.
        key: Who signs it; the device must have the public key then.
    """
    name = f"{bundle.device_class}-{bundle.manifest_sha256[:16]}"
    provides = {
        "rootfs-image.fleetc.version": name,
        "rootfs-image.fleetc.manifest_sha256": bundle.manifest_sha256,
    }
    header = pack(
        {
            "header-info": _json(
                {
                    "payloads": [{"type": MENDER_TYPE}],
                    "artifact_provides": {"artifact_name": name},
                    "artifact_depends": {"device_type": [bundle.device_class]},
                }
            ),
            "headers/0000/type-info": _json(
                {
                    "type": MENDER_TYPE,
                    "artifact_provides": provides,
                    "clears_artifact_provides": ["rootfs-image.fleetc.*"],
                }
            ),
            "headers/0000/meta-data": _json({"precision": bundle.precision, "runtime": bundle.runtime}),
        },
        {},
    )
    version = _json({"format": "mender", "version": 3})
    parts = {"version": version, f"data/0000/{PAYLOAD}": bundle.archive, "header.tar": header}
    sums = "".join(f"{hashlib.sha256(raw).hexdigest()}  {path}\n" for path, raw in parts.items()).encode()
    members = [("version", version), ("manifest", sums)]
    if key is not None:
        members.append(("manifest.sig", base64.b64encode(_raw_signature(key.sign(sums)))))
    members += [("header.tar", header), ("data/0000.tar", pack({PAYLOAD: bundle.archive}, {}))]
    return _tar(members)


def _raw_signature(der: bytes) -> bytes:
    """Both numbers of an ECDSA signature one after the other, as Mender has them."""
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    return b"".join(number.to_bytes(32) for number in decode_dss_signature(der))


def write_oci(bundle: Bundle, folder: Path) -> str:
    """Writes an OCI image layout with one artifact; `oras cp --from-oci-layout` pushes it. Returns its digest.

    The build is one layer, a tar: clients flatten folders that they push file by file.
    """
    blobs = [OCI_EMPTY, bundle.archive]
    layer = {**_descriptor(OCI_LAYER, bundle.archive), "annotations": {"org.opencontainers.image.title": PAYLOAD}}
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": OCI_TYPE,
            "config": _descriptor("application/vnd.oci.empty.v1+json", OCI_EMPTY),
            "layers": [layer],
            "annotations": {
                "dev.fleetc.device-class": bundle.device_class,
                "dev.fleetc.manifest-sha256": bundle.manifest_sha256,
                "dev.fleetc.precision": bundle.precision,
                "dev.fleetc.runtime": bundle.runtime,
            },
        }
    )
    place = folder / "blobs" / "sha256"
    place.mkdir(parents=True, exist_ok=True)
    for blob in (*blobs, manifest):
        write_atomic(place / hashlib.sha256(blob).hexdigest(), blob)
    write_atomic(folder / "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
    tag = f"{bundle.device_class}-{bundle.manifest_sha256[:16]}"
    entry = {
        **_descriptor("application/vnd.oci.image.manifest.v1+json", manifest),
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    write_atomic(folder / "index.json", _json(index))  # last: a kill before leaves the old index, which is whole
    return str(entry["digest"])


def hawkbit_calls(bundle: Bundle, spec: Spec | None) -> list[dict[str, Any]]:
    """Calls of hawkBit's Management API, one after another; `{…}` stands for an id that an answer gave.

    After every group hawkBit pauses (`successAction: PAUSE`): our verdict then resumes the rollout, or stops it.
    """
    version = bundle.manifest_sha256[:16]
    module = {"name": f"fleetc-{bundle.device_class}", "version": version, "type": "application"}
    whole = {"name": module["name"], "version": version, "type": "app", "modules": [{"id": "{softwaremodule}"}]}
    groups = spec.groups if spec is not None else (Group(name="all", share=1.0),)
    rollout = {
        "name": spec.name if spec is not None else f"{module['name']}-{version}",
        "distributionSetId": "{distributionset}",
        "targetFilterQuery": f"attribute.device_class=={bundle.device_class}",
        "type": "forced",
        "groups": _hawkbit_groups(groups, spec),
    }
    return [
        _call("/rest/v1/softwaremodules", [module]),
        _call("/rest/v1/softwaremodules/{softwaremodule}/artifacts", {"file": PAYLOAD}),
        _call("/rest/v1/distributionsets", [whole]),
        _call("/rest/v1/rollouts", rollout),
        _call("/rest/v1/rollouts/{rollout}/start", {}),
    ]


def _hawkbit_groups(groups: Sequence[Group], spec: Spec | None) -> list[dict[str, Any]]:
    failed = 100 * spec.gates.failed if spec is not None else 0.0
    left, rows = 1.0, []
    for group in groups:
        query = ";".join(f"attribute.{key}=={value}" for key, value in sorted(group.labels.items()))
        # hawkBit's percentage is of the targets that no group before has; ours is of the whole fleet
        share = 1.0 if group.share is None else min(1.0, group.share / left) if left > 0 else 1.0
        left -= group.share or 0.0
        rows.append(
            {
                "name": group.name,
                "targetFilterQuery": query,
                "targetPercentage": round(100 * share, 6),
                "successCondition": {"condition": "THRESHOLD", "expression": f"{100 - failed:g}"},
                "successAction": {"action": "PAUSE", "expression": ""},
                "errorCondition": {"condition": "THRESHOLD", "expression": f"{failed:g}"},
                "errorAction": {"action": "PAUSE", "expression": ""},
            }
        )
    return rows


def _call(path: str, body: object) -> dict[str, Any]:
    return {"method": "POST", "path": path, "body": body}


def _descriptor(media_type: str, raw: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(raw).hexdigest()}", "size": len(raw)}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _tar(members: Sequence[tuple[str, bytes]]) -> bytes:
    """A tar in the order that is given: Mender's client reads it as a stream."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, raw in members:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(raw), 0o644
            tar.addfile(member, io.BytesIO(raw))
    return stream.getvalue()
