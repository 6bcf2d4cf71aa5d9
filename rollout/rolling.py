"""`fleetc rollout` and `fleetc agent`: a build goes to a fleet group by group, and comes back by itself."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compiler.artifact.adapter import to_json
from compiler.cli.options import FILE, FOLDER, json_option
from compiler.cli.output import print_json
from compiler.errors import DataError, GateFailed, MissingError

if TYPE_CHECKING:
    from compiler.fleet.yamlfile import Document
    from rollout.controller import Controller
    from rollout.journal import Standing
    from rollout.repository import FleetRepository
    from rollout.spec import Spec

POLL_S = 5.0
DIGEST = re.compile("[0-9a-f]{64}")

file_argument = click.argument("file", type=FILE)
keys_option = click.option("--keys", type=FOLDER, help="Folder of the private keys; `keys` in the fleet's by default.")
poll_option = click.option("--poll-s", default=POLL_S, show_default=True, help="Seconds between two looks.")


@click.group()
def rollout() -> None:
    """Roll a build out to a fleet of devices, as FILE (rollout.yaml) says."""


@rollout.command()
@file_argument
@json_option
def plan(file: Path, as_json: bool) -> None:
    """Show which devices would get the build in which order, and what would stop it."""
    from rollout.rolling_text import plan_text
    from rollout.spec import divide

    spec, controller, document = _read(file, None)
    build = _build_of(spec, file)
    previous = controller.repository.assignment(spec.device_class).get("default")
    groups = divide(spec, controller.devices(spec), where=document.origin.path)
    if as_json:
        print_json({"build": build, "previous": previous, "groups": groups, "spec": to_json(spec)})
    else:
        click.echo(plan_text(spec, groups, build=build, previous=previous))


@rollout.command()
@file_argument
@keys_option
@poll_option
@json_option
def start(file: Path, keys: Path | None, poll_s: float, as_json: bool) -> None:
    """Begin a rollout, and see to it until it is finished, paused or rolled back.

    Killed, it goes on with `fleetc rollout resume`. Exit code 5 if it was rolled back.
    """
    from rollout.journal import Event

    spec, controller, document = _read(file, keys)
    with _alone(controller):
        controller.create(spec, _build_of(spec, file), document)
        controller.journal.append(Event.STARTED)
        _run(controller, poll_s, as_json)


@rollout.command()
@file_argument
@json_option
def status(file: Path, as_json: bool) -> None:
    """Show where a rollout stands, and what its groups show."""
    _, controller, _ = _read(file, None)
    _show(controller, controller.journal.standing(), as_json)


@rollout.command()
@file_argument
def pause(file: Path) -> None:
    """Begin no further group; devices that have the build keep it."""
    _order(file, "PAUSED", "running", "somebody paused it")


@rollout.command()
@file_argument
@keys_option
@poll_option
@json_option
def resume(file: Path, keys: Path | None, poll_s: float, as_json: bool) -> None:
    """Go on with a rollout that is paused, or whose `start` was killed."""
    from rollout.controller import refuse_other_plan
    from rollout.journal import Event, State

    spec, controller, document = _read(file, keys)
    standing = controller.journal.standing()
    refuse_other_plan(standing, spec, where=document.origin.path)
    with _alone(controller):
        if standing.state in (State.PAUSED, State.READY):
            controller.journal.append(Event.RESUMED)
        _run(controller, poll_s, as_json)


@rollout.command()
@file_argument
@keys_option
@poll_option
@json_option
def rollback(file: Path, keys: Path | None, poll_s: float, as_json: bool) -> None:
    """Send every device that has the build back to the one before; exit code 5 when all are."""
    _order(file, "ROLLBACK", "running paused ready", "somebody rolled it back")
    _, controller, _ = _read(file, keys)
    try:
        with _alone(controller):
            _run(controller, poll_s, as_json)
    except _Busy:
        click.echo("ordered: the process that sees to the rollout sends the devices back", err=True)


@rollout.command()
@click.argument("fleet", type=FOLDER)
@keys_option
def refresh(fleet: Path, keys: Path | None) -> None:
    """Sign the newest metadata of FLEET again, before it expires: once a week at least, while nothing is rolled out."""
    _repository_of(fleet, keys).refresh()
    click.echo(f"{fleet}: snapshot and timestamp are signed again")


@rollout.command("replace-key")
@click.argument("fleet", type=FOLDER)
@click.argument("role")
@keys_option
def replace_key(fleet: Path, role: str, keys: Path | None) -> None:
    """Give ROLE of FLEET a new key: root, targets, snapshot, timestamp, or a device class.

    For a key that was stolen or is old. It needs the private key of root; for a device class, that of targets.
    """
    _repository_of(fleet, keys).replace_key(role)
    click.echo(f"{fleet}: {role} has a new key; devices learn it at their next look")


def _repository_of(fleet: Path, keys: Path | None) -> FleetRepository:
    _require_tuf()
    from rollout.repository import FleetRepository

    repository = FleetRepository(fleet, keys)
    if not repository.classes:
        raise DataError("it holds no repository", where=str(fleet), remedy="`fleetc export --tuf` makes one.")
    return repository


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def agent(arguments: tuple[str, ...]) -> None:
    """Keep one verified build on this device, the one that its fleet assigns to it; --help shows the options."""
    _require_tuf()
    from rollout.device.__main__ import main

    sys.exit(main(arguments))


def _read(file: Path, keys: Path | None) -> tuple[Spec, Controller, Document]:
    _require_tuf()
    from rollout.controller import Controller
    from rollout.spec import read_spec

    spec, document = read_spec(file)
    fleet = file.parent / spec.fleet
    if not (fleet / "repository").is_dir():
        remedy = "`fleetc export --tuf FLEET ARTIFACT` makes one."
        raise DataError("the fleet has no repository", where=str(fleet), remedy=remedy)
    return spec, Controller(fleet, spec.name, keys=keys), document


def _build_of(spec: Spec, file: Path) -> str:
    """The digest of the build: written as it is, or of an artifact's manifest."""
    if DIGEST.fullmatch(spec.build):
        return spec.build
    manifest = file.parent / spec.build / "manifest.json"
    try:
        return hashlib.sha256(manifest.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"`build`: {error.strerror}", where=str(manifest), remedy="Name an artifact.") from error


def _order(file: Path, event: str, states: str, why: str) -> None:
    """Writes an order into the journal; a controller that runs finds it there."""
    from rollout.journal import Event

    _, controller, _ = _read(file, None)
    standing = controller.journal.standing()
    if standing.state not in states.split():
        raise DataError(f"the rollout {standing.name!r} is {standing.state}", where=str(file))
    controller.journal.append(Event[event], why=why)


class _Busy(DataError):
    """Another process sees to the rollouts of the fleet."""


@contextlib.contextmanager
def _alone(controller: Controller) -> Iterator[None]:
    """One process sees to the rollouts of a fleet."""
    from filelock import FileLock, Timeout

    place = controller.fleet / "rollouts" / ".controller.lock"
    place.parent.mkdir(exist_ok=True)
    lock = FileLock(place, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise _Busy(
            "another process sees to the rollouts of this fleet",
            where=str(controller.fleet),
            remedy="`fleetc rollout status` shows what it does; pause and rollback reach it.",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _run(controller: Controller, poll_s: float, as_json: bool) -> None:
    from rollout.journal import State
    from rollout.rolling_text import event_text

    said = 0

    def say(standing: Standing) -> None:
        nonlocal said
        for record in controller.journal.events()[said:]:
            click.echo(event_text(record), err=True)
        said = standing.lines

    standing = controller.run(poll_s=poll_s, say=say)
    _show(controller, standing, as_json)
    if standing.state == State.STOPPED:
        raise GateFailed(standing.why, where=standing.name, remedy="Every device that reports is on the build before.")


def _show(controller: Controller, standing: Standing, as_json: bool) -> None:
    from rollout.reports import read_reports
    from rollout.rolling_text import standing_text

    reports, problems = read_reports(controller.fleet)
    if as_json:
        groups = {name: standing.group_state(name) for name in standing.groups}
        print_json({**to_json(standing), "group_states": groups, "problems": problems})
    else:
        click.echo(standing_text(standing, reports, problems))


def _require_tuf() -> None:
    try:
        import tuf  # noqa: F401
    except ModuleNotFoundError as error:
        remedy = "Install it: pip install 'fleetc[rollout]'."
        raise MissingError("rollouts need the package tuf", remedy=remedy) from error
