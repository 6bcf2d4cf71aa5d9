"""`fleetc submit`: uploads what a fleet file names, asks for its build, and where it is to, waits and delivers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compiler.cli.options import FILE, FOLDER, events_option, request_options
from compiler.cli.output import Session, print_json
from compiler.errors import Interrupted
from server.commands.options import F, calls_server
from server.commands.text import job_text, state_text, submitted_text

if TYPE_CHECKING:
    from server.connection import Connection

SETTINGS = (
    *("targets", "precision", "prune", "recover_minutes", "skip_passes"),
    *("search", "search_budget", "repeat", "strict"),
)
"""Options of `fleetc build` that a job takes."""

REPORT = "compiler.artifact.report.plots"
"""What delivering needs, and takes a second to import: that is done while the server builds."""


def _seconds(name: str, variable: str, text: str) -> Callable[[F], F]:
    kind = click.FloatRange(min=0, min_open=True)
    return click.option(name, variable, type=kind, default=None, metavar="SECONDS", help=text)


@click.command()
@click.argument("source", type=FILE)
@click.option("--wait", is_flag=True, help="Wait for the end, deliver into --out, and end as `fleetc build` would.")
@click.option("--out", "-o", type=FOLDER, default=Path("dist"), show_default=True, help="With --wait: output folder.")
@request_options
@click.option("--repeat", type=click.IntRange(min=0), default=20, show_default=True, help="As for `fleetc build`.")
@click.option("--label", "labels", multiple=True, metavar="NAME", help="A label that the worker must have; repeatable.")
@click.option(
    "--priority", type=click.IntRange(-100, 100), default=0, show_default=True, help="Higher ones begin earlier."
)
@_seconds("--deadline", "deadline_running_s", "Longest time one attempt may run.")
@_seconds("--queue-deadline", "deadline_queued_s", "Longest time a device may wait for its first attempt.")
@click.option(
    "--reproduce",
    is_flag=True,
    help="Build what was delivered of these inputs once more, from nothing and on another worker: a second signature, "
    "or the files that differ.",
)
@click.option("--idempotency-key", default="", metavar="TEXT", help="The same text again gives the same job.")
@events_option
@calls_server
def submit(
    session: Session,
    connection: Connection,
    /,
    source: Path,
    wait: bool,
    out: Path,
    as_json: bool,
    idempotency_key: str,
    **options: Any,
) -> None:
    """Submit SOURCE, a fleet file, to the build server."""
    from uuid import uuid4

    from server.client import job_request, upload

    settings = {name: options.pop(name) for name in SETTINGS}
    request, files = job_request(source, settings=settings, **options)
    for digest, file in files.items():
        upload(connection, file, digest, progress=lambda received: None)
    # a text of its own for each call: an answer that is lost on the way does not submit the job twice
    headers = {"Idempotency-Key": idempotency_key or uuid4().hex}
    job = connection.post("/v1/jobs", request, headers=headers)
    if not wait:
        print_json(job) if as_json else click.echo(submitted_text(connection.url, job))
        return
    session.tell(f"job {job['id']} at {connection.url}")
    threading.Thread(target=import_module, args=[REPORT], daemon=True).start()
    _deliver(session, connection, wait_for_end(session, connection, job["id"]), out, as_json=as_json)


def wait_for_end(session: Session, connection: Connection, job: str) -> dict[str, Any]:
    """Follows a job to its end."""
    from server.client import follow

    try:
        for followed in follow(connection, job):
            _show(session, followed)
    except KeyboardInterrupt:
        session.tell(f"the job goes on; `fleetc job {job} --follow` shows it, `fleetc cancel {job}` ends it")
        raise
    return dict(connection.get(f"/v1/jobs/{job}"))


def _show(session: Session, followed: Any) -> None:
    payload = followed.payload
    if followed.event is not None:
        session.sink(followed.event)
    elif followed.kind == "device-state" and not session.as_events:
        session.tell(f"{payload['device']}: {state_text(payload)}")


def _deliver(session: Session, connection: Connection, job: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """Fetches what was built, prints it, and ends as `fleetc build` would."""
    from server.client import fetch, raise_failures

    delivered = fetch(connection, job, out)
    value = {"out": str(out), "job": job["id"], "devices": job["devices"]}
    if as_json:
        session.partial.update(value)
    else:
        click.echo(job_text(job))
        click.echo(f"{len(delivered)} of {len(job['devices'])} device classes in {out}")
    if job["exit_code"] == Interrupted.exit_code:
        session.tell(f"job {job['id']} was cancelled")
        raise click.exceptions.Exit(Interrupted.exit_code)
    raise_failures(job, str(out))
    if as_json:
        print_json(value)
