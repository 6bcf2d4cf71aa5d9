"""`fleetc serve`: artifacts answer requests until they are told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compiler.target import DataError, TargetUnavailable
from serving.ladder import SLO_MS

if TYPE_CHECKING:
    from serving.app import Server
    from serving.model import ServedModel

HOST, PORT = "127.0.0.1", 8000
PACKAGES = ("httptools", "prometheus_client", "starlette", "uvicorn", "uvloop")
GRPC_PACKAGES = ("grpc", "tritonclient")
BACKLOG = 1024
KEPT_S = 75
"""Seconds that a connection may be idle: longer than clients and proxies keep theirs, so that they close it, not we."""

DRAIN_S = 30
"""Seconds that requests have to be answered after SIGTERM."""


@click.command()
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--name", help="What clients call the model; the first artifact's folder by default.")
@click.option("--host", default=HOST, show_default=True, help="Address to listen at; 0.0.0.0 for every network.")
@click.option("--port", default=PORT, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--grpc-port", type=click.IntRange(0, 65535), help="Answer over gRPC, too; 0 takes a free port.")
@click.option(
    "--slo-ms",
    type=click.FloatRange(min=0.1),
    help=f"Time of a request that says nothing; the fleet file's, or {SLO_MS:g}.",
)
def serve(
    artifacts: tuple[Path, ...], name: str | None, host: str, port: int, grpc_port: int | None, slo_ms: float | None
) -> None:
    """Answer inference requests with ARTIFACTS, builds of one model: the Open Inference Protocol over HTTP and gRPC.

    The most accurate build that keeps every deadline answers; a cheaper one steps in under load.
    """
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise TargetUnavailable(f"{', '.join(missing)} is not installed", remedy="pip install 'fleetc[serve]'")
    if grpc_port is not None and (lacks := [package for package in GRPC_PACKAGES if find_spec(package) is None]):
        raise TargetUnavailable(f"{', '.join(lacks)} is not installed", remedy="pip install 'fleetc[grpc]'")
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        grpc_at = None if grpc_port is None else f"{host}:{grpc_port}"
        runner.run(_serve(artifacts, name or artifacts[0].resolve().name, (host, port), grpc_at, slo_ms))


async def _serve(
    folders: Sequence[Path], name: str, at: tuple[str, int], grpc_at: str | None, slo_ms: float | None
) -> None:
    with _listen(*at) as listener:
        await _answer(listener, grpc_at, folders, name, slo_ms)


async def _answer(
    listener: socket.socket, grpc_at: str | None, folders: Sequence[Path], name: str, slo_ms: float | None
) -> None:
    from serving.app import Server
    from serving.builds import read_builds
    from serving.control import offering_control
    from serving.metrics import Metrics
    from serving.model import ServedModel

    served = read_builds(folders)
    builds = served.builds
    slo_s = slo_ms / 1e3 if slo_ms else served.slo_s or SLO_MS / 1e3
    limits_s = [gate.limit / 1e3 for build in builds for gate in build.gates if gate.name == "latency"]
    metrics = Metrics([slo_s, *limits_s])
    model = ServedModel(name, folders, slo_s=slo_s, metrics=metrics)
    await model.load()
    at = listener.getsockname()
    url = f"http://{at[0]}:{at[1]}"
    with offering_control(url, at[1]) as control:
        try:
            async with _grpc(model, grpc_at) as also:
                click.echo(f"serving {name} ({', '.join(build.name for build in builds)}) on {url}{also}")
                await _run(Server({name: model}, metrics, control.token), listener)
        finally:
            await model.unload()


@contextlib.asynccontextmanager
async def _grpc(model: ServedModel, address: str | None) -> AsyncIterator[str]:
    """The gRPC front while the block runs, where one is asked for; gives the words for where it is."""
    if address is None:
        yield ""
        return
    from serving.grpc_front import GrpcFront

    front = GrpcFront({model.name: model})
    port = await front.start(address)
    try:
        yield f" and grpc://{address.rpartition(':')[0]}:{port}"
    finally:
        await front.stop(DRAIN_S)


async def _run(server: Server, listener: socket.socket) -> None:
    """Answers until a signal comes, and then what was let in."""
    import uvicorn

    config = uvicorn.Config(
        server.app(),
        log_level="warning",
        access_log=False,
        backlog=BACKLOG,
        lifespan="off",
        timeout_keep_alive=KEPT_S,
        timeout_graceful_shutdown=DRAIN_S,
    )

    class Stopping(uvicorn.Server):
        """Stops on SIGTERM and SIGINT as they come, and ends as any command does."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.handle_exit, number, None)
            try:
                yield
            finally:
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.remove_signal_handler(number)

    await Stopping(config).serve(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """The socket, before anything is loaded: a port that is taken is known at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio sends at once (TCP_NODELAY) only on sockets that say they are TCP: 40 ms an answer otherwise
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise DataError(
            f"{host}:{port} cannot be listened at: {error.strerror}",
            where="--port",
            remedy="Choose another --port, or stop what listens there.",
        ) from error
    return listener
