"""`fleetc workers` and `fleetc keys`: who builds, and who may ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from compiler.cli.output import Session, print_json
from server.commands.options import calls_server
from server.commands.text import print_list, when

if TYPE_CHECKING:
    from server.connection import Connection


@click.command()
@calls_server
def workers(session: Session, connection: Connection, /, as_json: bool) -> None:
    """List the workers of the build server, with their labels."""
    print_list(connection.get("/v1/workers"), ("worker", "running", "fleetc", "labels"), _worker_row, as_json=as_json)


def _worker_row(worker: dict[str, Any]) -> tuple[str, ...]:
    return worker["name"], f"{worker['running']} of {worker['slots']}", worker["version"], " ".join(worker["labels"])


@click.group()
def keys() -> None:
    """Keys of the build server: create, list, revoke."""


@keys.command("create")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(["read", "submit", "code", "worker", "admin"]),
    help="What it may do; repeatable.",
)
@click.option("--project", default="default", show_default=True, help="Whose jobs, models and caches it reaches.")
@click.option(
    "--days",
    "valid_days",
    type=click.FloatRange(min=0, min_open=True),
    help="How long it is valid; for ever by default.",
)
@calls_server
def keys_create(session: Session, connection: Connection, /, as_json: bool, **options: Any) -> None:
    """Make a key and print it: it is shown this once."""
    made = connection.post("/v1/keys", options)
    print_json(made) if as_json else click.echo(made["key"])


@keys.command("list")
@calls_server
def keys_list(session: Session, connection: Connection, /, as_json: bool) -> None:
    """List the keys, without their secrets."""
    print_list(connection.get("/v1/keys"), ("key", "name", "project", "scopes", "valid"), _key_row, as_json=as_json)


def _key_row(key: dict[str, Any]) -> tuple[str, ...]:
    return key["id"], key["name"], key["project"], " ".join(key["scopes"]), _end_text(key)


@keys.command("revoke")
@click.argument("key_id", metavar="KEY")
@calls_server
def keys_revoke(session: Session, connection: Connection, /, key_id: str, as_json: bool) -> None:
    """End a key now, by the id that `fleetc keys list` shows."""
    connection.call("DELETE", f"/v1/keys/{quote(key_id, safe='')}")
    print_json({"revoked": key_id}) if as_json else click.echo(f"{key_id} is revoked")


def _end_text(key: dict[str, Any]) -> str:
    if key["revoked"]:
        return "revoked"
    return f"until {when(key['expires'])}" if key["expires"] else "for ever"
