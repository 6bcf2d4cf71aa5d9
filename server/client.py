"""What the commands do with a server: upload what a fleet file names, submit, follow, fetch."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from compiler import load_fleet
from compiler.driver.events import Event, event_of
from compiler.errors import ArtifactError, CompilerError, FleetError, FleetFailed, ServerError, from_dict
from compiler.fleet import Fleet
from compiler.fleet.data import is_function
from compiler.fleet.profile import is_path
from compiler.store.atomic import write_atomic
from compiler.store.disk import output_errors
from server.artifacts import BUILD, merge_builds, unpack
from server.connection import Connection, Refusal, Unreachable
from server.paths import path_problem

PART_BYTES = 8 << 20
"""How much one request of an upload brings: so much is sent again at most where a connection breaks."""

TRIES = 20
"""Broken connections in a row, with nothing gained between, before an upload is given up."""

RECONNECT_S = 0.5

FOLLOW_S = 120.0
"""How long who follows a job waits for a server that is being started again."""


@dataclass(frozen=True)
class Followed:
    """One event of a job: its kind, what it says, and the compiler's event where it is one."""

    kind: str
    payload: dict[str, Any]
    event: Event | None


def load_client_file(path: Path) -> dict[str, str]:
    """Address and key as `fleetc server` of the same user noted them; empty where there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: str(value[name]) for name in ("server", "key") if value.get(name)}


def connect(url: str, key: str, *, ca: Path | None = None) -> Connection:
    """A server that answers.

    Raises:
        ServerError: No address or no key is known.
    """
    if not url or not key:
        raise ServerError(
            "no server is known",
            where="--server",
            remedy="Start `fleetc server` here, or give --server URL and --key (FLEETC_SERVER, FLEETC_KEY).",
        )
    return Connection(url, key, ca=ca, patience_s=5.0)


def say_errors(connection: Connection, error: Refusal | Unreachable) -> CompilerError:
    """What a call came to, as one of our errors."""
    if isinstance(error, Refusal):
        return error.error(connection.url)
    return ServerError(
        f"the server cannot be reached: {error}", where=connection.url, remedy="See whether `fleetc server` runs there."
    )


def list_files(path: Path, fleet: Fleet) -> dict[str, Path]:
    """Every file that a fleet file names, by its path relative to it.

    Raises:
        FleetError: One lies outside of the fleet file's folder: the server could not have it in the same place.
    """
    folder = Path(os.path.abspath(path.parent))  # noqa: PTH100  links stay what they are
    named = [fleet.model, *_weights(fleet.model)]
    if fleet.calibration is not None:
        named += _data(fleet.calibration.path)
    if fleet.evaluation is not None:
        more = (fleet.evaluation.images, fleet.evaluation.classes)
        named += _data(fleet.evaluation.path) + [file for one in more if one for file in _data(one)]
        if is_function(fleet.evaluation.task):
            named += _data(folder / fleet.evaluation.task)
    named += [Path(device.profile) for device in fleet.devices.values() if is_path(device.profile)]
    files: dict[str, Path] = {}
    for file in named:
        name = PurePosixPath(os.path.relpath(file, folder)).as_posix()
        if path_problem(name):
            raise FleetError(
                f"{str(file)!r} lies outside of the fleet file's folder, or its name is no plain path",
                where=str(path),
                remedy="Put it, or a link to it, below the folder of the fleet file.",
            )
        files[name] = file
    return files


def _data(path: Path) -> list[Path]:
    """The files of a place that a fleet file names: a file, a folder, or the module of `module:function`."""
    if is_function(path.name):
        module = path.with_name(path.name.partition(":")[0].replace(".", "/") + ".py")
        return [module] if module.is_file() else []
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _weights(model: Path) -> list[Path]:
    """Files of external data beside a model."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    try:
        proto = onnx.load(model, load_external_data=False)
    except Exception:
        return []
    places = {ExternalDataInfo(one).location for one in proto.graph.initializer if uses_external_data(one)}
    return [model.parent / place for place in sorted(places) if (model.parent / place).is_file()]


def upload(connection: Connection, file: Path, digest: str, *, progress: Callable[[int], None]) -> None:
    """Brings a file to the server, from where an earlier upload of it broke; nothing where it is there.

    Raises:
        Refusal: The server refuses it.
        Unreachable: The connection broke again and again.
    """
    total, failures = file.stat().st_size, 0
    state = connection.get(f"/v1/blobs/{digest}/parts")
    with file.open("rb") as stream:
        while not state["complete"]:
            first = state["received"]
            stream.seek(first)
            part = stream.read(PART_BYTES)
            try:
                state = connection.upload_part(f"/v1/blobs/{digest}", part, first=first, total=total)
                failures = 0
            except (Unreachable, Refusal) as error:
                again = isinstance(error, Unreachable) or error.status in (409, 416)
                failures += 1
                if not again or failures > TRIES:
                    raise
                time.sleep(RECONNECT_S)
                state = connection.get(f"/v1/blobs/{digest}/parts")
                failures = 0 if state["received"] > first else failures
            progress(state["received"])


def job_request(path: Path, *, settings: dict[str, Any], **more: Any) -> tuple[dict[str, Any], dict[str, Path]]:
    """What is submitted for a fleet file, and the files to upload by SHA-256.

    Raises:
        FleetError: The fleet file is not valid, or names files outside of its folder.
    """
    files = list_files(path, load_fleet(path))
    digests = {name: _digest(file) for name, file in files.items()}
    fleet = {"name": path.name, "text": path.read_text(encoding="utf-8-sig")}
    request = {"fleet": fleet, "files": digests, "settings": settings, **more}
    return request, {digests[name]: file for name, file in files.items()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def follow(connection: Connection, job: str) -> Iterator[Followed]:
    """A job's events to its end, across broken connections.

    Raises:
        Refusal: The server refuses.
        Unreachable: The server does not answer any more.
    """
    last, connection.patience_s = 0, max(connection.patience_s, FOLLOW_S)
    while True:
        try:
            for identity, kind, text in connection.events(f"/v1/jobs/{job}/events", last=last):
                last = identity or last
                if kind == "resync":
                    last = 0
                    continue
                yield _followed(kind, text)
                if kind == "job-finished":
                    return
        except Unreachable:
            time.sleep(RECONNECT_S)
        if connection.get(f"/v1/jobs/{job}")["finished"] is not None and not last:
            return


def _followed(kind: str, text: str) -> Followed:
    payload: dict[str, Any] = json.loads(text)
    known = {name: value for name, value in payload.items() if name != "attempt"}
    try:
        event = event_of(json.dumps(known)) if kind not in SERVER_EVENTS else None
    except ValueError:
        event = None
    return Followed(kind, payload, event)


SERVER_EVENTS = frozenset({"job-queued", "device-state", "job-finished"})


def fetch(connection: Connection, job: dict[str, Any], out: Path, *, devices: tuple[str, ...] = ()) -> list[str]:
    """Delivers a job's artifacts into an output folder, as `fleetc build` leaves one. Returns the devices delivered.

    Raises:
        Refusal: The server refuses.
        Unreachable: The server does not answer.
        ArtifactError: A folder there is none of ours, or an artifact is not whole.
        OutputError: The folder cannot be written.
    """
    from compiler.artifact.report import read_build, write_report

    delivered, builds = list[str](), list[str]()
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for device in _selected(job, devices):
            with TemporaryDirectory(dir=out, prefix=".fetch-") as scratch:
                build = _fetch_device(connection, job["id"], device, Path(scratch), out)
            builds.append(build)
            delivered += [device["name"]] if device["manifest"] else []
        text = merge_builds([*_present(out, job), *builds], order=[one["name"] for one in job["devices"]])
        if text:
            write_atomic(out / BUILD, text.encode())
            write_report(read_build(out))
    return delivered


def _selected(job: dict[str, Any], devices: tuple[str, ...]) -> list[dict[str, Any]]:
    unknown = sorted(set(devices) - {device["name"] for device in job["devices"]})
    if unknown:
        raise FleetError(f"the job has no device {', '.join(unknown)}", where="--device")
    return [device for device in job["devices"] if not devices or device["name"] in devices]


def _fetch_device(connection: Connection, job: str, device: dict[str, Any], scratch: Path, out: Path) -> str:
    """Puts one device's artifact into its place; one that failed leaves none of an earlier build behind."""
    from compiler.store.atomic import replacing_folder

    tar, name = scratch / "artifact.tar", device["name"]
    try:
        connection.download(f"/v1/jobs/{job}/artifacts/{name}.tar", tar)
    except Refusal as refusal:
        if refusal.status != 404:
            raise
        return ""
    facts = unpack(tar, name, scratch)
    final = out / name
    if final.exists() and not (final / "manifest.json").is_file():
        raise ArtifactError("no artifact of fleetc is there, and it would be replaced", where=str(final))
    if facts.manifest and facts.manifest != device["manifest"]:
        raise ArtifactError("the artifact is not the one that the job names", where=name, remedy="Fetch it again.")
    if facts.manifest:
        with replacing_folder(final) as draft:
            (scratch / name).rename(draft)
    return facts.build


def _present(out: Path, job: dict[str, Any]) -> list[str]:
    """The folder's own `build.json`, where it is of the same fleet: other devices stay in it."""
    try:
        text = (out / BUILD).read_text(encoding="utf-8")
        return [text] if json.loads(text)["fleet"] == job["fleet"] else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def raise_failures(job: dict[str, Any], where: str) -> None:
    """Raises what `fleetc build` would have raised.

    Raises:
        CompilerError: The device's own error, or one for all that failed.
    """
    failed = {device["name"]: from_dict(device["error"]) for device in job["devices"] if device["error"]}
    if not failed:
        return
    if len(job["devices"]) == 1:
        raise next(iter(failed.values()))
    lines = "\n".join(f"  - {name}: {error}".replace("\n", "\n    ") for name, error in failed.items())
    all_failed = len(failed) == len(job["devices"])
    cls = type(next(iter(failed.values()))) if all_failed else FleetFailed
    raise cls(f"{len(failed)} of {len(job['devices'])} devices failed:\n{lines}", where=where)
