"""`fleetc tune --tracker` against TVM's own tracker and server on the loopback."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from compiler.fleet.detect import host_isa
from compiler.target.testing import text_case
from targets.arm_tvm.run.emulate import host_arch
from tests.boards import free_port, running_tracker, start_board, stop
from tests.cli.conftest import Place, make_place

pytestmark = [
    pytest.mark.needs_tvm,
    pytest.mark.skipif(
        host_arch() != "x86_64" or "avx2" not in host_isa(), reason="the board on the loopback is one with AVX2"
    ),
]

MODEL = """(float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    y = Relu(a)
}"""
BOARD = {"mtriple": "x86_64-linux-gnu", "mattr": ["+avx2", "+fma"]}
FEW = ("--trials", "2", "--json")


@pytest.fixture(scope="module")
def tracker() -> Iterator[str]:
    with running_tracker() as address:
        yield address


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """One for all tests: the border model and its kernels are made once."""
    root = tmp_path_factory.mktemp("boards")
    place = make_place(root, root)
    onnx.save(text_case("small", MODEL, weights={"w": (16, 16, 3, 3)}).proto(), place.root / "model.onnx")
    place.profile("board", target="tvm", **BOARD)
    return place


def command(place: Place, tracker: str, key: str, profile: str = "./board.yaml") -> list[str | Path]:
    return ["tune", place.root / "model.onnx", "-p", profile, "--tracker", tracker, "--key", key]


def records(place: Place) -> list[dict[str, Any]]:
    files = sorted((place.cache / "tuning").glob("board-*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def test_a_board_is_tuned_and_a_build_for_it_uses_what_was_measured(lab: Place, tracker: str) -> None:
    process = start_board(tracker, "bench")
    try:
        told = lab.run(*command(lab, tracker, "bench"), *FEW)
    finally:
        stop(process)
    assert told.code == 0, told.err
    [kernel] = told.json["kernels"]
    assert (told.json["evidence"], told.json["unit"], kernel["tried"]) == ("measured-device", "us", 2)
    assert {(one["evidence"], one["error"]) for one in records(lab)} == {("measured-device", "")}
    lab.write_fleet({"door": {"profile": "./board.yaml", "batch": 1}})
    [planned] = lab.run("plan", lab.fleet, "--kernels", "--json").json["kernels"]["door"]
    assert (planned["basis"], planned["evidence"]) == ("measured", "measured-device")
    assert planned["choice"] == kernel["best"]["choice"]


@pytest.mark.slow
def test_a_board_that_dies_ends_the_run_and_what_was_measured_stays(lab: Place, tracker: str) -> None:
    process = start_board(tracker, "mortal")
    known = len(records(lab))
    running = lab.start(*command(lab, tracker, "mortal"), "--trials", "40", "--plateau", "40")
    deadline = time.monotonic() + 120
    while len(records(lab)) < known + 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    stop(process)
    _, told = running.communicate(timeout=120)
    assert running.returncode == 4, told
    assert "mortal" in told
    good = [one for one in records(lab) if not one["error"]]
    assert len(good) > known


def test_an_absent_tracker_ends_the_run_before_a_trial(lab: Place) -> None:
    told = lab.run(*command(lab, f"127.0.0.1:{free_port()}", "bench"), *FEW)
    assert told.code == 4
    assert "no tracker answers" in told.err


def test_an_unknown_key_ends_the_run_before_a_trial(lab: Place, tracker: str) -> None:
    told = lab.run(*command(lab, tracker, "rpi9"), *FEW)
    assert told.code == 4
    assert "no board under key 'rpi9'" in told.err


@pytest.mark.slow
def test_a_board_of_another_kind_ends_the_run_before_a_trial(lab: Place, tracker: str) -> None:
    process = start_board(tracker, "wrong")
    try:
        told = lab.run(*command(lab, tracker, "wrong", "raspberry-pi-5"), *FEW)
    finally:
        stop(process)
    assert told.code == 4
    assert "does not run what this toolchain builds for aarch64" in told.err
    assert all(one["key"]["device"]["model"] == "board" for one in records(lab))
