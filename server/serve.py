"""The server's process: opens the tables, starts engine and dispatcher, answers HTTP, and stops in order."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from compiler.errors import ServerError, UsageError
from compiler.store.disk import output_errors
from server.api.app import make_app
from server.api.site import Site
from server.attempt import Workplace, clear_attempts
from server.bell import Bell
from server.blobs import Blobs
from server.builds import build_environment
from server.certificates import server_certificate
from server.dispatch import Dispatcher, Rules
from server.engine import DaskEngine, folder_of
from server.housekeeping import KEEP, Retention, clear_drafts, start_housekeeping
from server.keys import create_key, list_keys
from server.labels import find_labels
from server.metrics import Metrics
from server.rate import RateLimit
from server.schema import Scope
from server.signing import rebuild_key, signing_key
from server.tables import Database, open_database
from server.worker import security_of

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
STOP_S = 10
"""How long open requests may take when the server is stopped."""


@dataclass(frozen=True)
class Settings:
    """How a server is started.

    Args:
        data: The data folder.
        host: Address it listens on.
        port: Port; 0 lets the system choose.
        database: URL of a PostgreSQL database; empty for SQLite in the data folder.
        slots: Builds that the embedded worker runs side by side; 0 for no embedded worker.
        labels: Further labels of the embedded worker.
        join: `HOST:PORT` where other workers join; empty for none.
        hosts: Further names by which it may be called.
        certificate: File of its certificate, and of the key to it; None for plain HTTP on the loopback, and elsewhere
            for one of the server's own authority.
        most_losses: Attempts of a device that may be lost.
        quota: Attempts that a project may have at a time; 0 for no bound.
        rate: Requests a second that a key may make; 0 for no bound.
        retention: What becomes of old artifacts and files.
        silence_s: How long an attempt may say nothing.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 8080
    database: str = ""
    slots: int = 1
    labels: tuple[str, ...] = ()
    join: str = ""
    hosts: tuple[str, ...] = ()
    certificate: tuple[Path, Path] | None = None
    most_losses: int = 5
    quota: int = 0
    rate: float = 200.0
    retention: Retention = KEEP
    silence_s: float = 30.0


@dataclass(frozen=True)
class Started:
    """What is said when the server is ready: its address, and the first key where one was made."""

    url: str
    key: str


def serve(settings: Settings, *, ready: Callable[[Started], None]) -> None:
    """Runs a server until it is told to stop.

    Args:
        settings: How.
        ready: Is told when requests are answered.

    Raises:
        UsageError: `--join` is no address.
        ServerError: The port or the data folder is in use, or the database cannot be opened.
    """
    with output_errors(settings.data):
        settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings = _encrypted(settings)
    listener = _listen(settings)
    database = open_database(settings.database, settings.data)
    try:
        key = _first_key(database)
        _run(settings, database, listener, ready=lambda url: ready(Started(url, key)))
    finally:
        database.close()
        listener.close()


def _run(settings: Settings, database: Database, listener: socket.socket, *, ready: Callable[[str], None]) -> None:
    clear_drafts(settings.data)
    url = _url(settings, listener)
    place = Workplace(url, folder_of(settings.data), slots=settings.slots, ca=_own_authority(settings))
    workplace = place if settings.slots else None
    if workplace is not None:
        clear_attempts(workplace.folder)
        workplace.forks.start(build_environment())
    labels = find_labels() | set(settings.labels) if workplace else frozenset[str]()
    engine = DaskEngine(workplace, labels, **_join(settings))
    bell, blobs = Bell(), Blobs(settings.data / "blobs", most_bytes=64 << 30)
    (settings.data / "blobs").mkdir(exist_ok=True)
    rules = Rules(most_losses=settings.most_losses, silence_s=settings.silence_s, quota=settings.quota)
    dispatcher = Dispatcher(database, engine, rules, bell)
    names = frozenset({*LOOPBACK, settings.host, *settings.hosts})
    site = Site(
        folder=settings.data,
        database=database,
        blobs=blobs,
        engine=engine,
        dispatcher=dispatcher,
        bell=bell,
        metrics=Metrics(database, engine),
        version=version("fleetc"),
        hosts=names,
        url=url,
        key=signing_key(settings.data),
        rebuilt_key=rebuild_key(settings.data),
        rate=RateLimit(settings.rate),
    )
    server = _Server(_config(settings, site), bell)
    dispatcher.start()
    start_housekeeping(site, settings.retention)
    threading.Thread(target=_say_when_ready, args=(server, lambda: ready(url)), daemon=True).start()
    try:
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again once all requests are answered
            server.run([listener])
    finally:
        dispatcher.stop()
        engine.close()
        place.forks.close()
        # what ran is not lost: the next server, or another worker, goes on from the last finished stage
        dispatcher.give_up_all("the server was stopped")


class _Server(uvicorn.Server):
    """Ends open event streams when it is told to stop, which would keep it running otherwise."""

    def __init__(self, config: uvicorn.Config, bell: Bell) -> None:
        super().__init__(config)
        self._bell = bell

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or Ctrl-C."""
        self._bell.close()
        super().handle_exit(sig, frame)


def _say_when_ready(server: uvicorn.Server, ready: Callable[[], None]) -> None:
    pause = threading.Event()
    while not server.started:
        if server.should_exit or pause.wait(0.02):
            return
    ready()


def _config(settings: Settings, site: Site) -> uvicorn.Config:
    certificate, key = settings.certificate or (None, None)
    return uvicorn.Config(
        make_app(site, version=site.version),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_S,
        ssl_certfile=certificate,
        ssl_keyfile=str(key) if key else None,
    )


def _encrypted(settings: Settings) -> Settings:
    """With a certificate of the server's own authority where other machines could listen and none was given."""
    if _is_loopback(settings.host) or settings.certificate is not None:
        return settings
    pair = server_certificate(settings.data / "tls", [settings.host, *settings.hosts, *LOOPBACK])
    return replace(settings, certificate=pair)


def _own_authority(settings: Settings) -> Path | None:
    """The authority of the server's certificate, where it is the server's own."""
    authority = settings.data / "tls" / "ca.pem"
    is_own = settings.certificate is not None and settings.certificate[0].parent == authority.parent
    return authority if is_own else None


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _listen(settings: Settings) -> socket.socket:
    try:
        return socket.create_server((settings.host, settings.port), backlog=256)
    except OSError as error:
        raise ServerError(
            f"cannot listen: {error.strerror}",
            where=f"{settings.host}:{settings.port}",
            remedy="Choose another --port; 0 lets the system choose.",
        ) from error


def _url(settings: Settings, listener: socket.socket) -> str:
    scheme = "https" if settings.certificate else "http"
    host = settings.hosts[0] if settings.hosts else settings.host
    return f"{scheme}://{host}:{listener.getsockname()[1]}"


def _join(settings: Settings) -> dict[str, Any]:
    """Where other workers join: always with certificates on both sides."""
    if not settings.join:
        return {}
    host, _, port = settings.join.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(
            f"{settings.join!r} is no HOST:PORT", where="--join", remedy="For example --join 0.0.0.0:8786."
        )
    folder = settings.data / "tls"
    certificate, key = server_certificate(folder, [settings.host, *settings.hosts, *LOOPBACK])
    return {"listen": f"tls://{settings.join}", "security": security_of(folder / "ca.pem", certificate, key)}


def _first_key(database: Database) -> str:
    if list_keys(database):
        return ""
    return create_key(database, "first", project="default", scopes=list(Scope))


def write_client_file(path: Path, started: Started) -> None:
    """Notes the address, and the first key, for commands of the same user on this machine.

    Args:
        path: The file; nobody else may read it.
        started: The server.
    """
    earlier: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        earlier = dict(json.loads(path.read_text(encoding="utf-8")))
    value = {"server": started.url, "key": started.key or earlier.get("key", "")}
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(value), encoding="utf-8")
        draft.replace(path)


def log_as_json() -> None:
    """The server's log on stderr, one JSON document per line."""
    for name, level in (("fleetc", logging.INFO), ("uvicorn.error", logging.ERROR), ("distributed", logging.ERROR)):
        handler = logging.StreamHandler(sys.stderr)  # one for each: Dask raises the level of its own
        handler.setFormatter(_JsonLines())
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


class _JsonLines(logging.Formatter):
    """One record as one JSON document."""

    def format(self, record: logging.LogRecord) -> str:
        value = {"at": record.created, "level": record.levelname.lower(), "text": record.getMessage()}
        if record.exc_info:
            value["trace"] = self.formatException(record.exc_info)
        return json.dumps(value, ensure_ascii=False)
