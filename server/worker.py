"""A worker of its own: joins a server with a certificate, builds what it is sent, and joins again when it must."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import dask
import distributed

from compiler.errors import ServerError
from compiler.store.disk import output_errors
from server.attempt import Workplace, clear_attempts
from server.builds import build_environment
from server.certificates import new_request
from server.connection import Connection, Refusal, Unreachable
from server.engine import QUIET, BuildWorker, worker_options
from server.inputs import TIMING
from server.labels import find_labels

PAUSE_S = 2.0
"""Between two attempts to join."""

log = logging.getLogger("fleetc.server")


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker is started.

    Args:
        name: Its name, of which the server has one.
        folder: Where its files are.
        slots: Builds that it runs side by side.
        labels: Labels beside those that it finds.
        has_timing: Whether it may measure.
    """

    name: str
    folder: Path
    slots: int
    labels: tuple[str, ...] = ()
    has_timing: bool = True


def default_name() -> str:
    """The machine's name, as a label may be written."""
    return socket.gethostname().lower()[:60]


def run_worker(connection: Connection, settings: WorkerSettings, *, ca: Path | None) -> None:
    """Runs a worker until it is told to stop.

    Raises:
        ServerError: The server takes no workers.
        Refusal: It refuses the key.
    """
    dask.config.set(QUIET)
    with output_errors(settings.folder):
        settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    clear_attempts(settings.folder)
    workplace = Workplace(connection.url, settings.folder, slots=settings.slots, ca=ca)
    workplace.forks.start(build_environment())
    labels = (find_labels() | set(settings.labels)) - (frozenset() if settings.has_timing else {TIMING})
    try:
        asyncio.run(_run(connection, settings, labels, workplace))
    finally:
        workplace.forks.close()


async def _run(connection: Connection, settings: WorkerSettings, labels: frozenset[str], workplace: Workplace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    is_first = True
    while not stop.is_set():
        try:
            await _work_once(connection, settings, labels, replace(workplace, stopping=threading.Event()), stop)
        except Refusal as refusal:
            if is_first:
                raise
            log.warning("the server refuses: %s", refusal)
        except (Unreachable, OSError) as error:
            log.warning("the server cannot be reached: %s", error)
        is_first = False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), PAUSE_S)


async def _work_once(
    connection: Connection, settings: WorkerSettings, labels: frozenset[str], workplace: Workplace, stop: asyncio.Event
) -> None:
    """Joins, and works until the server or this worker is stopped."""
    address, security = await asyncio.to_thread(_join, connection, settings)
    worker = BuildWorker(address, security=security, **worker_options(settings.name, labels, workplace))
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await worker
        log.info("joined %s as %s with %s", address, settings.name, " ".join(sorted(labels)))
        finished = asyncio.ensure_future(worker.finished())
        await asyncio.wait({finished, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        workplace.stopping.set()  # what runs is ended: the server gives it to another worker
        await worker.close(timeout=15)


def _join(connection: Connection, settings: WorkerSettings) -> tuple[str, distributed.Security]:
    folder = settings.folder / "tls"
    request = new_request(folder / "worker.key", settings.name)
    answer = connection.post("/v1/workers", {"name": settings.name, "csr": request.decode()})
    for name in ("certificate", "ca"):
        (folder / f"{name}.pem").write_text(answer[name], encoding="ascii")
    if not str(answer["address"]).startswith("tls://"):
        raise ServerError("the server's engine is not encrypted", where=str(answer["address"]))
    return answer["address"], security_of(folder / "ca.pem", folder / "certificate.pem", folder / "worker.key")


def security_of(ca: Path, certificate: Path, key: Path) -> distributed.Security:
    """Certificates on both sides of every connection of the engine."""
    return distributed.Security(
        require_encryption=True,
        tls_ca_file=str(ca),
        **{
            f"tls_{role}_{part}": str(file)
            for role in ("client", "scheduler", "worker")
            for part, file in (("cert", certificate), ("key", key))
        },
    )
