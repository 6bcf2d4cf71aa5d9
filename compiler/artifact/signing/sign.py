"""An artifact is signed: every digest is computed again, and no model is opened.

The one that signs needs no toolchain and no graph library, so that the key lies where nothing of a build is executed.
"""

from __future__ import annotations

from pathlib import Path

from compiler.artifact.diff import compare_files
from compiler.artifact.manifest import (
    BOM,
    MANIFEST,
    MEASUREMENTS,
    PROVENANCE,
    SIGNATURE,
    SIGNING_FILES,
    Delivered,
    read_artifact,
    write_json,
)
from compiler.artifact.signing.bom import make_bom
from compiler.artifact.signing.bundle import digest_files, make_bundle
from compiler.artifact.signing.check import read_provenance
from compiler.artifact.signing.provenance import default_builder, make_statement
from compiler.errors import ArtifactError
from compiler.store.atomic import write_atomic
from compiler.store.disk import output_errors
from compiler.store.envelope import Envelope, dump, sign
from compiler.store.keys import PrivateKey


def sign_artifact(folder: Path, key: PrivateKey, *, builder: str = "") -> None:
    """Writes bill of materials, provenance and signature into an artifact's folder; older ones are replaced.

    Args:
        folder: `dist/<device>`.
        key: Who signs.
        builder: URI of who built it; the key itself where empty.

    Raises:
        ArtifactError: The folder is not whole, or holds what is no part of the build.
        OutputError: The folder cannot be written.
    """
    delivered = read_artifact(folder)
    _refuse_strangers(delivered)
    statement = make_statement(delivered, builder=builder or default_builder(key.public.id))
    with output_errors(folder):
        (folder / SIGNATURE).unlink(missing_ok=True)  # a kill below leaves an unsigned folder, never a wrong signature
        write_json(folder / BOM, make_bom(delivered))
        write_atomic(folder / PROVENANCE, dump(sign(statement, key)))
        digests = digest_files(folder)
        write_atomic(folder / SIGNATURE, make_bundle(delivered.manifest.device, digests, key))


def confirm_rebuild(folder: Path, rebuilt: Path, key: PrivateKey, *, builder: str = "") -> tuple[str, ...]:
    """Compares an artifact with a second build of it, and adds the second builder's provenance where they are equal.

    Args:
        folder: The artifact.
        rebuilt: The second build's folder of the same device.
        key: Of the second builder.
        builder: URI of the second builder; its key where empty.

    Returns:
        Files whose bytes differ though nothing says they may; empty if the provenance was added.

    Raises:
        ArtifactError: A folder is not whole.
        SignatureRefused: The provenance that is there cannot be read.
        OutputError: The folder cannot be written.
    """
    delivered = read_artifact(folder)
    read_artifact(rebuilt)
    if different := compare_files(folder, rebuilt):
        return different
    statement = make_statement(delivered, builder=builder or default_builder(key.public.id), only_reproducible=True)
    _add_line(folder, sign(statement, key))
    return ()


def _add_line(folder: Path, statement: Envelope) -> None:
    lines = read_provenance(folder) if (folder / PROVENANCE).is_file() else ()
    if statement not in lines:
        with output_errors(folder):
            write_atomic(folder / PROVENANCE, b"".join(dump(line) for line in (*lines, statement)))


def _refuse_strangers(delivered: Delivered) -> None:
    """Whoever signs vouches for every file of the folder."""
    artifact = delivered.manifest.artifact
    known = {*delivered.manifest.files, *artifact.non_reproducible, *SIGNING_FILES, MANIFEST, MEASUREMENTS}
    strangers = sorted(set(digest_files(delivered.folder)) - known)
    if strangers:
        raise ArtifactError(
            f"no part of the build: {', '.join(strangers)}",
            where=str(delivered.folder),
            remedy="A signature covers every file of the folder: move these away, or build the device again.",
        )
