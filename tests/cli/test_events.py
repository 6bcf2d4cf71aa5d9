"""`--json-events`: what happens in a build, for a program to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from compiler.driver.events import (
    DeviceFinished,
    Event,
    Level,
    Note,
    StageBegan,
    StageEnded,
    event_of,
    events_schema,
)
from tests.cli.conftest import Place

SCHEMA = Path(__file__).parents[2] / "docs" / "events.schema.json"


def events_in(text: str) -> list[Event]:
    return [event_of(line) for line in text.splitlines()]


def test_every_line_of_stderr_is_an_event_and_stdout_stays_the_report(place: Place) -> None:
    place.moody({"good": {}, "bad": {"build": "fail"}})
    outcome = place.build("--json-events", "--json")
    assert outcome.code == 6 and outcome.json["exit_code"] == 6
    events = events_in(outcome.err)
    assert {type(event) for event in events} == set(get_args(Event))
    finished = [(event.device, event.status) for event in events if isinstance(event, DeviceFinished)]
    assert sorted(finished) == [("bad", "failed"), ("good", "delivered")]  # devices are built side by side
    assert isinstance(events[-1], Note) and events[-1].level == Level.ERROR and "1 of 2 devices" in events[-1].text


def test_stages_end_in_the_order_in_which_they_were_entered(place: Place) -> None:
    place.moody({"one": {}})
    open_stages: list[str] = []
    for event in events_in(place.build("--json-events").err):
        if isinstance(event, StageBegan):
            open_stages.append(event.stage)
        elif isinstance(event, StageEnded):
            assert open_stages.pop() == event.stage
    assert open_stages == []


def test_a_call_that_is_refused_is_an_event_too(place: Place) -> None:
    (event,) = events_in(place.run("build", "none.yaml", "--no-such-option", "--json-events").err)
    assert isinstance(event, Note) and event.level == Level.ERROR and "--no-such-option" in event.text


def test_the_schema_in_the_documentation_is_that_of_the_events() -> None:
    written = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert {key: value for key, value in written.items() if key not in ("$schema", "title")} == events_schema()
    kinds = {kind["properties"]["event"]["const"] for kind in written["$defs"].values() if "properties" in kind}
    assert kinds == {
        *("device-started", "device-finished", "stage-began", "stage-ended"),
        *("trial-started", "trial-judged", "note", "progress"),
    }


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(ValueError, match="event"):
        event_of('{"event": "coffee"}')
