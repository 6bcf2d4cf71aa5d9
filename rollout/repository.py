"""A fleet's TUF repository: builds and assignments, signed for each device class by its own key.

    repository/metadata/   what any web server hands out
    repository/targets/    CLASS/<sha256>.<digest>.tar and CLASS/<sha256>.assignment.json
    keys/                  a private key for each role; root's and targets' are needed for new classes alone
    root.json              the first root metadata, which every device is given

The metadata is python-tuf's; a delegated role of a class may sign paths below its own name and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer
from tuf.repository import Repository

from compiler.errors import DataError
from compiler.store.atomic import write_atomic
from compiler.store.keys import generate_key, read_private_key, write_key_pair
from compiler.store.locks import exclusive

TOP_ROLES = ("root", "targets", "snapshot", "timestamp")

VALID = {
    "root": timedelta(days=365),
    "targets": timedelta(days=365),
    "snapshot": timedelta(days=14),
    "timestamp": timedelta(days=7),
}
"""How long metadata is believed. An older timestamp is taken for frozen: it has to be signed again each week."""

CLASS_VALID = timedelta(days=90)

ASSIGNMENT = "assignment.json"

FOLLOWING = ".next"
"""End of the name of a key that is about to take the place of another."""

LOCK_S = 60.0
"""Longest time to wait for another process that writes metadata."""


class FleetRepository(Repository):
    """The repository of one fleet.

    Args:
        fleet: The folder of the fleet.
        keys: Folder of the private keys; `keys` in it by default.
    """

    def __init__(self, fleet: Path, keys: Path | None = None) -> None:
        self.fleet, self._keys = fleet, keys or fleet / "keys"
        self._metadata = fleet / "repository" / "metadata"
        self._targets = fleet / "repository" / "targets"

    @property
    def classes(self) -> tuple[str, ...]:
        """The device classes that it has builds for."""
        if not self._path("targets").exists():
            return ()
        delegations = self.targets().delegations
        return tuple(delegations.roles or ()) if delegations else ()

    def create(self) -> None:
        """Makes keys and metadata, as far as they are not there."""
        self._metadata.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if not self._path("root").exists():
                for role in TOP_ROLES:
                    self._make_key(role)
                with self.edit_root() as root:
                    for role in TOP_ROLES:
                        root.add_key(self._signer(role).public_key, role)
            for role in TOP_ROLES[1:]:
                if not self._path(role).exists():
                    with self.edit(role):
                        pass
            self._publish()
            write_atomic(self.fleet / "root.json", (self._metadata / "1.root.json").read_bytes())

    def add_class(self, name: str) -> None:
        """Delegates a device class to a key of its own, where that is not done yet."""
        with self._alone():
            if name not in self.classes:
                self._delegate(name)
            if not self._path(name).exists():
                with self.edit_targets(name):
                    pass
            self._publish()

    def _delegate(self, name: str) -> None:
        self._make_key(_key_of(name))
        key = self._signer(_key_of(name)).public_key
        with self.edit_targets() as targets:
            delegations = targets.delegations or Delegations({}, {})
            roles = {
                **(delegations.roles or {}),
                name: DelegatedRole(name, [key.keyid], 1, terminating=True, paths=[f"{name}/*"]),
            }
            targets.delegations = Delegations({**delegations.keys, key.keyid: key}, roles)

    def add_build(self, device_class: str, digest: str, archive: bytes, custom: Mapping[str, Any]) -> None:
        """Signs a build for a class.

        Args:
            device_class: The class.
            digest: SHA-256 of its manifest.
            archive: The archive that devices fetch.
            custom: What its target says of it.
        """
        path = f"{device_class}/{digest}.tar"
        with self._alone():
            self._add(device_class, {path: self._store(path, archive, custom)})

    def assignment(self, device_class: str) -> dict[str, Any]:
        """What the devices of a class are told now; empty before the first."""
        path = f"{device_class}/{ASSIGNMENT}"
        info = self.targets(device_class).targets.get(path) if device_class in self.classes else None
        if info is None:
            return {}
        value: dict[str, Any] = json.loads((self._targets / _stored(info)).read_bytes())
        return value

    def assign(self, device_class: str, assignment: Mapping[str, Any]) -> bool:
        """Tells the devices of a class what to run. Whether that is new."""
        path = f"{device_class}/{ASSIGNMENT}"
        with self._alone():
            if dict(assignment) == self.assignment(device_class):
                self._publish()  # whoever wrote it may have been killed before snapshot and timestamp
                return False
            raw = json.dumps(assignment, sort_keys=True).encode()
            self._add(device_class, {path: self._store(path, raw, {"device_class": device_class})})
            return True

    def builds(self, device_class: str) -> dict[str, Mapping[str, Any]]:
        """Digest → what its target says, of every build of a class."""
        if device_class not in self.classes:
            return {}
        customs = (info.unrecognized_fields.get("custom", {}) for info in self.targets(device_class).targets.values())
        return {custom["manifest_sha256"]: custom for custom in customs if "manifest_sha256" in custom}

    def replace_key(self, role: str) -> None:
        """Gives a role a new key: what the old one signs is believed no more. Killed, it is called again.

        Devices forget the versions that the old key had signed, so that an attacker who raised them is forgotten too.

        Args:
            role: root, targets, snapshot, timestamp, or a device class.

        Raises:
            DataError: There is no such role, or the key that must sign the change is not here.
        """
        with self._alone():
            if role not in (*TOP_ROLES, *self.classes):
                remedy = f"Roles: {', '.join((*TOP_ROLES, *self.classes))}."
                raise DataError(f"there is no role {role!r}", where=str(self.fleet), remedy=remedy)
            following = f"{_key_of(role)}{FOLLOWING}"
            self._make_key(following)
            with self.edit_root() if role in TOP_ROLES else self.edit_targets() as metadata:
                _delegate_anew(metadata, role, self._signer(following).public_key)
            for suffix in (".pem", ".pub"):
                (self._keys / f"{following}{suffix}").replace(self._keys / f"{_key_of(role)}{suffix}")
            if role == "targets" or role not in TOP_ROLES:
                with self.edit(role):
                    pass
            self.do_snapshot(force=True)
            self.do_timestamp(force=True)

    def refresh(self) -> None:
        """Signs snapshot and timestamp again, so that they do not expire."""
        with self._alone():
            self.do_snapshot(force=True)
            self.do_timestamp(force=True)

    @property
    def targets_infos(self) -> dict[str, MetaFile]:
        """Versions of all metadata that lists targets."""
        return {f"{role}.json": MetaFile(self.targets(role).version) for role in ("targets", *self.classes)}

    @property
    def snapshot_info(self) -> MetaFile:
        """Version of the snapshot."""
        return MetaFile(self.snapshot().version)

    def open(self, role: str) -> Metadata[Any]:
        """The newest metadata of a role; new where there is none."""
        path = self._path(role)
        if path.exists():
            return Metadata.from_file(str(path))
        kinds: dict[str, Any] = {"root": Root, "snapshot": Snapshot, "timestamp": Timestamp}
        signed = kinds.get(role, Targets)()
        signed.version = 0  # raised when it is written
        return Metadata(signed)

    def close(self, role: str, md: Metadata[Any]) -> None:
        """Signs and writes the metadata of a role under its next version."""
        md.signed.version += 1
        md.signed.expires = datetime.now(UTC).replace(microsecond=0) + VALID.get(role, CLASS_VALID)
        md.signatures.clear()
        md.sign(self._signer(_key_of(role)))
        if role == "root" and (self._keys / f"root{FOLLOWING}.pem").exists():
            md.sign(
                self._signer(f"root{FOLLOWING}"), append=True
            )  # a new root is signed by the old key and the new one
        name = f"{role}.json" if role == "timestamp" else f"{md.signed.version}.{role}.json"
        write_atomic(self._metadata / name, md.to_bytes(JSONSerializer()))

    def _alone(self) -> AbstractContextManager[None]:
        """Metadata is read, changed and written by one process at a time."""
        return exclusive(self.fleet / ".repository.lock", purpose="the fleet's metadata", limit_s=LOCK_S)

    def _add(self, device_class: str, targets: Mapping[str, TargetFile]) -> None:
        with self.edit_targets(device_class) as metadata:
            metadata.targets.update(targets)
        self._publish()

    def _publish(self) -> None:
        self.do_snapshot()
        self.do_timestamp()

    def _store(self, path: str, raw: bytes, custom: Mapping[str, Any]) -> TargetFile:
        """Writes a target under the name that clients ask for: files are there before the metadata that names them."""
        info = TargetFile.from_data(path, raw, ["sha256"])
        info.unrecognized_fields["custom"] = dict(custom)
        place = self._targets / _stored(info)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, raw)
        return info

    def _path(self, role: str) -> Path:
        """The newest file of a role."""
        if role == "timestamp":
            return self._metadata / "timestamp.json"
        versions = [int(path.name.split(".")[0]) for path in self._metadata.glob(f"*.{role}.json")]
        return self._metadata / f"{max(versions, default=1)}.{role}.json"

    def _make_key(self, name: str) -> None:
        path = self._keys / f"{name}.pem"
        if not path.exists():
            write_key_pair(generate_key(), path)

    def _signer(self, name: str) -> CryptoSigner:
        path = self._keys / f"{name}.pem"
        if not path.exists():
            raise DataError(
                f"the key of {name} is not here",
                where=str(path),
                remedy="Name the folder of the keys with --keys; root and targets are needed for a new device class.",
            )
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        return CryptoSigner(load_pem_private_key(read_private_key(path).pem, None))


def _delegate_anew(metadata: Root | Targets, role: str, key: Key) -> None:
    """Lets one key alone sign for a role."""
    delegations = metadata.roles if isinstance(metadata, Root) else metadata.delegations and metadata.delegations.roles
    for old in list(delegations[role].keyids if delegations else ()):
        if old != key.keyid:
            metadata.revoke_key(old, role)
    metadata.add_key(key, role)


def _key_of(role: str) -> str:
    """Name of the key that signs for a role."""
    return role if role in TOP_ROLES else f"class-{role}"


def _stored(info: TargetFile) -> str:
    folder, _, name = info.path.rpartition("/")
    return f"{folder}/{info.hashes['sha256']}.{name}"
