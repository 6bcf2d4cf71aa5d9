"""What is written to stderr while a command works."""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Iterator

import pytest

from compiler.cli import progress
from compiler.cli.progress import CLEAR, Progress
from compiler.driver.clock import Clock, Pace, duration


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TICK_S", 0.02)
    monkeypatch.setattr(progress, "PATIENCE_S", 0.1)
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The logger of the command line, put back as it was."""
    found = logging.getLogger("fleetc")
    kept = found.handlers, found.level, found.propagate
    found.setLevel(logging.INFO)
    found.propagate = False
    logging.getLogger("fleetc.step").setLevel(logging.DEBUG)
    yield found
    found.handlers, found.level, found.propagate = kept


def shown(
    stream: io.StringIO, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, *, verbose: bool = False
) -> str:
    """What a stage of a third of a second writes between two messages."""
    monkeypatch.setattr(sys, "stderr", stream)
    handler = Progress(verbose=verbose)
    logger.handlers = [handler]
    logger.info("kiosk: trial 2: int8")
    with Clock().timed("verify"):
        time.sleep(0.35)
    logger.info("done")
    handler.close()
    monkeypatch.undo()
    return stream.getvalue()


@pytest.mark.usefixtures("quick")
def test_a_silent_stage_is_told_in_lines_of_its_own_where_nothing_is_rewritten(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown(io.StringIO(), logger, monkeypatch).splitlines()
    assert lines[0].endswith(" s  kiosk: trial 2: int8")
    assert lines[-1].endswith(" s  done")
    assert all("kiosk: trial 2: int8: verify, 0 s so far" in line for line in lines[1:-1])
    assert 1 <= len(lines[1:-1]) <= 3
    assert not any("\x1b" in line for line in lines)


@pytest.mark.usefixtures("quick")
def test_a_terminal_has_one_live_line_that_is_gone_before_the_next_message(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(Terminal(), logger, monkeypatch)
    live = text[text.index(CLEAR) : text.rindex(CLEAR)]
    assert "verify, 0 s so far" in live and "\n" not in live
    assert text[text.rindex(CLEAR) + len(CLEAR) :].endswith(" s  done\n")
    assert "\x1b[3" not in text, "no colour"


@pytest.mark.usefixtures("quick")
def test_a_dumb_terminal_gets_no_control_characters(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in shown(Terminal(), logger, monkeypatch)


def test_verbose_writes_stages_as_lines(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(io.StringIO(), logger, monkeypatch, verbose=True).splitlines()
    assert [line.split(" s  ", 1)[1] for line in lines[:2]] == ["kiosk: trial 2: int8", "verify"]
    assert lines[2].split(" s  ", 1)[1].startswith("verify: 0.")


class Gone(io.StringIO):
    """A pipe whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.usefixtures("quick")
def test_the_work_goes_on_when_nobody_reads(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(Gone(), logger, monkeypatch) == ""


def test_what_is_left_is_told_by_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(4)
    assert pace.left == "", "nothing is known before the first piece is done"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 30)
    pace.done = 1
    assert pace.left == "; about 90 s left"
    pace.done = 4
    assert pace.left == ""


@pytest.mark.parametrize(("seconds", "words"), [(9.4, "9 s"), (150, "2 min"), (7200, "2.0 h")])
def test_durations_are_told_in_the_unit_that_fits(seconds: float, words: str) -> None:
    assert duration(seconds) == words
