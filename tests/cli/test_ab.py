"""A candidate beside a served build: mirrored requests, divided clients, and who is refused."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from compiler.errors import DataError, GateFailed
from rollout.commands import ab
from rollout.live import Mode, Request, falls_to_candidate
from tests.cli.conftest import Place
from tests.cli.test_serve import Serving, serving, variant

Builds = dict[str, Path]


@pytest.fixture(scope="module")
def builds(shared: Place, wild: None, tmp_path_factory: pytest.TempPathFactory) -> Builds:
    """The build in use, and candidates: one that answers alike, one that decides otherwise, one that is slow."""
    folder, source = tmp_path_factory.mktemp("builds"), shared.dist / "two"
    facts: dict[str, dict[str, Any]] = {
        "current": {},
        "alike": {},
        "other": {"factor": -1.0},
        "slow": {"seconds": 0.06},
        "broken": {"nan_at": [0.0]},
    }
    return {
        name: variant(source, folder / name, name, item_ms=2.0, accuracy_pct=100.0, **more)
        for name, more in facts.items()
    }


@pytest.fixture(scope="module")
def served(shared: Place, builds: Builds, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(shared, tmp_path_factory.mktemp("served"), "--slo-ms", "1000", builds["current"]) as server:
        yield server


def told(server: Serving, *args: str | Path) -> Any:
    """What `fleetc ab` prints as JSON."""
    result = CliRunner().invoke(ab, [*map(str, args), "--port", str(server.port), "--json"])
    if result.exception is not None and not isinstance(result.exception, GateFailed):
        raise result.exception
    return json.loads(result.output)


@contextmanager
def experiment(server: Serving, builds: Builds, candidate: str, *args: str) -> Iterator[Any]:
    """An experiment that is stopped at the end if it still runs."""
    begun = told(server, builds[candidate], "--against", builds["current"], *args)
    try:
        yield begun
    finally:
        if told(server, "verdict")["standing"] == "running":
            told(server, "stop")


def ask_until(server: Serving, is_enough: Callable[[Any], bool], *, keys: int = 1) -> Any:
    """Requests one after another until the report says enough."""
    ends, number = time.monotonic() + 60, 0
    while time.monotonic() < ends:
        for _ in range(20):
            number += 1
            status, _ = server.infer(count=4, key=f"client {number}" if keys > 1 else "")
            assert status == 200
        report = told(server, "verdict")
        if is_enough(report):
            return report
    raise AssertionError(report)


def test_a_mirrored_candidate_that_answers_alike_ships(served: Serving, builds: Builds, tmp_path: Path) -> None:
    with experiment(served, builds, "alike", "--shadow", "100%") as begun:
        assert begun["verdict"]["decision"] == "unhealthy"
        assert begun["verdict"]["reasons"][0] == "no request reached the candidate"
        report = ask_until(served, lambda report: report["verdict"]["decision"] != "keep going")
        assert report["verdict"]["decision"] == "ship"
        assert [metric["name"] for metric in report["verdict"]["metrics"]] == [
            "errors",
            "decisions flipped",
            "cosine distance",
        ]
        told(served, "verdict", "--page", tmp_path / "page.html")
        assert "ship" in (tmp_path / "page.html").read_text("utf-8")
        families = served.metrics()
        assert families["fleetc_shadow_agreement_ratio"][0].value == 1.0
        state = {sample.labels["state"]: sample.value for sample in families["fleetc_experiment_state"]}
        assert state == {"running": 1, "rolled back": 0, "shipped": 0, "stopped": 0}
    assert told(served, "verdict")["standing"] == "stopped"


def test_a_mirrored_candidate_that_decides_otherwise_is_rolled_back_and_nobody_sees_it(
    served: Serving, builds: Builds
) -> None:
    with experiment(served, builds, "other", "--shadow", "50%"):
        report = ask_until(served, lambda report: report["standing"] != "running")
    assert report["standing"] == "rolled back"
    assert "decisions flipped is beyond its limit" in report["why"]
    result = CliRunner().invoke(ab, ["verdict", "--port", str(served.port)])
    assert isinstance(result.exception, GateFailed)
    assert served.infer()[1]["parameters"]["variant"] == "current"


def test_a_split_rolls_back_late_answers_and_failed_ones(served: Serving, builds: Builds) -> None:
    """Every request is answered, also those that the candidate fails."""
    with experiment(served, builds, "slow", "--split", "30%", "--latency-ms", "40", "--median-ms", "40"):
        report = ask_until(served, lambda report: report["standing"] != "running", keys=2)
        assert "later than 40 ms is beyond its limit" in report["why"]
    with experiment(served, builds, "broken", "--split", "30%"):
        report = ask_until(served, lambda report: report["standing"] != "running", keys=2)
        assert report["why"].startswith("errors is beyond its limit")


def test_a_client_keeps_its_build_and_the_ramp_goes_up(served: Serving, builds: Builds) -> None:
    options = ("--split", "5%", "--least-requests", "1", "--errors-pct", "60", "--latency-ms", "900")
    with experiment(served, builds, "alike", *options):
        variants = [{served.infer(key=f"k{key}")[1]["parameters"]["variant"] for _ in range(2)} for key in range(60)]
        assert all(len(seen) == 1 for seen in variants)
        report = told(served, "verdict")
        assert report["share"] == 0.05
        traffic = report["verdict"]["traffic"]
        assert (traffic["current"] + traffic["candidate"], sum(traffic["keys"])) == (120, 60)


def test_whoever_ships_lets_the_candidate_answer_and_can_go_back(served: Serving, builds: Builds) -> None:
    with experiment(served, builds, "alike", "--shadow", "10%"):
        assert told(served, "ship")["standing"] == "shipped"
    assert served.infer()[1]["parameters"]["variant"] == "alike"
    body = json.dumps({"parameters": {"previous": True}}).encode()
    assert served.ask("POST", "/v2/repository/models/m/load", body)[0] == 200
    assert served.infer()[1]["parameters"]["variant"] == "current"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["current", "--against", "current", "--shadow", "10%"], "the candidate is the current build"),
        (["alike", "--against", "other", "--shadow", "10%"], "name the folder that is served"),
        (["alike", "--against", "current"], "one of --shadow and --split"),
        (["alike", "--against", "current", "--split", "100%"], "a share of 1 of the traffic"),
        (["alike", "--against", "nothing", "--split", "10%"], "there is no manifest.json"),
    ],
)
def test_what_cannot_be_compared_is_refused(served: Serving, builds: Builds, args: list[str], message: str) -> None:
    paths = [str(builds.get(arg, arg)) for arg in args]
    result = CliRunner().invoke(ab, [*paths, "--port", str(served.port)])
    assert isinstance(result.exception, DataError)
    assert message in str(result.exception)


def test_strangers_and_second_experiments_are_refused(served: Serving, builds: Builds) -> None:
    status, _, body = served.ask("POST", "/v2/models/m/experiment", b"{}", {"Authorization": "Bearer guessed"})
    assert (status, "only the user who runs the server" in json.loads(body)["error"]) == (401, True)
    with experiment(served, builds, "alike", "--shadow", "10%"):
        command = [str(builds["alike"]), "--against", str(builds["current"]), "--shadow", "10%"]
        result = CliRunner().invoke(ab, [*command, "--port", str(served.port)])
        assert "has an experiment already" in str(result.exception)


def test_no_server_at_the_port_is_said() -> None:
    result = CliRunner().invoke(ab, ["verdict", "--port", "1"])
    assert isinstance(result.exception, DataError)
    assert "no `fleetc serve` of this user listens at port 1" in str(result.exception)


def test_a_build_for_verification_decides_by_pairs_at_the_fleets_threshold(
    shared: Place, builds: Builds, tmp_path: Path
) -> None:
    """Opposite answers have other highest scores, and the same similarity of two rows."""
    folder = Path(shutil.copytree(builds["current"], tmp_path / "faces"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["threshold"] = {"similarity": 0.4, "far": 0.001, "impostor_pairs": 1000, "people": 46}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with serving(shared, tmp_path / "served", "--slo-ms", "1000", folder) as server:
        command = ["begin", str(builds["other"]), "--against", str(folder), "--shadow", "100%", "--cosine-drop", "2"]
        begun = CliRunner().invoke(ab, [*command, "--port", str(server.port)])
        assert begun.exit_code == 0 and "pairs are accepted above 0.4000, the fleet's threshold" in begun.stderr
        report = ask_until(server, lambda report: report["verdict"]["decision"] != "keep going")
        flips = next(one for one in report["verdict"]["metrics"] if one["name"] == "decisions flipped")
        assert (report["verdict"]["decision"], flips["candidate"]) == ("ship", 0)
    answers = np.random.default_rng(0).standard_normal((40, 4))
    for name, array in (("a", answers), ("b", -answers)):
        np.savez(tmp_path / f"{name}.npz", y=array)
    replayed = ["replay", str(tmp_path / "b.npz"), "--against", str(tmp_path / "a.npz"), "--json"]
    for told_threshold, share in ((["--threshold", str(folder)], 0), (["--threshold", "0.4"], 0), ([], 1)):
        verdict = json.loads(CliRunner().invoke(ab, [*replayed, *told_threshold]).stdout)
        assert verdict["metrics"][1]["candidate"] == share
    wrong = CliRunner().invoke(ab, [*replayed, "--threshold", str(builds["current"])])
    assert "its manifest has no threshold" in wrong.stderr


def test_keys_fall_to_the_candidate_by_their_share_and_stay_as_it_grows() -> None:
    keys = [f"user {number}" for number in range(20_000)]
    small, large = ({key for key in keys if falls_to_candidate(key, share, salt="s")} for share in (0.05, 0.25))
    assert small < large
    assert abs(len(small) / len(keys) - 0.05) < 0.008
    assert abs(len({key for key in keys if falls_to_candidate(key, 0.05, salt="t")} & small) / len(keys)) < 0.006


def test_a_split_begins_at_its_share_and_goes_on_by_the_ramp() -> None:
    assert Request("c", "a", Mode.SPLIT, 0.05).rules.ramp == (0.05, 0.10, 0.25, 0.50)
    assert Request("c", "a", Mode.SHADOW, 0.1).rules.ramp == ()
