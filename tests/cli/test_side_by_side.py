"""Devices that are built at the same time."""

from __future__ import annotations

import json
import signal

import psutil
import pytest

from tests.cli.conftest import Place, checked
from tests.cli.test_interrupts import end, is_gone, wait_for


def artifacts(place: Place) -> dict[str, bytes]:
    """What must not depend on how many devices are built at a time."""
    return {name: data for name, data in place.digests().items() if not name.endswith((".json", ".jsonl"))}


def test_jobs_change_no_byte_and_no_order_and_a_failing_device_stops_no_other(place: Place) -> None:
    log = place.root / "built.log"
    moods = {"one": {"seconds": 0.2}, "bad": {"build": "fail"}, "two": {"log": str(log)}, "three": {}}
    place.moody(moods)
    first = place.build("--jobs", "1", "--cache", place.root / "first", "--json")
    assert first.code == 6, first.err
    wanted, orders = artifacts(place), [[row["device"] for row in first.json["devices"]]]
    second = place.build("--jobs", "3", "--cache", place.root / "second", "--json")
    assert second.code == 6, second.err
    orders.append([row["device"] for row in second.json["devices"]])
    assert orders == [list(moods)] * 2
    assert artifacts(place) == wanted and len(wanted) >= 3
    rows = json.loads((place.dist / "build.json").read_text(encoding="utf-8"))["devices"]
    assert [name for name, row in rows.items() if row["status"] == "failed"] == ["bad"]


@pytest.mark.parametrize("sign", [signal.SIGINT])
def test_an_interrupt_ends_the_children_of_all_devices(place: Place, sign: signal.Signals) -> None:
    notes = [place.root / f"pids-{name}" for name in ("one", "two")]
    place.moody({note.name: {"start": str(note)} for note in notes})
    process = place.start(*place.build_command("--jobs", "2"))
    wait_for(lambda: all(note.exists() and len(note.read_text().split()) == 2 for note in notes), "both toolchains")
    pids = [int(pid) for note in notes for pid in note.read_text().split()]
    assert not any(map(is_gone, pids)) and psutil.pid_exists(process.pid)
    outcome = checked(end(process, sign))
    assert outcome.code == 130
    assert "run the same command again to resume:" in outcome.err
    wait_for(lambda: all(map(is_gone, pids)), "the end of the children")
