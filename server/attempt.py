"""One attempt at one device class, on a worker: fetch its files, build in a child process, report, deliver.

The worker's side of the fence: whatever the server refuses as superseded ends the build here, and so does a server that
does not answer for `SILENCE_S`: it has given the attempt to another worker by then.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from compiler.driver.events import event_json, event_of
from compiler.errors import CompilerError, ToolchainFailed
from compiler.fleet.machine import available_memory_bytes
from compiler.model.forks import ForkServer
from compiler.store.disk import storage_errors
from server.artifacts import pack
from server.builds import fork_server
from server.connection import Connection, Refusal
from server.inputs import lay_out
from server.process import BuildProcess
from server.schema import BuildSettings, JobRequest, Order, Outcome

SILENCE_S = 30.0
"""How long a worker goes on without an answer of the server."""

BEAT_S = 0.5
"""How often an attempt says that it lives, and so hears that it is to stop."""

POLL_S = 0.1
TOOLCHAINS = "toolchains"
"""Folder of a cache that holds downloads."""

REFUSED = 422
"""The server has looked at an artifact and says what is wrong with it."""

GONE = (401, 404, 409)
"""Answers that mean that the attempt is no longer wanted."""

_ORDERS: TypeAdapter[Order] = TypeAdapter(Order)
_OUTCOMES: TypeAdapter[Outcome] = TypeAdapter(Outcome)


@dataclass(frozen=True)
class Call:
    """What the engine carries to a worker: an attempt's id, and the token that its order is to be had for."""

    attempt: str
    token: str


@dataclass
class Workplace:
    """What attempts on one worker share.

    Args:
        url: Where the worker reaches the server.
        folder: Where its files are: inputs by digest, caches by project, a folder for each attempt.
        slots: How many attempts it runs at a time.
        ca: File of the authority that signed the server's certificate.
        stopping: Set when the worker is to give up what it runs.
        forks: Where the processes of builds are forked from.
    """

    url: str
    folder: Path
    slots: int = 1
    ca: Path | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    forks: ForkServer = field(default_factory=fork_server)

    def cache(self, project: str) -> Path:
        """The cache of a project; what is timed is timed alone on this machine, whatever the project."""
        cache = self.folder / "cache" / project
        cache.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (cache / "timing").symlink_to(_timing_folder(), target_is_directory=True)
        return cache


def _timing_folder() -> Path:
    """The gate of everything that this user measures on this machine: whatever builds here waits at it."""
    folder = Path(tempfile.gettempdir()) / f"fleetc-timing-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    return folder


def run_call(text: str, workplace: Workplace) -> None:
    """Runs the attempt that a call names, to its end.

    Raises:
        Unreachable: The server does not answer any more; it will give the attempt up.
    """
    call = Call(**json.loads(text))
    connection = Connection(
        workplace.url, call.token, ca=workplace.ca, patience_s=SILENCE_S, stopping=workplace.stopping
    )
    try:
        order = _ORDERS.validate_python(connection.get(f"/v1/attempts/{call.attempt}"))
        outcome = _run(connection, call, order, workplace)
        connection.post(f"/v1/attempts/{call.attempt}/outcome", _OUTCOMES.dump_python(outcome, mode="json"))
    except Refusal as refusal:
        if refusal.status not in GONE:
            raise


def _run(connection: Connection, call: Call, order: Order, workplace: Workplace) -> Outcome:
    """Builds and delivers; what goes wrong on the worker itself, such as a full disk, is an outcome too."""
    attempts = workplace.folder / "attempts"
    try:
        with storage_errors(workplace.folder):
            attempts.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=attempts, ignore_cleanup_errors=True) as folder:
                return _Attempt(connection, call, order, workplace, Path(folder)).build()
    except CompilerError as error:
        return Outcome(error.exit_code, error=error.to_dict())


class _Attempt:
    """An attempt whose order is known."""

    def __init__(self, connection: Connection, call: Call, order: Order, workplace: Workplace, folder: Path) -> None:
        self._connection, self._place, self._token = connection, f"/v1/attempts/{call.attempt}", call.token
        self._order, self._workplace, self._folder = order, workplace, folder
        self._began, self._beat = time.monotonic(), time.monotonic()

    def build(self) -> Outcome:
        """Builds and delivers."""
        files = self._folder / "inputs"
        files.mkdir()
        fleet = lay_out(files, self._request(), self._fetch())
        process = BuildProcess(self._workplace.forks, self._arguments(fleet), self._folder, self._shared_cache())
        try:
            code = self._watch(process)
            if code is None:
                process.end()
                return self._stopped()
            outcome = self._outcome(code, process.result())
        except BaseException:
            process.end()
            raise
        process.close()
        self._deliver()
        return outcome

    def _request(self) -> JobRequest:
        return JobRequest(self._order.fleet, self._order.files, settings=self._order.settings)

    def _fetch(self) -> dict[str, Path]:
        """The job's files by digest; those that an earlier attempt fetched are here."""
        folder = self._workplace.folder / "inputs" / self._order.project
        found: dict[str, Path] = {}
        for digest in sorted(set(self._order.files.values())):
            found[digest] = folder / digest
            if not found[digest].is_file():
                self._connection.download(f"{self._place}/blobs/{digest}", found[digest])
            self._report([])
        return found

    def _arguments(self, fleet: Path) -> list[str]:
        settings: BuildSettings = self._order.settings
        given = {
            "--out": self._folder / "dist",
            "--cache": self._cache().absolute(),
            "--device": self._order.device,
            "--jobs": 1,
            "--repeat": settings.repeat,
            "--search": settings.search.value,
            "--search-budget": settings.search_budget,
            "--precision": settings.precision,
            "--prune": settings.prune,
            "--recover": settings.recover_minutes,
            "--build-memory": self._memory_mib(),
        }
        # one text for option and value: what a stranger gave is never an option of its own
        options = [f"{name}={value}" for name, value in given.items() if value not in ("", None)]
        options += [f"--target={name}" for name in settings.targets]
        options += [f"--skip-pass={name}" for name in settings.skip_passes]
        options += ["--strict"] if settings.strict else []
        return ["build", str(fleet), "--json", "--json-events", "--no-report", *options]

    def _cache(self) -> Path:
        """The worker's cache of the project; an empty one where nothing of earlier builds is to be used."""
        usual = self._workplace.cache(self._order.project)
        if not self._order.from_nothing:
            return usual
        empty = self._folder / "cache"
        empty.mkdir()
        for shared in ("timing", TOOLCHAINS):  # one gate for all that is timed here; downloads are no results
            (usual / shared).mkdir(exist_ok=True)
            (empty / shared).symlink_to((usual / shared).absolute(), target_is_directory=True)
        return empty

    def _shared_cache(self) -> dict[str, str]:
        """The server's cache of the project, for what other workers have finished.

        The token is of this attempt alone and ends with it. It is in the environment: others may read a command line.
        """
        key = self._folder / "server.pub"
        key.write_text(self._order.trusted_key, encoding="ascii")
        ca = self._workplace.ca
        return {
            "FLEETC_REMOTE_CACHE": f"{self._connection.url}{self._place}/cache",
            "FLEETC_REMOTE_CACHE_TOKEN": self._token,
            "FLEETC_TRUSTED_KEYS": str(key.absolute()),
            **({"FLEETC_REMOTE_CACHE_CA": str(ca.absolute())} if ca else {}),
        }

    def _memory_mib(self) -> int:
        """A build's share of the machine; 0, the compiler's own limit, where it has the machine for itself."""
        share = available_memory_bytes() * 9 // 10 // self._workplace.slots
        return 0 if self._workplace.slots == 1 else share >> 20

    def _watch(self, process: BuildProcess) -> int | None:
        """Reports what the build says until it ends; None where it is to be stopped."""
        while True:
            code = process.exit_code()
            lines = process.lines(wait_s=0 if code is not None else POLL_S)
            if self._report(_events(lines)) or self._workplace.stopping.is_set():
                return None
            if code is not None and not lines:
                return code
            if self._order.deadline_s and time.monotonic() - self._began > self._order.deadline_s:
                process.end()
                raise ToolchainFailed(
                    f"the build did not finish within {self._order.deadline_s:g} s",
                    where=self._order.device,
                    remedy="Allow more with --deadline, or build fewer candidates (--search-budget).",
                )

    def _report(self, events: list[str]) -> bool:
        """Sends events, or that this attempt lives. Returns whether it is to stop."""
        if not events and time.monotonic() - self._beat < BEAT_S:
            return False
        self._beat = time.monotonic()
        answer = self._connection.post(f"{self._place}/news", {"events": events[:1000]})
        return bool(answer["stop"]) or (len(events) > 1000 and self._report(events[1000:]))

    def _outcome(self, code: int, result: dict[str, Any]) -> Outcome:
        rows = [row for row in result.get("devices") or () if isinstance(row, dict)]
        figures = {name: value for name, value in rows[0].items() if name not in ("folder", "error")} if rows else None
        error = (rows[0].get("error") if rows else None) or ({**result} if "error" in result else None)
        known = ("error", "exit_code", "what", "where", "remedy")
        if error is not None:
            error = {name: self._plain(error[name]) for name in known if name in error}
            code = int(error.get("exit_code", code))
        return Outcome(code, error=error, figures=figures, seconds=round(time.monotonic() - self._began, 3))

    def _plain(self, value: Any) -> Any:
        """Messages without this worker's folders: the client knows its files by their names."""
        if not isinstance(value, str):
            return value
        return value.replace(f"{self._folder / 'inputs'}/", "").replace(f"{self._folder}/", "")

    def _stopped(self) -> Outcome:
        return Outcome(None, seconds=round(time.monotonic() - self._began, 3))

    def _deliver(self) -> None:
        out = self._folder / "dist"
        if not (out / "build.json").is_file():
            return
        tar = self._folder / "artifact.tar"
        pack(out, self._order.device, tar)
        try:
            self._connection.upload(f"{self._place}/artifact", tar)
        except Refusal as refusal:
            if refusal.status != REFUSED:
                raise
            raise refusal.error(self._connection.url) from refusal


def _events(lines: list[str]) -> list[str]:
    """The lines that are events of the compiler, as it writes them; what a library prints is none."""
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(event_json(event_of(line)))
    return found


def clear_attempts(folder: Path) -> None:
    """Removes what attempts of a killed worker left: their folders, and files that were being fetched."""
    shutil.rmtree(folder / "attempts", ignore_errors=True)
    for draft in folder.glob("inputs/*/.*"):
        draft.unlink(missing_ok=True)
