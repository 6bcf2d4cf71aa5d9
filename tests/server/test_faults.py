"""Whatever is killed, a job ends as it would have, once, and no process is left."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from fault_server import run

from server.builds import NAME
from tests.server.conftest import Server, wait_until


def hanging(server: Server) -> tuple[str, list[psutil.Process]]:
    """A job whose first attempt hangs in its toolchain: its id, and the processes of that build."""
    place = server.place
    start = place.root / "start"
    place.write_fleet({"slow": place.profile("slow", start=str(start))})
    job = server.submit()
    wait_until(lambda: start.exists() and len(start.read_text().split()) == 2)
    build, tool = (psutil.Process(int(pid)) for pid in start.read_text().split())
    return job["id"], [tool, *(one for one in build.parents() if one.name() == NAME), build]


def assert_gone(processes: list[psutil.Process]) -> None:
    wait_until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes))


def test_what_waits_is_cancelled_without_having_begun(running: Server) -> None:
    first, _ = hanging(running)  # the one slot is taken
    queued, nobody = running.submit()["id"], running.submit("--label", "board:none")["id"]
    running.wait_for(nobody, lambda job: job["devices"][0]["state"] == "waiting_for_worker")
    assert running.job(queued)["devices"][0]["state"] == "queued"
    for job in (queued, nobody, first):
        answer = running.place.run("cancel", job, "--json").json
        assert answer["job"]["state"] == "cancelled" and answer["job"]["exit_code"] == 130 and answer["silent"] == []
    assert [running.job(job)["devices"][0]["attempt"] for job in (queued, nobody, first)] == [0, 0, 1]
    (running.place.root / "start").unlink()


def test_cancel_returns_when_every_process_of_the_build_is_gone(running: Server) -> None:
    identity, processes = hanging(running)
    assert len(processes) == 3
    outcome = running.place.run("cancel", identity, "--json")
    assert not [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert outcome.code == 0 and outcome.json["job"]["state"] == "cancelled" and outcome.json["silent"] == []
    assert running.job(identity)["exit_code"] == 130
    again = running.place.run("cancel", identity, "--json")
    assert again.code == 0 and again.json["job"] == running.job(identity)
    (running.place.root / "start").unlink()


@pytest.mark.slow
def test_a_killed_build_is_begun_again_and_delivered(running: Server) -> None:
    identity, processes = hanging(running)
    processes[1].kill()
    assert_gone(processes)
    job = running.finished(identity)
    assert job["state"] == "succeeded" and job["devices"][0]["attempt"] == 2
    (running.place.root / "start").unlink()


@pytest.mark.slow
def test_a_toolchain_that_crashes_gets_a_second_attempt_and_fails_with_its_class(running: Server) -> None:
    place = running.place
    place.write_fleet({"crash": place.profile("crash", build="crash"), "good": place.profile("good")})
    job = running.finished(running.submit()["id"])
    crash, good = job["devices"]
    assert (crash["state"], crash["attempt"], crash["exit_code"]) == ("failed", 2, 4)
    assert crash["error"]["error"] == "ToolchainFailed"
    assert (good["state"], good["attempt"]) == ("succeeded", 1)
    assert job["state"] == "partial" and job["exit_code"] == 6


def test_a_killed_server_takes_its_builds_along_and_the_next_one_ends_the_job(own: Server) -> None:
    own.start()
    identity, processes = hanging(own)
    own.kill(signal.SIGKILL)
    assert_gone(processes)
    own.start()
    job = own.finished(identity)
    assert job["state"] == "succeeded" and job["devices"][0]["attempt"] == 2
    states = [kind for _, kind, _ in own.connection.events(f"/v1/jobs/{identity}/events")]
    assert states.count("job-finished") == 1


@pytest.mark.slow
def test_a_stopped_server_ends_its_builds_in_order_and_refuses_a_second_one_in_its_folder(
    own: Server, tmp_path: Path
) -> None:
    own.start()
    second = own.place.call("server", "--data", own.data, "--port", "0", "--client-file", tmp_path / "other.json")
    assert second.code == 4 and "uses this folder already" in second.err
    identity, processes = hanging(own)
    assert own.kill(signal.SIGTERM) == 0
    assert_gone(processes)
    own.start()
    assert own.finished(identity)["state"] == "succeeded"


@pytest.mark.slow
def test_jobs_on_two_workers_end_as_they_would_have_whatever_is_killed_at_random(tmp_path: Path) -> None:
    value = run(tmp_path, 6, random.Random(2), time.monotonic() + 180)
    assert value["problems"] == [] and sum(value["kills"].values()) > 0
