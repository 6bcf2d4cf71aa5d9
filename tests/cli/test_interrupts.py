"""Real processes, real signals, at moments nobody chose."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import Outcome, Place, checked

PATIENCE_S = 100.0


def wait_for(seen: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not seen():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def end(process: subprocess.Popen[str], sign: signal.Signals) -> Outcome:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(sign)
    out, err = process.communicate(timeout=PATIENCE_S)
    return Outcome(process.returncode, out, err)


def started(place: Place) -> tuple[subprocess.Popen[str], list[int]]:
    """A build whose toolchain has started a tool that never ends, and the process ids of both."""
    note = place.root / "pids"
    place.moody({"one": {"start": str(note)}})
    process = place.start(*place.build_command())
    wait_for(lambda: note.exists() and len(note.read_text().split()) == 2, "the toolchain's start")
    return process, [int(pid) for pid in note.read_text().split()]


def test_killed_build_takes_the_toolchain_and_its_tools_along(place: Place) -> None:
    process, pids = started(place)
    end(process, signal.SIGKILL)
    wait_for(lambda: all(map(is_gone, pids)), "the end of the children")


def test_temporary_folders_of_a_killed_build_go_at_the_next_start(place: Place) -> None:
    temporary = place.root / "tmp"
    temporary.mkdir()
    place = Place(place.root, {**place.env, "TMPDIR": str(temporary)})
    process, pids = started(place)
    end(process, signal.SIGKILL)
    wait_for(lambda: all(map(is_gone, pids)), "the end of the children")
    assert list(temporary.glob("fleetc-*"))
    assert place.call("profiles", "list").code == 0
    # a toolchain may leave files of its own there
    assert not list(temporary.glob("fleetc-*"))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_at_once_with_130_and_says_how_to_resume(place: Place, sign: signal.Signals) -> None:
    process, pids = started(place)
    before = time.monotonic()
    outcome = checked(end(process, sign))
    assert time.monotonic() - before < 2.0
    assert outcome.code == 130
    assert "run the same command again to resume:" in outcome.err
    assert outcome.err.endswith(f"  fleetc build {place.fleet} -o {place.dist} --repeat 0\n")
    assert outcome.out == ""
    wait_for(lambda: all(map(is_gone, pids)), "the end of the children")
    assert not [path for path in place.dist.iterdir()]


@pytest.mark.slow
def test_build_killed_at_any_moment_ends_in_the_digests_of_an_undisturbed_one(place: Place) -> None:
    place.write_fleet({"one": place.profile("one", seconds=0.3), "two": place.profile("two", "reference")})
    before = time.monotonic()
    undisturbed = place.start(*place.build_command(), "--cache", str(place.root / "calm"))
    assert end(undisturbed, signal.SIGCONT).code == 0
    whole, wanted = time.monotonic() - before, place.digests()
    seed = random.randrange(1 << 32)
    draw = random.Random(seed)
    for path in place.dist.iterdir():
        path.rename(place.root / f"calm-{path.name}")
    for _ in range(3):
        process = place.start(*place.build_command(), "--cache", str(place.root / "stormy"))
        time.sleep(draw.uniform(0.1, 1.0) * whole)
        end(process, signal.SIGKILL)
    final = checked(end(place.start(*place.build_command(), "--cache", str(place.root / "stormy")), signal.SIGCONT))
    assert final.code == 0, final.err
    assert place.digests() == wanted, f"seed {seed}"


@pytest.mark.slow
def test_two_builds_at_once_on_one_store_and_output_agree(place: Place) -> None:
    log = place.root / "built.log"
    place.moody({"one": {"log": str(log), "seconds": 0.5}})
    processes = [place.start(*place.build_command(), "--cache", str(place.root / "both")) for _ in range(2)]
    outcomes = [checked(end(process, signal.SIGCONT)) for process in processes]
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert log.read_text().split() == ["one"]
    first = place.digests()
    assert place.build("--cache", place.root / "alone").code == 0
    assert place.digests() == first


def test_a_build_waits_for_another_ones_stage_no_longer_than_it_is_told(place: Place) -> None:
    first, pids = started(place)
    try:
        outcome = place.build("--cache-wait", "0.5")
        assert outcome.code == 4
        assert f"waited 0.5 s for process {first.pid} on " in outcome.err and "stage compile" in outcome.err
    finally:
        end(first, signal.SIGKILL)
    wait_for(lambda: all(map(is_gone, pids)), "the end of the children")


def test_leftovers_of_a_killed_delivery_are_cleared(delivered: Place) -> None:
    before = delivered.digests()
    for name in (f".one.{'ab' * 16}", f".one.{'cd' * 16}.old"):
        (delivered.dist / name / "payload").mkdir(parents=True)
        (delivered.dist / name / "manifest.json").write_text("{")
    assert delivered.run("diff", delivered.dist, delivered.dist).code == 0
    assert delivered.build().code == 0
    assert delivered.digests() == before
    assert not list(Path(delivered.dist).glob(".*"))


def test_an_artifact_moved_aside_by_a_killed_delivery_is_there_for_whoever_asks(delivered: Place) -> None:
    """Where a file system cannot exchange two folders, a kill between two renames leaves the only copy aside."""
    before = delivered.digests()
    (delivered.dist / "one").rename(delivered.dist / f".one.{'cd' * 16}.old")
    assert delivered.run("verify", delivered.dist / "one").code == 0
    assert delivered.digests() == before
