"""Commands on keys and signatures: keygen."""

from __future__ import annotations

from pathlib import Path

import click

from compiler.cli.options import FILE, json_option
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
