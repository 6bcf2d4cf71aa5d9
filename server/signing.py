"""The server's own key: signs entries of the shared cache, and artifacts when they are delivered."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compiler.artifact.signing import sign_artifact
from compiler.store.disk import output_errors
from compiler.store.keys import PrivateKey, generate_key, read_private_key, write_key_pair
from server.artifacts import BUILD, Checked, check, pack, unpack

NAME = "server"


def public_key_file(data: Path) -> Path:
    """Where the public key of a server is; the private one lies beside it, and its owner alone may read it."""
    return data / "signing" / f"{NAME}.pub"


def signing_key(data: Path) -> PrivateKey:
    """The key of a server, made at its first start.

    Raises:
        UsageError: The file is no key.
        OutputError: The data folder cannot be written.
    """
    return _key(public_key_file(data).parent, NAME)


def rebuild_key(data: Path) -> PrivateKey:
    """The key that signs what second builders state; made at the first start.

    Raises:
        UsageError: The file is no key.
        OutputError: The data folder cannot be written.
    """
    return _key(data / "signing-rebuilt", "rebuilt")


def _key(folder: Path, name: str) -> PrivateKey:
    """The key in a folder; made where there is no such folder.

    Raises:
        UsageError: The file is no key.
        OutputError: The data folder cannot be written.
    """
    if not folder.is_dir():
        with output_errors(folder):
            draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".signing-"))
            write_key_pair(generate_key(), draft / f"{name}.pem")
            draft.rename(folder)  # both files at once, whenever the server is killed
    return read_private_key(folder / f"{name}.pem")


def sign_tar(tar: Path, device: str, key: PrivateKey, *, builder: str, scratch: Path) -> Checked:
    """Signs the artifact in a tar file, and writes the file again with the signature in it.

    Args:
        tar: As a worker delivered it; one without an artifact, of a build that failed, stays as it is.
        device: The device class.
        key: Signs.
        builder: URI of the server, which vouches for its workers.
        scratch: Folder for the files while they are signed.

    Returns:
        What the file holds.

    Raises:
        ArtifactError: It is no artifact, or has bytes that its manifest does not state.
    """
    facts = check(tar, device)
    if not facts.manifest:
        return facts
    with unpacked(tar, device, scratch) as folder:
        sign_artifact(folder / device, key, builder=builder)
        pack(folder, device, tar)
        with tar.open("rb") as file:
            os.fsync(file.fileno())
    return facts


@contextmanager
def unpacked(tar: Path, device: str, scratch: Path) -> Iterator[Path]:
    """The files of a tar file, `build.json` among them, in a folder of their own for as long as the block runs.

    Raises:
        ArtifactError: It is no artifact, or has bytes that its manifest does not state.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="sign-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        facts = unpack(tar, device, folder)
        (folder / BUILD).write_text(facts.build, encoding="utf-8")
        yield folder
