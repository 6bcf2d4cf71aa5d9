"""`fleetc server` and `fleetc worker`: the processes that run until they are stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from platformdirs import user_data_path

from compiler.cli.options import FILE, FOLDER, json_option
from compiler.cli.output import Session, print_json
from server.commands.options import client_file_option, connect, require_extra, server_options


@click.command()
@click.option("--data", type=FOLDER, default=lambda: user_data_path("fleetc") / "server", help="The data folder.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address it listens on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: the system chooses.")
@click.option("--host-name", "hosts", multiple=True, metavar="NAME", help="A name by which it is called; repeatable.")
@click.option("--database", envvar="FLEETC_DATABASE", default="", metavar="URL", help="PostgreSQL instead of SQLite.")
@click.option(
    "--slots", type=click.IntRange(min=0), default=1, show_default=True, help="Builds at a time here; 0: none."
)
@click.option("--label", "labels", multiple=True, metavar="NAME", help="A further label of this machine; repeatable.")
@click.option("--certificate", type=FILE, help="Certificate, for HTTPS.")
@click.option("--certificate-key", type=FILE, help="The key to it.")
@click.option(
    "--attempts",
    "most_losses",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Attempts of a device that may be lost.",
)
@click.option("--quota", type=click.IntRange(min=0), default=0, help="Builds of one project at a time; 0: no bound.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0),
    default=200.0,
    show_default=True,
    help="Requests a second of one key, above which it is told to wait; 0: no bound.",
)
@click.option(
    "--keep-days",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="How long artifacts and unused files stay.",
)
@click.option(
    "--keep-gib",
    type=click.FloatRange(min=0),
    default=50.0,
    show_default=True,
    help="Size of one project's shared cache.",
)
@click.option(
    "--silence",
    "silence_s",
    type=click.FloatRange(min=1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="After which a worker that says nothing is given up.",
)
@client_file_option
@click.option("--join", default="", metavar="HOST:PORT", help="Where `fleetc worker` of other machines joins.")
@json_option
@click.pass_obj
def server(session: Session, /, client_file: Path, as_json: bool, **options: Any) -> None:
    """Run the build server on this machine until Ctrl-C: HTTP API, page, and a worker."""
    require_extra()
    from server.housekeeping import Retention
    from server.serve import Settings, Started, log_as_json, serve, write_client_file
    from server.signing import public_key_file

    certificate, key = options.pop("certificate"), options.pop("certificate_key")
    days, gib = options.pop("keep_days"), options.pop("keep_gib")
    pair = (certificate, key) if certificate and key else None
    settings = Settings(**options, certificate=pair, retention=Retention(days, days, gib))
    settings = replace(settings, data=settings.data.absolute())

    def ready(started: Started) -> None:
        write_client_file(client_file, started)
        if as_json:
            places = {"data": str(settings.data), "public_key": str(public_key_file(settings.data))}
            print_json({"server": started.url, "key": started.key, **places})
        else:
            click.echo(f"fleetc server at {started.url}, data in {settings.data}")
            click.echo(f"what it signs is verified by {public_key_file(settings.data)}")
            if started.key:
                click.echo(f"the key, shown this once: {started.key}")

    log_as_json()
    serve(settings, ready=ready)


@click.command()
@click.option("--slots", type=click.IntRange(min=1), default=1, show_default=True, help="Builds at a time.")
@click.option("--name", default="", metavar="NAME", help="Its name; the machine's by default.")
@click.option("--label", "labels", multiple=True, metavar="NAME", help="A further label, as board:rpi5; repeatable.")
@click.option(
    "--timing/--no-timing",
    "has_timing",
    default=True,
    show_default=True,
    help="Whether it may measure: not where others share the machine.",
)
@click.option("--data", "folder", type=FOLDER, default=lambda: user_data_path("fleetc") / "worker", help="Its folder.")
@server_options
@click.pass_obj
def worker(session: Session, /, name: str, **options: Any) -> None:
    """Build for the build server on this machine, until Ctrl-C."""
    ca = options["ca"]
    chosen = {key: options.pop(key) for key in ("slots", "labels", "folder", "has_timing")}
    connection = connect(options)
    from server.client import say_errors
    from server.connection import Refusal, Unreachable
    from server.serve import log_as_json
    from server.worker import WorkerSettings, default_name, run_worker

    log_as_json()
    chosen["folder"] = chosen["folder"].absolute()
    try:
        run_worker(connection, WorkerSettings(name=name or default_name(), **chosen), ca=ca)
    except (Refusal, Unreachable) as error:
        raise say_errors(connection, error) from error
