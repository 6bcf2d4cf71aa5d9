"""A build is handed to whoever carries it to the devices."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path

from compiler.errors import DataError, MissingError
from compiler.store.atomic import write_atomic
from compiler.store.keys import read_private_key
from rollout.bundle import Bundle, make_bundle


class Transport(StrEnum):
    """Who carries it."""

    TUF = "tuf"
    MENDER = "mender"
    OCI = "oci"
    HAWKBIT = "hawkbit"
    SWUPDATE = "swupdate"


def export_build(
    artifact: Path,
    transport: Transport,
    place: Path,
    *,
    keys: Path | None = None,
    key: Path | None = None,
    rollout: Path | None = None,
    samples: Path | None = None,
    expected: Path | None = None,
) -> str:
    """Writes an artifact in the form of a transport. Returns what to say of it.

    Args:
        artifact: `dist/<device>`.
        transport: Who carries it.
        place: A fleet's folder, a file, or the folder of an image layout.
        keys: For TUF: folder of the private keys.
        key: For Mender: private key that it is signed with.
        rollout: For hawkBit: rollout file whose groups are meant.
        samples: Inputs of the health run.
        expected: Their outputs.

    Raises:
        CompilerError: The artifact is not whole or cannot be sent, or the place cannot be written.
    """
    bundle = make_bundle(artifact, samples=samples, expected=expected)
    if transport == Transport.TUF:
        return _add_to_fleet(bundle, place, keys)
    from rollout.spec import read_spec
    from rollout.transports import hawkbit_calls, mender_artifact, write_oci

    if transport == Transport.MENDER:
        write_atomic(place, mender_artifact(bundle, read_private_key(key) if key is not None else None))
        return str(place)
    if transport == Transport.SWUPDATE:
        from rollout.swupdate import swupdate_image

        write_atomic(place, swupdate_image(bundle))
        return str(place)
    if transport == Transport.OCI:
        return f"{place} {write_oci(bundle, place)}"
    calls = hawkbit_calls(bundle, read_spec(rollout)[0] if rollout is not None else None)
    write_atomic(place, (json.dumps(calls, indent=1) + "\n").encode())
    write_atomic(place.with_suffix(".tar"), bundle.archive)
    return f"{place} {place.with_suffix('.tar')}"


def _add_to_fleet(bundle: Bundle, fleet: Path, keys: Path | None) -> str:
    """Adds a build to a fleet's repository; the first of a class is assigned to all of its devices."""
    try:
        from rollout.repository import FleetRepository
    except ModuleNotFoundError as error:
        remedy = "Install them: pip install 'fleetc[rollout]'."
        raise MissingError("a TUF repository needs tuf and securesystemslib", remedy=remedy) from error
    if fleet.exists() and any(fleet.iterdir()) and not (fleet / "repository").is_dir():
        what = "there is something that is no fleet"
        raise DataError(what, where=str(fleet), remedy="Choose another folder.")
    repository = FleetRepository(fleet, keys)
    repository.create()
    repository.add_class(bundle.device_class)
    repository.add_build(bundle.device_class, bundle.manifest_sha256, bundle.archive, bundle.custom)
    said = f"{fleet}: {bundle.manifest_sha256} for {bundle.device_class}"
    if not repository.assignment(bundle.device_class):
        first = {"schema": 1, "rollout": "first build", "default": bundle.manifest_sha256, "devices": {}}
        repository.assign(bundle.device_class, first)
        said += ", assigned to every device: it is the first of its class"
    return said
