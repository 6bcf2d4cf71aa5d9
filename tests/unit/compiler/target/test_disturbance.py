"""What a measurement says of the machine it was made on."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from compiler.target.disturbance import AWAKE_AT_MOST_S, Conditions, conditions, disturbances, let_threads_rest

BEFORE = Conditions(10.0, 0.0, 0.0, 0.0, 0, 3000.0)
QUIET = Conditions(20.0, 0.02, 0.1, 0.0, 40, 2990.0)


def test_a_quiet_machine_disturbs_nothing() -> None:
    assert disturbances(BEFORE, QUIET, threads=2) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"waited_s": 8.0, "switches": 1200}, "waited for a processor 40% of the time, and lost one 1200 times"),
        ({"pressed_s": 6.0}, "work waited for a processor 60% of the time"),
        ({"stolen_s": 1000.0}, "the hypervisor gave 100%"),
        ({"clock_mhz": 1500.0}, "the clock went from 3000 to 1500 MHz"),
    ],
    ids=["our threads waited", "other work waited", "steal", "clock"],
)
def test_each_kind_of_disturbance_is_named(changes: dict[str, float], words: str) -> None:
    assert words in disturbances(BEFORE, replace(QUIET, **changes), threads=2)


def test_what_a_system_does_not_report_is_left_out() -> None:
    unknown = replace(BEFORE, waited_s=None, pressed_s=None, stolen_s=None, clock_mhz=None)
    assert disturbances(unknown, replace(unknown, time_s=20.0), threads=2) == ""


def test_counters_are_read_from_proc_and_sys(tmp_path: Path) -> None:
    files = {
        "proc/self/task/7/schedstat": "900 1500000000 3\n",
        "proc/self/task/8/schedstat": "900 500000000 3\n",
        "proc/pressure/cpu": "some avg10=1.0 avg60=1.0 avg300=1.0 total=2500000\nfull avg10=0 total=9\n",
        "proc/stat": "cpu  1 2 3 4 5 6 7 300 0 0\ncpu0 1 2\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1600000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="ascii")
    found = conditions(tmp_path)
    assert (found.waited_s, found.pressed_s, found.stolen_s, found.clock_mhz) == (2.0, 2.5, 3.0, 2000.0)
    empty = conditions(tmp_path / "nowhere")
    assert (empty.waited_s, empty.pressed_s, empty.stolen_s, empty.clock_mhz) == (None, None, None, None)


def spinning(ends: threading.Event) -> threading.Thread:
    """A thread that computes until it is told to end, without Python's lock: as those of ONNX Runtime wait for work."""
    data = bytes(64 << 20)

    def spin() -> None:
        while not ends.is_set():
            hashlib.blake2b(data)

    thread = threading.Thread(target=spin)
    thread.start()
    return thread


def test_threads_that_spin_behind_a_run_are_waited_for() -> None:
    """The next build's threads would have to wait for them."""
    ends = threading.Event()
    thread = spinning(ends)
    threading.Timer(0.1, ends.set).start()
    let_threads_rest()
    assert ends.is_set()
    thread.join()


def test_nobody_is_waited_for_beyond_half_a_second() -> None:
    ends, began_s = threading.Event(), time.monotonic()
    thread = spinning(ends)
    let_threads_rest()
    took_s = time.monotonic() - began_s
    ends.set()
    thread.join()
    assert AWAKE_AT_MOST_S <= took_s < AWAKE_AT_MOST_S + 1.0
