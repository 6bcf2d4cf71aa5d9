"""What the commands print for people: jobs, devices, workers, keys as tables and lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import click

from compiler.cli.output import print_json


def state_text(payload: dict[str, Any]) -> str:
    """A state of a device, as its event says it."""
    state = str(payload["state"]).replace("_", " ")
    if payload["state"] == "waiting_for_worker":
        return f"no worker has {', '.join(payload['waiting_for'])}; it waits for one"
    if payload["state"] == "running":
        return f"attempt {payload['attempt']} on {payload['worker']}"
    return f"{state}: {payload['why']}" if payload.get("why") else state


def submitted_text(url: str, job: dict[str, Any]) -> str:
    """A job that was accepted, and its page."""
    return f"job {job['id']} ({len(job['devices'])} device classes)\n{url}/jobs/{job['id']}"


def job_text(job: dict[str, Any]) -> str:
    """A job and its devices as a table."""
    rows = [(one["name"], str(one["state"]).replace("_", " "), _detail(one)) for one in job["devices"]]
    head = f"job {job['id']}: {job['state']}, {job['fleet']}, submitted {when(job['created'])}"
    return f"{head}\n{_table(rows, ('device', 'state', ''))}"


def _detail(device: dict[str, Any]) -> str:
    if device["waiting_for"]:
        return f"no worker has {', '.join(device['waiting_for'])}"
    if device["position"]:
        soon = f", about {device['estimate_s']:.0f} s" if device["estimate_s"] is not None else ""
        return f"number {device['position']} in the queue{soon}"
    if device["error"]:
        return str(device["error"]["what"]).splitlines()[0]
    if device["state"] == "running":
        return f"{device['stage'] or 'begins'} on {device['worker']}, attempt {device['attempt']}"
    figures = device["figures"] or {}
    return f"{figures.get('precision', '')}, {device['seconds']:.1f} s" if figures else ""


def state_counts(job: dict[str, Any]) -> str:
    """How many devices of a job are in which state."""
    states = [str(one["state"]).replace("_", " ") for one in job["devices"]]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def when(seconds: float) -> str:
    """A moment, seconds since 1970, in this machine's time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def print_list(
    found: list[dict[str, Any]],
    heads: tuple[str, ...],
    row: Callable[[dict[str, Any]], tuple[str, ...]],
    *,
    as_json: bool,
) -> None:
    """What the server lists, as it says it or as a table."""
    if as_json:
        print_json(found)
    else:
        click.echo(_table([row(entry) for entry in found], heads))


def _table(rows: Sequence[tuple[str, ...]], heads: tuple[str, ...]) -> str:
    from compiler.cli.text import table

    return table(rows, heads)
