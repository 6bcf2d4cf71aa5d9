"""What is written to stderr while a command works."""

from __future__ import annotations

import io
import logging
import sys
import time

import pytest

from compiler.cli import progress
from compiler.cli.progress import CLEAR, JsonLines, Terminal, duration, event_text, left_text
from compiler.driver.clock import Clock, Pace
from compiler.driver.events import (
    DeviceFinished,
    DeviceStarted,
    Event,
    Level,
    Note,
    Progress,
    StageBegan,
    StageEnded,
    TrialJudged,
    TrialStarted,
    event_of,
)
from compiler.store import StageName


class Screen(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TICK_S", 0.02)
    monkeypatch.setattr(progress, "PATIENCE_S", 0.1)
    monkeypatch.setenv("TERM", "xterm")


def shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, least: int = logging.INFO) -> str:
    """What a stage of a third of a second writes between two messages."""
    monkeypatch.setattr(sys, "stderr", stream)
    reporter = Terminal(least=least)
    reporter.tell(TrialStarted("kiosk", 2, "int8", "candidate"))
    with Clock("kiosk", reporter.tell).timed(StageName.VERIFY):
        time.sleep(0.35)
    reporter.tell(Note("", "done"))
    reporter.close()
    monkeypatch.undo()
    return stream.getvalue()


@pytest.mark.usefixtures("quick")
def test_a_silent_stage_is_told_in_lines_of_its_own_where_nothing_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(io.StringIO(), monkeypatch).splitlines()
    assert lines[0].endswith(" s  kiosk: trial 2: int8")
    assert lines[-1].endswith(" s  done")
    assert all("kiosk: trial 2: int8: verify, 0 s so far" in line for line in lines[1:-1])
    assert 1 <= len(lines[1:-1]) <= 3
    assert not any("\x1b" in line for line in lines)


@pytest.mark.usefixtures("quick")
def test_a_terminal_has_one_live_line_that_is_gone_before_the_next_message(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Screen(), monkeypatch)
    live = text[text.index(CLEAR) : text.rindex(CLEAR)]
    assert "verify, 0 s so far" in live and "\n" not in live
    assert text[text.rindex(CLEAR) + len(CLEAR) :].endswith(" s  done\n")
    assert "\x1b[3" not in text, "no colour"


@pytest.mark.usefixtures("quick")
def test_a_dumb_terminal_gets_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in shown(Screen(), monkeypatch)


def test_verbose_writes_stages_as_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(io.StringIO(), monkeypatch, least=logging.DEBUG).splitlines()
    assert [line.split(" s  ", 1)[1] for line in lines[:2]] == ["kiosk: trial 2: int8", "verify"]
    assert lines[2].split(" s  ", 1)[1].startswith("verify: 0.")


class Gone(io.StringIO):
    """A pipe whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.usefixtures("quick")
def test_the_work_goes_on_when_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(Gone(), monkeypatch) == ""


@pytest.mark.usefixtures("quick")
def test_the_innermost_stage_is_what_takes_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    terminal = Terminal(least=logging.INFO)
    clock = Clock("kiosk", terminal.tell)
    terminal.tell(TrialStarted("kiosk", 1, "int8", "candidate"))
    with clock.timed(StageName.QUANTIZE):
        with clock.timed(StageName.PRUNE):
            time.sleep(0.25)
        first = len(stream.getvalue())
        time.sleep(0.25)
    terminal.close()
    before, after = stream.getvalue()[:first], stream.getvalue()[first:]
    assert "int8: prune, 0 s so far" in before and "quantize" not in before
    assert "int8: quantize, 0 s so far" in after


def test_a_quiet_terminal_has_only_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    terminal = Terminal(least=logging.WARNING)
    for event in (*EVENTS, Note("kiosk", "few samples", Level.WARNING)):
        terminal.tell(event)
    lines = [line.split(" s  ", 1)[1] for line in stream.getvalue().splitlines()]
    assert lines == ["kiosk failed: no", "kiosk: few samples"]


EVENTS: tuple[Event, ...] = (
    DeviceStarted("kiosk", 1, 2),
    TrialStarted("kiosk", 3, "int8", "pruning", has_options=True, kept_float=2, pruned=0.25),
    StageBegan("kiosk", StageName.PRUNE),
    StageEnded("kiosk", StageName.PRUNE, 1.5),
    TrialJudged("kiosk", 3, "int8", "pruning", "refused", "accuracy 3 > 1"),
    Note("kiosk", "next fp16"),
    Progress(1, 4, 90.0),
    DeviceFinished("kiosk", "failed", "no"),
)


def test_json_lines_are_one_event_each_and_can_be_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    lines = JsonLines(least=logging.INFO)
    for event in EVENTS:
        lines.tell(event)
    lines.tell(Note("kiosk", "hidden", Level.DEBUG))
    lines.handle(logging.makeLogRecord({"msg": "disk is slow", "levelno": logging.WARNING}))
    found = [event_of(line) for line in stream.getvalue().splitlines()]
    assert found == [*EVENTS, Note("", "disk is slow", Level.WARNING)]


def test_a_trial_is_told_with_what_is_not_as_usual() -> None:
    texts = [event_text(event) for event in EVENTS]
    assert texts[1] == "kiosk: trial 3: int8, other options of the quantizer, 2 layers in float, 25% pruned"
    assert texts[4] == "kiosk: trial 3: int8 refused: accuracy 3 > 1"
    assert texts[-1] == "kiosk failed: no"


def test_what_is_left_is_told_by_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    pace = Pace([1, 3], events.append)
    pace(DeviceStarted("a", 1, 2))
    assert events[0] == Progress(0, 4, None), "nothing is known before the first piece is done"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 30)
    pace(TrialJudged("a", 1, "fp32", "candidate", "passed"))
    pace(TrialJudged("a", 2, "fp32", "options", "measured"))
    assert [event.done for event in events if isinstance(event, Progress)] == [0, 1], "what a search adds is no piece"
    assert isinstance(events[-2], Progress) and events[-2].seconds_left == pytest.approx(90, rel=0.05)
    pace(DeviceStarted("b", 2, 2))
    assert events[-2] == events[3], "a device that is over counts with all that it planned"


@pytest.mark.parametrize(("seconds", "words"), [(None, ""), (4.9, ""), (90.0, "; about 90 s left")])
def test_an_estimate_stands_behind_a_message_where_it_is_worth_it(seconds: float | None, words: str) -> None:
    assert left_text(seconds) == words


def test_a_stage_inside_another_counts_for_itself_alone() -> None:
    clock = Clock()
    with clock.timed(StageName.SPEED), clock.timed(StageName.COMPILE):
        time.sleep(0.2)
    assert clock.seconds["compile"] >= 0.2 > clock.seconds["speed"]


def test_a_stage_inside_itself_is_one() -> None:
    events: list[Event] = []
    clock = Clock("kiosk", events.append)
    with clock.timed(StageName.SPEED), clock.timed(StageName.SPEED), clock.timed(StageName.COMPILE):
        pass
    assert [event.stage for event in events if isinstance(event, StageBegan)] == ["speed", "compile"]


@pytest.mark.parametrize(("seconds", "words"), [(9.4, "9 s"), (150, "2 min"), (7200, "2.0 h")])
def test_durations_are_told_in_the_unit_that_fits(seconds: float, words: str) -> None:
    assert duration(seconds) == words
