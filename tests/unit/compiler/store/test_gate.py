"""A measurement runs alone, and everybody gets their turn."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from compiler.errors import InternalError
from compiler.store import Store
from compiler.store.gate import TimingGate


def in_thread(work: object) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)  # type: ignore[arg-type]
    thread.start()
    return thread


def test_a_measurement_waits_for_the_end_of_a_stage_and_the_next_stage_waits_for_it(tmp_path: Path) -> None:
    gate, said = TimingGate(tmp_path), list[str]()
    is_inside = threading.Event()

    def work() -> None:
        with gate.working():
            with gate.stage():
                is_inside.set()
                time.sleep(0.3)
                with gate.stage():  # a stage that is part of another does not make way: the outer one holds a lock
                    said.append("first stage")
            with gate.stage():
                said.append("second stage")

    worker = in_thread(work)
    is_inside.wait(10)
    with gate.working(), gate.alone():
        said.append("measurement begins")
        time.sleep(0.2)
        said.append("measurement ends")
    worker.join(10)
    assert said == ["first stage", "measurement begins", "measurement ends", "second stage"]


def test_two_measurements_do_not_overlap(tmp_path: Path) -> None:
    gate, inside, most = TimingGate(tmp_path), list[int](), list[int]()

    def measure() -> None:
        with gate.working(), gate.alone():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.1)
            inside.pop()

    threads = [in_thread(measure) for _ in range(3)]
    for thread in threads:
        thread.join(10)
    assert most == [1, 1, 1]


def test_another_process_is_kept_out_and_its_end_lets_the_others_in(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from compiler.store.gate import TimingGate\n"
        "with TimingGate(Path(sys.argv[1])).alone(): print('in', flush=True); time.sleep(60)"
    )
    is_working = threading.Event()

    def work() -> None:
        with TimingGate(tmp_path).working():
            is_working.set()

    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"in\n"
        worker = in_thread(work)
        assert not is_working.wait(0.2)
        other.kill()
    assert is_working.wait(10)
    worker.join(10)


def test_a_measurement_that_waited_too_long_says_so_and_is_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate, may_end = TimingGate(tmp_path, limit_s=0.1), threading.Event()
    is_inside = threading.Event()

    def work() -> None:
        with gate.working():
            is_inside.set()
            may_end.wait(10)

    worker = in_thread(work)
    is_inside.wait(10)
    logging.getLogger("fleetc").propagate = True
    with caplog.at_level(logging.WARNING, "fleetc.store"), gate.alone():
        pass
    may_end.set()
    worker.join(10)
    assert "other work went on for 0.1 s" in caplog.text


def test_a_measurement_inside_a_stage_is_refused_since_others_may_wait_for_that_stage(tmp_path: Path) -> None:
    gate = TimingGate(tmp_path)
    with gate.stage(), pytest.raises(InternalError, match="part of a stage"), gate.alone():
        pass


def test_a_folder_that_takes_no_lock_files_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    gate = Store(tmp_path / "file").gate
    with gate.working(), gate.stage():
        pass
    with gate.alone():
        pass
