"""A second worker: it rebuilds what the first one built, vanishes with its network, and runs out of disk."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import urllib3
from fault_server import free_port

from server.builds import NAME
from tests.server.conftest import Server, serving, wait_until


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Iterator[Server]:
    """A server with its own worker, which others may join, and which gives up what is silent for eight seconds."""
    join = f"127.0.0.1:{free_port()}"
    server = serving(tmp_path_factory.mktemp("lab"), site, "--join", join, "--silence", "8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEETC_CLIENT_FILE", str(server.client_file))
        server.start()
        yield server
    server.kill(signal.SIGTERM)


@pytest.fixture(scope="module")
def second(lab: Server) -> Iterator[subprocess.Popen[str]]:
    """A worker as on another machine, which is preferred where both are free.

    It has temporary files, and so a gate of what is timed, of its own.
    """
    folder = lab.place.root / "second"
    (folder / "tmp").mkdir(parents=True)
    place = replace(lab.place, env={**lab.place.env, "TMPDIR": str(folder / "tmp")})
    with (lab.place.root / "second.log").open("a") as log:
        options = ("--name", "second", "--data", folder, "--no-timing")
        process = place.start("worker", *options, stdout=log, stderr=log)
    wait_until(lambda: "second" in {one["name"] for one in lab.connection.get("/v1/workers")})
    yield process
    process.send_signal(signal.SIGCONT)
    process.terminate()
    process.wait(60)


@pytest.mark.slow
def test_a_rebuild_waits_for_another_worker_and_adds_its_signature(
    lab: Server, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The first test of the file: until it waits there is one worker."""
    place = lab.place
    named = place.profile("named", random="named")  # its bytes differ each time, and the manifest says so
    place.write_fleet({"one": place.profile("one"), "named": named})
    early = place.run("submit", place.fleet, "--reproduce", "--repeat", "1")
    assert early.code != 0 and "no build of the same inputs was delivered for one, named" in early.err
    first = lab.finished(lab.submit()["id"])
    assert first["state"] == "succeeded"
    rebuild = lab.submit("--reproduce")
    waiting = lab.wait_for(rebuild["id"], lambda job: job["devices"][0]["state"] == "waiting_for_worker")
    assert waiting["devices"][0]["waiting_for"] == ["other-than:embedded"]
    request.getfixturevalue("second")
    again = lab.finished(rebuild["id"])
    assert [one["worker"] for one in again["devices"]] == ["second", "second"] and again["state"] == "succeeded"
    assert [one["original"] for one in again["devices"]] == [first["id"], first["id"]]
    keys = {name: tmp_path / f"{name}.pub" for name in ("server", "rebuilt")}
    for name, file in keys.items():
        file.write_bytes(urllib3.request("GET", f"{lab.url}/v1/public-keys/{name}").data)
    for job in (first["id"], rebuild["id"]):
        out = tmp_path / job
        assert place.run("fetch", job, "-o", out).code == 0
        asked = ("--key", keys["server"], "--key", keys["rebuilt"], "--files-only")
        assert place.run("verify", out / "one", *asked).code == 0
        assert place.run("verify", out / "named", *asked).code == 0
    builders = (tmp_path / rebuild["id"] / "one" / "provenance.intoto.jsonl").read_text().splitlines()
    assert len(builders) == 2


@pytest.mark.slow
def test_a_rebuild_makes_everything_but_what_was_observed(lab: Server, second: object) -> None:
    place = lab.place
    log = place.root / "builds"
    place.write_fleet({"one": place.profile("logged", log=str(log))})
    lab.finished(lab.submit()["id"])
    assert lab.finished(lab.submit()["id"])["state"] == "succeeded"
    assert log.read_text().count("logged") == 1  # the second job took it from the cache
    assert lab.finished(lab.submit("--reproduce")["id"])["state"] == "succeeded"
    assert log.read_text().count("logged") == 2


@pytest.mark.slow
def test_a_rebuild_with_other_bytes_names_the_files_and_leaves_what_was_delivered(
    lab: Server, second: object, tmp_path: Path
) -> None:
    place = lab.place
    place.write_fleet({"noisy": place.profile("noisy", random="silent")})
    first = lab.finished(lab.submit()["id"])
    outcome = place.run("submit", place.fleet, "--repeat", "1", "--reproduce", "--wait", "-o", tmp_path)
    assert outcome.code == 5 and "other bytes in: manifest.json, payload/noise.bin" in outcome.err
    job = lab.place.run("jobs", "--json").json[0]
    assert (job["devices"][0]["state"], job["devices"][0]["manifest"]) == ("refused", "")
    assert place.run("fetch", first["id"], "-o", tmp_path / "first", "--json").json["devices"] == ["noisy"]


def test_a_plan_says_what_the_cache_has_and_who_could_do_the_rest(lab: Server, second: object) -> None:
    from server.client import job_request

    place = lab.place
    place.write_fleet({"one": place.profile("planned"), "two": place.profile("two")})
    lab.finished(lab.submit("-d", "one")["id"])
    # the devices that a job was about are no part of its inputs
    request, _ = job_request(place.fleet, settings={"repeat": 1})
    one, two = lab.connection.post("/v1/plan", request)["devices"]
    assert set(one["workers"]) == {"embedded", "second"} and one["missing"] == []
    labels = {worker["name"]: worker["labels"] for worker in lab.connection.get("/v1/workers")}
    assert "timing" in labels["embedded"] and "timing" not in labels["second"]
    assert one["original"] and one["seconds"] > 0
    assert {"rewrite", "compile"} <= set(one["cached"]) and all(one["cached"].values())
    assert (two["original"], two["cached"]) == ("", {})


@pytest.mark.slow
def test_a_worker_that_vanishes_with_its_network_is_given_up_and_ends_its_build_when_it_is_back(
    lab: Server, second: subprocess.Popen[str]
) -> None:
    place = lab.place
    start = place.root / "start"
    place.write_fleet({"slow": place.profile("slow", start=str(start))})
    job = lab.submit()["id"]
    wait_until(lambda: start.exists() and len(start.read_text().split()) == 2)
    build = psutil.Process(int(start.read_text().split()[0]))
    family = [build, *(one for one in build.parents() if one.name() == NAME)]
    assert lab.job(job)["devices"][0]["worker"] == "second"
    second.send_signal(signal.SIGSTOP)
    finished = lab.finished(job)
    device = finished["devices"][0]
    assert (device["state"], device["attempt"], device["worker"]) == ("succeeded", 2, "embedded")
    second.send_signal(signal.SIGCONT)
    wait_until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family))
    assert lab.job(job) == finished
    kinds = [kind for _, kind, _ in lab.connection.events(f"/v1/jobs/{job}/events")]
    assert kinds.count("job-finished") == 1
    wait_until(lambda: len(lab.connection.get("/v1/workers")) == 2)  # and it works on
    start.unlink()


@pytest.mark.slow
def test_a_cancel_says_whose_worker_has_not_answered(lab: Server, second: subprocess.Popen[str]) -> None:
    place = lab.place
    start = place.root / "start-cancelled"
    place.write_fleet({"slow": place.profile("slow", start=str(start))})
    job = lab.submit()["id"]
    wait_until(lambda: start.exists() and len(start.read_text().split()) == 2)
    assert lab.job(job)["devices"][0]["worker"] == "second"
    build = psutil.Process(int(start.read_text().split()[0]))
    second.send_signal(signal.SIGSTOP)
    outcome = place.run("cancel", job, "--json")
    assert outcome.code == 4 and outcome.json["silent"] == ["second"]
    assert outcome.json["job"]["state"] == "cancelled"
    second.send_signal(signal.SIGCONT)
    wait_until(lambda: not build.is_running())
    assert lab.job(job)["devices"][0]["attempt"] == 1
    start.unlink()
