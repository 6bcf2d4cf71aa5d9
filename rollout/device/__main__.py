"""The command: `fleetc agent`, or `python3 -m device` where fleetc is not installed."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .agent import FAILURE, Agent, Settings
from .files import write_json
from .signing import device_key, sign_report
from .source import Source

TIMEOUT_S = 30.0

INTERRUPTED = 130
"""Exit code of a command that was ended by a signal, as fleetc's other commands have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Looks at the repository again and again, or once; 0 unless the last look failed."""
    options = _parser().parse_args(arguments)
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    source = Source(options.repository, folder, root=options.root.read_bytes(), device_class=options.device_class)
    settings = Settings(
        folder,
        options.device,
        options.device_class,
        key=options.key.read_bytes() if options.key else None,
        watch_s=options.watch_s,
        command=options.health,
        metrics=options.metrics,
    )
    agent, key = Agent(settings, source), device_key(folder)
    while True:
        report = agent.look()
        _say(report)
        if options.report:
            _send(options.device, sign_report(report, key), options.report)
        if options.once:
            return int(report["state"] == FAILURE or report["problem"] != "")
        time.sleep(options.poll_s)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fleetc agent", description="Keep one verified build on this device, the one its fleet assigns to it."
    )
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="where builds and state are kept; `current` in it is the build")
    add("--repository", required=True, metavar="URL", help="the TUF repository: http(s):// or file://")
    add("--root", type=Path, required=True, help="the repository's first root.json, which came with the device")
    add("--device", required=True, help="name of this device in the fleet")
    add("--class", dest="device_class", required=True, help="device class whose builds it runs")
    add("--key", type=Path, help="public key (PEM) of whoever signs builds (`fleetc sign`)")
    add("--report", metavar="PLACE", help="folder, or URL that takes PUT, where DEVICE.json is reported")
    add("--metrics", metavar="PLACE", help="URL of the device's /metrics, or a file that holds the same")
    add("--health", metavar="COMMAND", help="in place of the build's own health run: {artifact} {inputs} {outputs}")
    add("--watch-s", type=float, default=60.0, help="seconds that a new build is watched before it is kept")
    add("--poll-s", type=float, default=30.0, help="seconds between two looks")
    add("--once", action="store_true", help="look once; exit code 1 if nothing could be done")
    return parser


def _say(report: dict[str, Any]) -> None:
    build = (report["build"] or "no build")[:16]
    why = "".join(f": {report[key]}" for key in ("why", "problem") if report[key])
    sys.stdout.write(f"{report['device']} {report['state']} on {build}{why}\n")
    sys.stdout.flush()


def _send(device: str, report: dict[str, Any], place: str) -> None:
    """Reports; a device goes on where nobody takes the report."""
    name = urllib.parse.quote(device, safe="") + ".json"
    try:
        if not place.startswith(("http://", "https://")):
            Path(place).mkdir(parents=True, exist_ok=True)
            write_json(Path(place) / name, report)
            return
        body = json.dumps(report).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{place.rstrip('/')}/{name}", body, headers, method="PUT")
        urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
    except OSError as error:
        sys.stderr.write(f"the report was not taken: {error}\n")


if __name__ == "__main__":
    # as Ctrl-C, and as `fleetc agent`: a health run that goes on is ended, and its temporary folder removed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
