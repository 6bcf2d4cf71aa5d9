"""Disks that are really full, the server's and a worker's: what can go on goes on, and the rest once there is space."""

from __future__ import annotations

import hashlib
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import urllib3
from fault_server import free_port

from server.connection import Refusal
from tests.server.conftest import Server, serving, wait_until

MIB = 1 << 20
pytestmark = pytest.mark.slow


@contextmanager
def small_disk(folder: Path, *, mib: int) -> Iterator[Path]:
    """A file system of so many MiB."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Nothing is left on a disk for as long as the block runs."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    try:
        yield
    finally:
        filler.unlink()


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The server's."""
    with small_disk(tmp_path_factory.mktemp("server-disk") / "disk", mib=160) as folder:
        yield folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, site: Path, disk: Path) -> Iterator[Server]:
    """A server whose data lie on a small disk."""
    root = tmp_path_factory.mktemp("disks")
    server = serving(root, site, "--join", f"127.0.0.1:{free_port()}", "--silence", "6")
    server.data.symlink_to(disk)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEETC_CLIENT_FILE", str(server.client_file))
        server.start()
        yield server
    server.kill(signal.SIGTERM)


def status(lab: Server, path: str) -> int:
    return urllib3.request("GET", lab.url + path, retries=False).status


def test_a_full_disk_of_the_server_is_said_and_what_ran_ends_once_there_is_space(lab: Server, disk: Path) -> None:
    place = lab.place
    start = place.root / "start"
    place.write_fleet({"slow": place.profile("slow", start=str(start))})
    job = lab.submit()["id"]
    wait_until(lambda: start.exists() and len(start.read_text().split()) == 2)
    build = psutil.Process(int(start.read_text().split()[0]))
    body = bytes(2 * MIB)
    with full(disk):
        with pytest.raises(Refusal) as refused:
            lab.connection.upload_part(f"/v1/blobs/{hashlib.sha256(body).hexdigest()}", body, first=0, total=len(body))
        assert refused.value.status == 507 and refused.value.problem["error"] == "StorageError"
        assert refused.value.problem["exit_code"] == 4 and refused.value.problem["remedy"]
        assert status(lab, "/readyz") == 503 and status(lab, "/healthz") == 200
        wait_until(lambda: not build.is_running())  # what cannot be reported is not gone on with
    assert status(lab, "/readyz") == 200
    finished = lab.finished(job)
    assert finished["state"] == "succeeded" and finished["devices"][0]["attempt"] == 2
    kinds = [kind for _, kind, _ in lab.connection.events(f"/v1/jobs/{job}/events")]
    assert kinds.count("job-finished") == 1


def test_a_full_disk_of_a_worker_fails_its_builds_by_name_and_no_others(lab: Server, tmp_path: Path) -> None:
    place = lab.place
    place.write_fleet({"one": place.profile("one")})
    with small_disk(tmp_path / "disk", mib=32) as small, (tmp_path / "log").open("w") as log:
        options = ("--name", "small", "--label", "board:small", "--data", small / "data")
        worker = place.start("worker", *options, stdout=log, stderr=log)
        try:
            wait_until(lambda: "small" in {one["name"] for one in lab.connection.get("/v1/workers")})
            with full(small):
                job = lab.finished(lab.submit("--label", "board:small")["id"])
                device = job["devices"][0]
                assert (device["state"], device["exit_code"], device["error"]["error"]) == ("failed", 4, "StorageError")
                assert device["attempt"] == 2 and "full" in device["error"]["what"]
            assert lab.finished(lab.submit("--label", "board:small")["id"])["state"] == "succeeded"
        finally:
            worker.terminate()
            worker.wait(60)
