"""Who may begin and end experiments: whoever can read a file that the server wrote.

Any client may ask for an inference. An experiment makes the server load a folder, and lets a build answer that nobody
has accepted yet: only the user who runs the server, and root, can read the token that it takes.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rollout.client import Control, control_path

log = logging.getLogger("fleetc.serve")


@contextmanager
def offering_control(url: str, port: int) -> Iterator[Control]:
    """Writes the file, for the time that a server runs; where it cannot be written there are no experiments."""
    control, path = Control(url, secrets.token_urlsafe(32)), control_path(port)
    try:
        _write(control, path)
    except OSError as error:
        log.warning("no experiments: %s cannot be written: %s", path, error.strerror)
        yield Control(url, "")
        return
    try:
        yield control
    finally:
        path.unlink(missing_ok=True)


def _write(control: Control, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of a server that was killed: no other one has the port
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump({"url": control.url, "token": control.token}, file)
