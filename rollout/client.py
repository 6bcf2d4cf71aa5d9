"""Asks a `fleetc serve` of this machine: begins, reads and ends experiments."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from platformdirs import user_cache_path

from compiler.artifact.adapter import parse, to_json
from compiler.errors import DataError
from rollout.live import Report, Request

TIMEOUT_S = 120.0
"""Seconds for an answer: a candidate is loaded and run before the server says yes."""


@dataclass(frozen=True)
class Control:
    """How a server on this machine is reached.

    Args:
        url: Its address.
        token: What it takes from those who may control it.
    """

    url: str
    token: str


def control_path(port: int) -> Path:
    """The file that the server at a port of this machine writes for its user."""
    # not the runtime folder: where the system has none it lies in /tmp, for anybody to make first
    return user_cache_path("fleetc") / "serve" / f"{port}.json"


def read_control(port: int) -> Control:
    """The server at a port of this machine.

    Raises:
        DataError: There is none, or it is another user's.
    """
    path = control_path(port)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return Control(str(value["url"]), str(value["token"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"no `fleetc serve` of this user listens at port {port}",
            where=str(path),
            remedy="Start it, or name its port with --port.",
        ) from error


class Client:
    """One model of a server.

    Args:
        control: The server.
        model: Its name; None for the only one that the server has.

    Raises:
        DataError: The server is gone, or has several models and none was named.
    """

    def __init__(self, control: Control, model: str | None) -> None:
        self._control = control
        self.model = model or self._only_model()
        self.place = f"/v2/models/{quote(self.model, safe='')}/experiment"

    def begin(self, request: Request) -> Report:
        """Begins an experiment."""
        return self._report("POST", "", to_json(request))

    def report(self) -> Report:
        """Where it stands now."""
        return self._report("GET", "")

    def stop(self) -> Report:
        """Ends it."""
        return self._report("POST", "/stop")

    def ship(self) -> Report:
        """Ends it, and lets the candidate answer everybody."""
        return self._report("POST", "/ship")

    def page(self) -> bytes:
        """Where it stands, as a page."""
        return self._ask("GET", self.place + "/page")

    def _only_model(self) -> str:
        names = [str(row["name"]) for row in json.loads(self._ask("POST", "/v2/repository/index"))]
        if len(names) != 1:
            raise DataError(f"the server has {len(names)} models", where="--model", remedy=f"Name it: {names}.")
        return names[0]

    def _report(self, method: str, path: str, value: Mapping[str, Any] | None = None) -> Report:
        return parse(Report, json.loads(self._ask(method, self.place + path, value)))

    def _ask(self, method: str, path: str, value: Mapping[str, Any] | None = None) -> bytes:
        url = urlsplit(self._control.url)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=TIMEOUT_S)
        try:
            body = json.dumps(value) if value is not None else None
            connection.request(method, path, body, {"Authorization": f"Bearer {self._control.token}"})
            answer = connection.getresponse()
            raw = answer.read()
        except (OSError, http.client.HTTPException) as error:
            remedy = "Is it still running?"
            raise DataError(f"the server does not answer: {error}", where=self._control.url, remedy=remedy) from error
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise DataError(_what(raw), where=self._control.url, remedy=f"The server said {answer.status}.")
        return raw


def _what(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["error"])
    except (ValueError, KeyError, TypeError):
        return raw[:200].decode(errors="replace")
