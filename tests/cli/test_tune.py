"""`fleetc tune` as a user meets it: the log, resuming, trials that go wrong, and what a build makes of it."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compiler.target.testing import install_plugin
from tests.cli.conftest import Place, make_place

PLUGIN = "from compiler.target.testing import FakeTunedTarget\nTARGET = FakeTunedTarget('tuned')\n"
BEST = {"tile": 3}
"""Of the fake target's four choices."""


@pytest.fixture(scope="module")
def tuned_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("tuned-site")
    install_plugin(folder, "tuned", PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture
def lab(tmp_path: Path, tuned_site: Path, shared: Place) -> Place:
    """A place whose cache holds what the shared one made, so that passes need not run again."""
    made = make_place(tmp_path / "lab", tuned_site)
    shutil.copytree(shared.cache, made.cache)
    return made


def tune(place: Place, *args: str | Path, **options: object) -> Any:
    profile = place.profile("board", target="tuned", **options)
    return place.run("tune", place.root / "model.onnx", "-p", profile, "--json", *args)


def lines(place: Place) -> list[dict[str, Any]]:
    return [json.loads(line) for path in log_files(place) for line in path.read_text().splitlines()]


def log_files(place: Place) -> list[Path]:
    return sorted((place.cache / "tuning").glob("*.jsonl"))


def test_every_kernel_gets_its_fastest_choice_with_median_spread_runs_and_evidence(lab: Place) -> None:
    kernels = tune(lab).json["kernels"]
    assert [one["best"]["choice"] for one in kernels] == [BEST] * len(kernels)
    assert kernels[0]["best"] | {"spread": 0} == {
        "choice": BEST,
        "median": pytest.approx(100 / 3),
        "spread": 0,
        "runs": 3,
        "evidence": "measured-host",
    }
    assert kernels[0]["untuned"] == 100.0


def test_a_second_run_repeats_no_trial(lab: Place) -> None:
    log = lab.root / "trials.txt"
    tune(lab, trials_log=str(log))
    first = log.read_text()
    again = tune(lab, trials_log=str(log))
    assert log.read_text() == first
    assert all(one["new"] == 0 and one["tried"] == 4 for one in again.json["kernels"])


@pytest.mark.parametrize(
    ("trial", "said"),
    [
        ("fail", "as it was told to"),
        ("crash", "SIGSEGV"),
        pytest.param("hang", "did not finish within", marks=pytest.mark.slow),
    ],
)
def test_a_trial_that_goes_wrong_is_remembered_as_an_error_and_the_run_goes_on(
    lab: Place, trial: str, said: str
) -> None:
    outcome = tune(lab, "--trial-timeout", "0.5", trial=trial, at_tile=2)
    assert outcome.code == 0, outcome.err
    assert all((one["failed"], one["best"]["choice"]) == (1, BEST) for one in outcome.json["kernels"])
    errors = [line for line in lines(lab) if line["error"]]
    assert errors and all(said in line["error"] and line["choice"] == {"tile": 2} for line in errors)
    assert all(one["new"] == 0 for one in tune(lab, trial=trial, at_tile=2).json["kernels"])


def test_a_back_end_that_goes_away_ends_the_run_and_keeps_what_was_measured(lab: Place) -> None:
    outcome = tune(lab, trial="lost", at_tile=3)
    assert outcome.code == 4
    assert "the fake board died" in outcome.err
    assert [line["choice"]["tile"] for line in lines(lab)] == [1, 2]


def test_after_kill_9_the_same_command_goes_on_without_repeating_a_finished_trial(lab: Place) -> None:
    log = lab.root / "trials.txt"
    profile = lab.profile("board", target="tuned", trials_log=str(log), seconds_per_trial=0.4)
    process = lab.start("tune", lab.root / "model.onnx", "-p", profile)
    deadline = time.monotonic() + 60
    while (not log.exists() or len(log.read_text().splitlines()) < 3) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = {(line["kernel"], line["choice"]["tile"]) for line in lines(lab)}
    started = [tuple(line.split()) for line in log.read_text().splitlines()]
    assert finished
    resumed = lab.run("tune", lab.root / "model.onnx", "-p", profile, "--json")
    later = [tuple(line.split()) for line in log.read_text().splitlines()][len(started) :]
    assert later
    assert not {(kernel, int(tile)) for kernel, tile in later} & finished
    assert all(one["tried"] == 4 for one in resumed.json["kernels"])


@pytest.mark.slow
def test_two_tuners_on_one_log_repeat_nothing_and_tear_nothing(lab: Place) -> None:
    log = lab.root / "trials.txt"
    profile = lab.profile("board", target="tuned", trials_log=str(log), seconds_per_trial=0.1)
    both = [lab.start("tune", lab.root / "model.onnx", "-p", profile, "--json") for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    for process in both:
        process.communicate()
    trials = log.read_text().splitlines()
    assert len(trials) == len(set(trials)) == len(lines(lab)) == 12


@pytest.mark.slow
def test_plateau_trials_and_budget_stop_each_kernel_and_say_so(lab: Place) -> None:
    few = tune(lab, "--trials", "2").json["kernels"]
    assert {(one["tried"], one["stopped"]) for one in few} == {(2, "trials")}
    flat = make_place(lab.root / "flat", Path(lab.env["PYTHONPATH"].split(":")[0]))
    found = tune(flat, "--plateau", "1", tiles=5, trial="fail", at_tile=2).json["kernels"]
    assert {(one["tried"], one["stopped"]) for one in found} == {(2, "no better one in 1 trials")}
    short = make_place(lab.root / "short", Path(lab.env["PYTHONPATH"].split(":")[0]))
    found = tune(short, "--budget", "0.1s", seconds_per_trial=0.3).json["kernels"]
    assert {one["stopped"] for one in found} == {"time"}


def test_a_build_uses_the_log_and_its_manifest_and_key_say_so(lab: Place) -> None:
    lab.write_fleet({"camera": lab.profile("board", target="tuned")})
    assert lab.build().code == 0
    before = lab.manifest("camera")
    assert {one["basis"] for one in before["tuning"]} == {"predicted"}
    tune(lab)
    assert lab.build().code == 0
    after = lab.manifest("camera")
    assert {(one["basis"], one["choice"]["tile"], one["evidence"]) for one in after["tuning"]} == {
        ("measured", 3, "measured-host")
    }
    assert all("3 runs" in one["reason"] for one in after["tuning"])
    curves = json.loads((lab.dist / "camera" / "measurements.json").read_text())["tuning"]
    assert all(len(one["values"]) == 4 and min(one["values"]) < one["values"][0] for one in curves)
    assert "Tuning of 3 kernels: together they came to" in (lab.dist / "report.html").read_text()
    assert "3 measured of 3 kernels" in after["plan"]["decisions"]["tuning"]["value"]
    digests = [{one["stage"]: one["sha256"] for one in manifest["stages"]} for manifest in (before, after)]
    assert digests[0]["compile"] != digests[1]["compile"]


def test_a_record_of_another_toolchain_is_called_transferred(lab: Place) -> None:
    tune(lab)
    [path] = log_files(lab)
    (lab.root / "lab.jsonl").write_text(path.read_text())
    other = make_place(lab.root / "other", Path(lab.env["PYTHONPATH"].split(":")[0]))
    plugin = PLUGIN.replace("('tuned')", "('tuned', version='2.0')")
    install_plugin(other.root, "newer", plugin.replace("'tuned'", "'newer'"))
    rows = _replace_target(path, other.root / "newer.jsonl")
    assert rows == 12
    other.write_fleet({"camera": other.profile("board", target="newer")})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(other.root))
        place = Place(other.root, {**other.env, "PYTHONPATH": f"{other.root}:{other.env['PYTHONPATH']}"})
        assert place.run("tune", "--import", other.root / "newer.jsonl").code == 0
        shown = place.run("plan", place.fleet, "--kernels", "--json").json["kernels"]["camera"]
    assert {(one["basis"], one["evidence"], one["choice"]["tile"]) for one in shown} == {("transferred", "none", 3)}
    assert all("fake-toolchain 1.0" in one["reason"] and "not measured here" in one["reason"] for one in shown)


def _replace_target(path: Path, to: Path) -> int:
    """The same records as if another target had made them with the old toolchain; each with its check."""
    from dataclasses import replace

    from compiler.tune import TuningLog, read_lines

    records = read_lines(path).records
    scratch = TuningLog(to.parent / "scratch")
    scratch.extend(replace(one, key=replace(one.key, target="newer")) for one in records)
    return scratch.export(to)


@pytest.mark.slow
def test_a_lab_tunes_and_a_build_server_builds(lab: Place, tuned_site: Path) -> None:
    assert tune(lab, "--export", lab.root / "lab.jsonl").json["exported"] == 12
    server = make_place(lab.root / "server", tuned_site)
    assert server.run("tune", "--import", lab.root / "lab.jsonl", "--json").json == {"imported": 12}
    assert server.run("tune", "--import", lab.root / "lab.jsonl", "--json").json == {"imported": 0}
    server.write_fleet({"camera": server.profile("board", target="tuned")})
    assert server.build().code == 0
    assert {one["basis"] for one in server.manifest("camera")["tuning"]} == {"measured"}


def test_a_damaged_export_is_refused_whole(lab: Place) -> None:
    tune(lab, "--export", lab.root / "lab.jsonl")
    text = (lab.root / "lab.jsonl").read_text().replace('"runs":3', '"runs":9', 1)
    (lab.root / "bad.jsonl").write_text(text)
    other = make_place(lab.root / "other", Path(lab.env["PYTHONPATH"].split(":")[0]))
    outcome = other.run("tune", "--import", other.root.parent / "bad.jsonl")
    assert outcome.code == 2
    assert "line 1: its check does not fit" in outcome.err
    assert not log_files(other)


def test_the_tuner_goes_on_behind_a_torn_line(lab: Place) -> None:
    tune(lab, "--trials", "2")
    [path] = log_files(lab)
    with path.open("ab") as file:
        file.write(b'{"schema": 1, "key": {"workl')
    outcome = tune(lab)
    assert "torn" in outcome.err
    assert all(one["tried"] == 4 for one in outcome.json["kernels"])
    assert len(tune(lab).json["kernels"]) == 3


@pytest.mark.slow
def test_instructions_are_never_mixed_with_times(lab: Place) -> None:
    assert tune(lab, "--backend", "emulator").json["unit"] == "instructions"
    after = tune(lab)
    assert after.json["unit"] == "us"
    assert all(one["new"] == 4 for one in after.json["kernels"])
    lab.write_fleet({"camera": lab.profile("board", target="tuned")})
    lab.build()
    assert {one["evidence"] for one in lab.manifest("camera")["tuning"]} == {"measured-host"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--backend", "rpc"), "through a tracker, under a key"),
        (("--tracker", "nowhere", "--key", "k"), "no HOST:PORT"),
        (("--tracker", "a:1", "--key", "k", "--backend", "host"), "for boards"),
        (("--budget", "soon"), "no time"),
    ],
)
def test_mistakes_on_the_command_line_are_told(lab: Place, args: tuple[str, ...], said: str) -> None:
    outcome = tune(lab, *args)
    assert outcome.code == 2
    assert said in outcome.err


def test_a_target_without_choices_says_so(lab: Place) -> None:
    profile = lab.profile("plain", target="reference")
    outcome = lab.run("tune", lab.root / "model.onnx", "-p", profile)
    assert outcome.code == 4
    assert "has no kernels with a choice" in outcome.err
