"""One machine, one server: what is submitted is delivered as `fleetc build` delivers it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import psutil
import pytest

from compiler.artifact.manifest import SIGNING_FILES
from tests.cli.conftest import Place
from tests.server.conftest import Server


def device_files(place: Place) -> dict[str, bytes]:
    """The artifacts as `fleetc build` delivers them: what the server adds to sign them is left out."""
    files = place.digests().items()
    return {name: data for name, data in files if name != "build.json" and name.partition("/")[2] not in SIGNING_FILES}


@pytest.fixture(scope="module")
def delivered(running: Server) -> Server:
    """A fleet of two devices: one whose results are wrong, and one that is good."""
    place = running.place
    bad = place.profile("bad", wrong_at="MatMul")
    place.write_fleet({"bad": bad, "one": place.profile("one")})
    return running


def test_what_is_waited_for_is_delivered_and_ends_as_the_build_does(delivered: Server) -> None:
    place = delivered.place
    outcome = place.run("submit", place.fleet, "--repeat", "1", "--wait", "-o", place.dist)
    assert outcome.code == 6, outcome.err
    served = device_files(place)
    rows = json.loads((place.dist / "build.json").read_text())["devices"]
    shutil.rmtree(place.dist)
    plain = place.call(*place.build_command())  # this process may have another test's plugin of that name
    assert plain.code == 6
    assert served == device_files(place) and set(name.partition("/")[0] for name in served) == {"one"}
    assert rows == json.loads((place.dist / "build.json").read_text())["devices"]
    last = plain.err.rpartition("error: ")[2]
    assert outcome.err.rpartition("error: ")[2] == last


def test_one_machine_listens_on_its_loopback_alone(running: Server) -> None:
    assert running.process is not None
    listening = [one.laddr for one in psutil.Process(running.process.pid).net_connections() if one.status == "LISTEN"]
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_states_figures_and_errors_are_told_device_by_device(delivered: Server) -> None:
    job = delivered.place.run("jobs", "--json").json[0]
    assert job["state"] == "partial" and job["exit_code"] == 6
    bad, one = job["devices"]
    assert (one["state"], bad["state"]) == ("succeeded", "refused")
    assert one["figures"]["precision"] == "fp32" and len(one["manifest"]) == 64
    assert bad["error"]["error"] == "GateFailed" and bad["exit_code"] == 5 and not bad["manifest"]
    assert str(delivered.place.root) not in json.dumps(job)


def test_fetching_one_device_leaves_the_others_alone(delivered: Server, tmp_path: Path) -> None:
    place = delivered.place
    identity = place.run("jobs", "--json").json[0]["id"]
    out = tmp_path / "dist"
    assert place.run("fetch", identity, "-d", "one", "-o", out, "--json").json["devices"] == ["one"]
    assert {path.name for path in out.iterdir()} == {"one", "build.json", "report.html"}
    assert place.run("fetch", identity, "-d", "bad", "-o", out, "--json").json["devices"] == []
    assert list(json.loads((out / "build.json").read_text())["devices"]) == ["bad", "one"]
    assert place.run("fetch", identity, "-d", "three", "-o", out).code == 2


def test_events_are_the_compilers_and_resume_after_an_id(delivered: Server) -> None:
    identity = delivered.place.run("jobs", "--json").json[0]["id"]
    path = f"/v1/jobs/{identity}/events"
    everything = list(delivered.connection.events(path))
    kinds = [kind for _, kind, _ in everything]
    assert kinds[0] == "job-queued" and kinds[-1] == "job-finished"
    assert {"device-state", "stage-began", "stage-ended", "trial-judged"} <= set(kinds)
    middle = everything[len(everything) // 2][0]
    assert list(delivered.connection.events(path, last=middle)) == [one for one in everything if one[0] > middle]
    assert next(delivered.connection.events(path, last=10**9))[1] == "resync"


def test_a_second_submission_of_the_same_builds_nothing(delivered: Server) -> None:
    job = delivered.submit("-d", "one")
    finished = delivered.finished(job["id"])
    assert finished["state"] == "succeeded"
    measured = delivered.connection.get(f"/v1/jobs/{job['id']}/artifacts/one/measurements.json")
    assert all(stage["from_store"] for stage in measured["stages"])


def test_another_target_may_be_asked_for(delivered: Server) -> None:
    job = delivered.finished(delivered.submit("-d", "one", "--target", "reference")["id"])
    assert job["state"] == "succeeded", job
    manifest = delivered.connection.get(f"/v1/jobs/{job['id']}/artifacts/one/manifest.json")
    assert manifest["plan"]["target"] == "reference"


def test_what_no_worker_can_do_is_said_at_once_and_begins_when_cancelled_ends(delivered: Server) -> None:
    job = delivered.submit("-d", "one", "--label", "board:rpi5")
    waiting = delivered.wait_for(job["id"], lambda one: one["devices"][0]["state"] == "waiting_for_worker")
    assert waiting["devices"][0]["waiting_for"] == ["board:rpi5"]
    assert waiting["devices"][0]["position"] == 1
    answer = delivered.place.run("cancel", job["id"], "--json").json
    assert answer["job"]["state"] == "cancelled" and answer["silent"] == []


def test_a_queue_deadline_fails_what_waits_for_nobody(delivered: Server) -> None:
    job = delivered.submit("-d", "one", "--label", "board:rpi5", "--queue-deadline", "0.5")
    finished = delivered.finished(job["id"])
    assert finished["state"] == "failed" and finished["exit_code"] == 4
    assert "board:rpi5" in finished["devices"][0]["error"]["what"]


def test_the_same_idempotency_key_gives_the_same_job(delivered: Server) -> None:
    args = ("-d", "one", "--label", "board:none", "--idempotency-key", "release 7")
    first, again = delivered.submit(*args), delivered.submit(*args)
    assert first["id"] == again["id"]
    other = delivered.place.run("submit", delivered.place.fleet, "-d", "bad", "--idempotency-key", "release 7")
    assert other.code != 0 and "idempotency key" in other.err
    assert delivered.place.run("cancel", first["id"]).code == 0


def test_a_fleet_that_cannot_be_obeyed_is_refused_with_every_problem(delivered: Server, tmp_path: Path) -> None:
    place = delivered.place
    request = {
        "fleet": {"name": "fleet.yaml", "text": "schema: 1\nmodel: absent.onnx\ndevices: {a: {profile: no-such}}\n"},
        "files": {},
    }
    outcome = place.run("submit", tmp_path / "absent.yaml")
    assert outcome.code == 2
    from server.connection import Refusal

    with pytest.raises(Refusal) as refused:
        delivered.connection.post("/v1/jobs", request)
    problem = refused.value.problem
    assert refused.value.status == 422 and problem["error"] == "FleetError" and problem["exit_code"] == 2
    assert "absent.onnx" in problem["what"] and "no-such" in problem["what"]
    assert str(delivered.data) not in json.dumps(dict(problem))
