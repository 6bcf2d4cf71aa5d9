"""Which server a command talks to, and by which key; its refusals as our errors."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click
from platformdirs import user_config_path

from compiler.cli.options import FILE, json_option
from compiler.cli.output import Session
from compiler.errors import ServerError

if TYPE_CHECKING:
    from server.connection import Connection

F = TypeVar("F", bound=Callable[..., Any])

NEEDED = ("cryptography", "distributed", "fastapi", "prometheus_client", "sqlalchemy", "urllib3", "uvicorn")


def require_extra() -> None:
    """Refuses where packages of the extra `server` are not installed.

    Raises:
        ServerError: Some are not; all are named.
    """
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise ServerError(
            f"packages of the build server are not installed: {', '.join(absent)}",
            where="fleetc",
            remedy="Install them: pip install 'fleetc[server]'.",
        )


def client_file_option(function: F) -> F:
    """`--client-file`, where `fleetc server` of this user notes its address and key for the other commands."""
    return click.option(
        "--client-file",
        envvar="FLEETC_CLIENT_FILE",
        type=FILE,
        default=lambda: user_config_path("fleetc") / "client.json",
        hidden=True,
    )(function)


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
        client_file_option,
    ):
        function = option(function)
    return function


def connect(options: dict[str, Any]) -> Connection:
    """The server that `server_options` name; they are taken out of the options."""
    require_extra()
    from server.client import connect, load_client_file

    noted = load_client_file(options.pop("client_file"))
    url, key = options.pop("url") or noted.get("server", ""), options.pop("key") or noted.get("key", "")
    return connect(url, key, ca=options.pop("ca"))


def calls_server(function: F) -> F:
    """A command with `server_options` and `--json` that gets a connection; calls that fail are our errors."""

    @wraps(function)
    def run(session: Session, /, **options: Any) -> Any:
        connection = connect(options)
        from server.client import say_errors
        from server.connection import Refusal, Unreachable

        try:
            return function(session, connection, **options)
        except (Refusal, Unreachable) as error:
            raise say_errors(connection, error) from error

    return server_options(json_option(click.pass_obj(run)))  # type: ignore[return-value]
