"""`fleetc jobs`, `job`, `cancel` and `fetch`: what became of what was submitted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from compiler.cli.options import FOLDER, events_option
from compiler.cli.output import Session, print_json
from compiler.errors import ServerError
from server.commands.options import calls_server
from server.commands.submit import wait_for_end
from server.commands.text import job_text, print_list, state_counts, when

if TYPE_CHECKING:
    from server.connection import Connection


@click.command()
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="Most that are listed.")
@calls_server
def jobs(session: Session, connection: Connection, /, limit: int, as_json: bool) -> None:
    """List the latest jobs of the build server, the newest first."""
    found = connection.get(f"/v1/jobs?limit={limit}")
    print_list(found, ("job", "state", "fleet", "submitted", "devices"), _job_row, as_json=as_json)


def _job_row(job: dict[str, Any]) -> tuple[str, ...]:
    return job["id"], job["state"], job["fleet"], when(job["created"]), state_counts(job)


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--follow", is_flag=True, help="Show what happens until the job ends.")
@events_option
@calls_server
def job(session: Session, connection: Connection, /, job_id: str, follow: bool, as_json: bool) -> None:
    """Show one job of the build server."""
    found = _read(connection, job_id)
    if follow:
        found = wait_for_end(session, connection, job_id)
    print_json(found) if as_json else click.echo(job_text(found))


@click.command()
@click.argument("job_id", metavar="ID")
@calls_server
def cancel(session: Session, connection: Connection, /, job_id: str, as_json: bool) -> None:
    """Cancel a job; returns when nothing of it runs any more."""
    _read(connection, job_id)
    answer = connection.post(f"/v1/jobs/{job_id}/cancel?wait_s=30")
    session.partial.update(answer)  # where workers are silent, that goes into the same document
    if not as_json:
        click.echo(job_text(answer["job"]))
    if answer["silent"]:
        raise ServerError(
            f"workers have not answered: {', '.join(answer['silent'])}",
            where=job_id,
            remedy="What they run is given up when they have been silent for long enough.",
        )
    if as_json:
        print_json(answer)


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--device", "-d", "devices", multiple=True, metavar="NAME", help="Only this device; repeatable.")
@click.option("--out", "-o", type=FOLDER, default=Path("dist"), show_default=True, help="Output folder.")
@calls_server
def fetch(
    session: Session, connection: Connection, /, job_id: str, devices: tuple[str, ...], out: Path, as_json: bool
) -> None:
    """Deliver a job's artifacts into a folder, as `fleetc build` leaves them."""
    from server.client import fetch as fetch_job

    delivered = fetch_job(connection, _read(connection, job_id), out, devices=devices)
    if as_json:
        print_json({"out": str(out), "devices": delivered})
    else:
        click.echo(f"in {out}: {', '.join(delivered) or 'nothing was delivered by this job'}")


def _read(connection: Connection, job_id: str) -> dict[str, Any]:
    return dict(connection.get(f"/v1/jobs/{quote(job_id, safe='')}"))
