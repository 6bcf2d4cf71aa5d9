"""The commands that the build server adds to `fleetc`; what they need is imported when they run."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from platformdirs import user_config_path, user_data_path

from compiler.cli.options import FILE, FOLDER, events_option, json_option
from compiler.cli.output import Session, print_json
from compiler.errors import Interrupted, ServerError
from compiler.plan import SearchEffort

if TYPE_CHECKING:
    from server.connection import Connection

F = TypeVar("F", bound=Callable[..., Any])

NEEDED = ("cryptography", "distributed", "fastapi", "prometheus_client", "sqlalchemy", "urllib3", "uvicorn")
POLL_S = 0.5


def _client_file() -> Path:
    return user_config_path("fleetc") / "client.json"


def server_options(function: F) -> F:
    """Which server, and by which key."""
    for option in (
        click.option(
            "--server",
            "url",
            envvar="FLEETC_SERVER",
            default="",
            metavar="URL",
            help="The server; by default this machine's.",
        ),
        click.option("--key", envvar="FLEETC_KEY", default="", metavar="KEY", help="The key; by default this user's."),
        click.option(
            "--ca", envvar="FLEETC_SERVER_CA", type=FILE, help="Certificate of the authority that signed the server's."
        ),
        click.option(
            "--client-file",
            envvar="FLEETC_CLIENT_FILE",
            type=FILE,
            default=_client_file,
            hidden=True,
            help="Where `fleetc server` of this user notes its address and key.",
        ),
    ):
        function = option(function)
    return function


def _connect(options: dict[str, Any]) -> Connection:
    _require_extra()
    from server.client import connect, load_client_file

    noted = load_client_file(options.pop("client_file"))
    url, key = options.pop("url") or noted.get("server", ""), options.pop("key") or noted.get("key", "")
    return connect(url, key, ca=options.pop("ca"))


def _require_extra() -> None:
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise ServerError(
            f"packages of the build server are not installed: {', '.join(absent)}",
            where="fleetc",
            remedy="Install them: pip install 'fleetc[server]'.",
        )


def _talk(function: F) -> F:
    """A command whose calls of the server fail with our errors."""
    from functools import wraps

    @wraps(function)
    def run(session: Session, /, **options: Any) -> Any:
        connection = _connect(options)
        from server.client import say_errors
        from server.connection import Refusal, Unreachable

        try:
            return function(session, connection, **options)
        except (Refusal, Unreachable) as error:
            raise say_errors(connection, error) from error

    return run  # type: ignore[return-value]


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
@click.option("--client-file", envvar="FLEETC_CLIENT_FILE", type=FILE, default=_client_file, hidden=True)
@click.option("--join", default="", metavar="HOST:PORT", help="Where `fleetc worker` of other machines joins.")
@json_option
@click.pass_obj
def server(session: Session, /, client_file: Path, as_json: bool, **options: Any) -> None:
    """Run the build server on this machine until Ctrl-C: HTTP API, page, and a worker."""
    _require_extra()
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
@click.option("--data", "folder", type=FOLDER, default=lambda: user_data_path("fleetc") / "worker", help="Its folder.")
@server_options
@click.pass_obj
def worker(session: Session, /, name: str, **options: Any) -> None:
    """Build for the build server on this machine, until Ctrl-C."""
    ca = options["ca"]
    chosen = {key: options.pop(key) for key in ("slots", "labels", "folder")}
    connection = _connect(options)
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


def _seconds(name: str, variable: str, text: str) -> Callable[[F], F]:
    kind = click.FloatRange(min=0, min_open=True)
    return click.option(name, variable, type=kind, default=None, metavar="SECONDS", help=text)


@click.command()
@click.argument("source", type=FILE)
@click.option("--wait", is_flag=True, help="Wait for the end, deliver into --out, and end as `fleetc build` would.")
@click.option("--out", "-o", type=FOLDER, default=Path("dist"), show_default=True, help="With --wait: output folder.")
@click.option("--device", "-d", "devices", multiple=True, metavar="NAME", help="Only this device; repeatable.")
@click.option("--precision", default="", metavar="NAME", help="As for `fleetc build`.")
@click.option("--prune", default="", metavar="HOW", help="As for `fleetc build`.")
@click.option(
    "--recover",
    "recover_minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="As for `fleetc build`.",
)
@click.option("--skip-pass", "skip_passes", multiple=True, metavar="PASS", help="As for `fleetc build`.")
@click.option(
    "--search",
    type=click.Choice([effort.value for effort in SearchEffort]),
    default=SearchEffort.QUICK.value,
    show_default=True,
    help="As for `fleetc build`.",
)
@click.option(
    "--search-budget",
    type=click.IntRange(min=1),
    default=24,
    show_default=True,
    metavar="TRIALS",
    help="As for `fleetc build`.",
)
@click.option("--repeat", type=click.IntRange(min=0), default=20, show_default=True, help="As for `fleetc build`.")
@click.option("--strict", is_flag=True, help="As for `fleetc build`.")
@click.option("--label", "labels", multiple=True, metavar="NAME", help="A label that the worker must have; repeatable.")
@click.option(
    "--priority", type=click.IntRange(-100, 100), default=0, show_default=True, help="Higher ones begin earlier."
)
@_seconds("--deadline", "deadline_running_s", "Longest time one attempt may run.")
@_seconds("--queue-deadline", "deadline_queued_s", "Longest time a device may wait for its first attempt.")
@click.option("--idempotency-key", default="", metavar="TEXT", help="The same text again gives the same job.")
@server_options
@json_option
@events_option
@click.pass_obj
@_talk
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

    names = ("precision", "prune", "recover_minutes", "skip_passes", "search", "search_budget", "repeat", "strict")
    settings = {name: options.pop(name) for name in names}
    request, files = job_request(source, settings=settings, **options)
    for digest, file in files.items():
        upload(connection, file, digest, progress=lambda received: None)
    # a text of its own for each call: an answer that is lost on the way does not submit the job twice
    headers = {"Idempotency-Key": idempotency_key or uuid4().hex}
    job = connection.post("/v1/jobs", request, headers=headers)
    if not wait:
        print_json(job) if as_json else click.echo(_submitted_text(connection.url, job))
        return
    session.tell(f"job {job['id']} at {connection.url}")
    _deliver(session, connection, _wait(session, connection, job["id"]), out, as_json=as_json)


def _wait(session: Session, connection: Connection, job: str) -> dict[str, Any]:
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
        session.tell(f"{payload['device']}: {_state_text(payload)}")


def _state_text(payload: dict[str, Any]) -> str:
    state = str(payload["state"]).replace("_", " ")
    if payload["state"] == "waiting_for_worker":
        return f"no worker has {', '.join(payload['waiting_for'])}; it waits for one"
    if payload["state"] == "running":
        return f"attempt {payload['attempt']} on {payload['worker']}"
    return f"{state}: {payload['why']}" if payload.get("why") else state


def _deliver(session: Session, connection: Connection, job: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """Fetches what was built, prints it, and ends as `fleetc build` would."""
    from server.client import fetch, raise_failures

    delivered = fetch(connection, job, out)
    value = {"out": str(out), "job": job["id"], "devices": job["devices"]}
    if as_json:
        session.partial.update(value)
    else:
        click.echo(_job_text(job))
        click.echo(f"{len(delivered)} of {len(job['devices'])} device classes in {out}")
    if job["exit_code"] == Interrupted.exit_code:
        session.tell(f"job {job['id']} was cancelled")
        raise click.exceptions.Exit(Interrupted.exit_code)
    raise_failures(job, str(out))
    if as_json:
        print_json(value)


@click.command()
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="Most that are listed.")
@server_options
@json_option
@click.pass_obj
@_talk
def jobs(session: Session, connection: Connection, /, limit: int, as_json: bool) -> None:
    """List the latest jobs of the build server, the newest first."""
    found = connection.get(f"/v1/jobs?limit={limit}")
    _print_list(found, ("job", "state", "fleet", "submitted", "devices"), _job_row, as_json=as_json)


def _job_row(job: dict[str, Any]) -> tuple[str, ...]:
    return job["id"], job["state"], job["fleet"], _when(job["created"]), _counts(job)


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--follow", is_flag=True, help="Show what happens until the job ends.")
@server_options
@json_option
@events_option
@click.pass_obj
@_talk
def job(session: Session, connection: Connection, /, job_id: str, follow: bool, as_json: bool) -> None:
    """Show one job of the build server."""
    found = _read(connection, job_id)
    if follow:
        found = _wait(session, connection, job_id)
    print_json(found) if as_json else click.echo(_job_text(found))


@click.command()
@click.argument("job_id", metavar="ID")
@server_options
@json_option
@click.pass_obj
@_talk
def cancel(session: Session, connection: Connection, /, job_id: str, as_json: bool) -> None:
    """Cancel a job; returns when nothing of it runs any more."""
    _read(connection, job_id)
    answer = connection.post(f"/v1/jobs/{job_id}/cancel?wait_s=30")
    if as_json:
        print_json(answer)
    else:
        click.echo(_job_text(answer["job"]))
    if answer["silent"]:
        raise ServerError(
            f"workers have not answered: {', '.join(answer['silent'])}",
            where=job_id,
            remedy="What they run is given up when they have been silent for long enough.",
        )


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--device", "-d", "devices", multiple=True, metavar="NAME", help="Only this device; repeatable.")
@click.option("--out", "-o", type=FOLDER, default=Path("dist"), show_default=True, help="Output folder.")
@server_options
@json_option
@click.pass_obj
@_talk
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


@click.command()
@server_options
@json_option
@click.pass_obj
@_talk
def workers(session: Session, connection: Connection, /, as_json: bool) -> None:
    """List the workers of the build server, with their labels."""
    _print_list(connection.get("/v1/workers"), ("worker", "running", "fleetc", "labels"), _worker_row, as_json=as_json)


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
@server_options
@json_option
@click.pass_obj
@_talk
def keys_create(session: Session, connection: Connection, /, as_json: bool, **options: Any) -> None:
    """Make a key and print it: it is shown this once."""
    made = connection.post("/v1/keys", options)
    print_json(made) if as_json else click.echo(made["key"])


@keys.command("list")
@server_options
@json_option
@click.pass_obj
@_talk
def keys_list(session: Session, connection: Connection, /, as_json: bool) -> None:
    """List the keys, without their secrets."""
    _print_list(connection.get("/v1/keys"), ("key", "name", "project", "scopes", "valid"), _key_row, as_json=as_json)


def _key_row(key: dict[str, Any]) -> tuple[str, ...]:
    return key["id"], key["name"], key["project"], " ".join(key["scopes"]), _end_text(key)


@keys.command("revoke")
@click.argument("key_id", metavar="KEY")
@server_options
@json_option
@click.pass_obj
@_talk
def keys_revoke(session: Session, connection: Connection, /, key_id: str, as_json: bool) -> None:
    """End a key now, by the id that `fleetc keys list` shows."""
    connection.call("DELETE", f"/v1/keys/{_quoted(key_id)}")
    print_json({"revoked": key_id}) if as_json else click.echo(f"{key_id} is revoked")


def _read(connection: Connection, job_id: str) -> dict[str, Any]:
    return dict(connection.get(f"/v1/jobs/{_quoted(job_id)}"))


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


def _submitted_text(url: str, job: dict[str, Any]) -> str:
    return f"job {job['id']} ({len(job['devices'])} device classes)\n{url}/jobs/{job['id']}"


def _job_text(job: dict[str, Any]) -> str:
    rows = [(one["name"], str(one["state"]).replace("_", " "), _detail(one)) for one in job["devices"]]
    head = f"job {job['id']}: {job['state']}, {job['fleet']}, submitted {_when(job['created'])}"
    return f"{head}\n{_table(rows, ('device', 'state', ''))}"


def _detail(device: dict[str, Any]) -> str:
    if device["waiting_for"]:
        return f"no worker has {', '.join(device['waiting_for'])}"
    if device["position"]:
        soon = f", about {device['estimate_s']:.0f} s" if device["estimate_s"] is not None else ""
        return f"number {device['position']} in the queue{soon}"
    if device["error"]:
        return str(device["error"]["what"]).splitlines()[0]
    if device["state"] == "running":
        return f"{device['stage'] or 'begins'} on {device['worker']}, attempt {device['attempt']}"
    figures = device["figures"] or {}
    return f"{figures.get('precision', '')}, {device['seconds']:.1f} s" if figures else ""


def _end_text(key: dict[str, Any]) -> str:
    if key["revoked"]:
        return "revoked"
    return f"until {_when(key['expires'])}" if key["expires"] else "for ever"


def _counts(job: dict[str, Any]) -> str:
    states = [str(one["state"]).replace("_", " ") for one in job["devices"]]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _print_list(
    found: list[dict[str, Any]],
    heads: tuple[str, ...],
    row: Callable[[dict[str, Any]], tuple[str, ...]],
    *,
    as_json: bool,
) -> None:
    """What the server lists, as it says it or as a table."""
    if as_json:
        print_json(found)
    else:
        click.echo(_table([row(entry) for entry in found], heads))


def _table(rows: Sequence[tuple[str, ...]], heads: tuple[str, ...]) -> str:
    from compiler.cli.text import table

    return table(rows, heads)
