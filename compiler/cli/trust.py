"""Commands on keys and signatures: keygen, sign."""

from __future__ import annotations

from pathlib import Path

import click

from compiler.cli.options import FILE, FOLDER, json_option
from compiler.cli.output import print_json


@click.command()
@click.argument("file", type=FILE)
@json_option
def keygen(file: Path, as_json: bool) -> None:
    """Make a pair of keys: FILE (such as lab.pem) signs and stays secret, lab.pub beside it verifies."""
    from compiler.store.keys import generate_key, write_key_pair

    key = generate_key()
    public = write_key_pair(key, file)
    if as_json:
        print_json({"private": str(file), "public": str(public), "key_id": key.public.id})
    else:
        click.echo(f"{file}: signs, keep it secret\n{public}: verifies, hand it out\nkey id {key.public.id}")


@click.command()
@click.argument("artifact", type=FOLDER)
@click.option("--key", required=True, type=FILE, help="The private key to sign with; `fleetc keygen` makes one.")
@click.option("--builder", default="", metavar="URI", help="Who built it, for the provenance; the key by default.")
@click.option(
    "--rebuilt",
    type=FOLDER,
    metavar="ARTIFACT",
    help="A second build of ARTIFACT: if it is the same, the provenance gets the signature of its builder, too.",
)
@json_option
def sign(artifact: Path, key: Path, builder: str, rebuilt: Path | None, as_json: bool) -> None:
    """Sign an ARTIFACT, or every artifact of a whole build: bill of materials, provenance, signature.

    No model is opened, and no toolchain is needed.
    """
    from compiler.artifact.signing import confirm_rebuild, sign_artifact
    from compiler.errors import GateFailed
    from compiler.store.keys import read_private_key

    private = read_private_key(key)
    if rebuilt is not None:
        different = confirm_rebuild(artifact, rebuilt, private, builder=builder)
        if different:
            remedy = "`fleetc diff` tells which change explains which; report it if the inputs were the same."
            raise GateFailed(
                f"the second build has other bytes in: {', '.join(different)}", where=str(artifact), remedy=remedy
            )
        folders = [artifact]
    else:
        folders = _artifacts(artifact)
        for folder in folders:
            sign_artifact(folder, private, builder=builder)
    if as_json:
        print_json({"signed": [str(folder) for folder in folders], "key_id": private.public.id})
    else:
        lines = [f"{folder}: signed by key {private.public.id[:16]}" for folder in folders]
        click.echo("\n".join(lines))


def _artifacts(folder: Path) -> list[Path]:
    """The artifact itself, or those of a whole build."""
    from compiler.artifact.manifest import BUILD, MANIFEST

    if (folder / BUILD).is_file() and not (folder / MANIFEST).is_file():
        return sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    return [folder]
