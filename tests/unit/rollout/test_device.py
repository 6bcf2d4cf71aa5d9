"""The device agent: it installs, refuses and goes back, and is on one verified build whatever happens."""

from __future__ import annotations

import contextlib
import functools
import http.server
import itertools
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from compiler.errors import DataError
from compiler.store.keys import generate_key
from rollout import repository as repository_module
from rollout.bundle import pack
from rollout.device import fetch
from rollout.device.agent import Agent
from rollout.device.files import read_json, write_json
from rollout.device.signing import open_report
from rollout.device.source import Source
from rollout.repository import FleetRepository
from rollout.rolling import rollout
from tests.unit.rollout.fleet import (
    CLASS,
    ONE,
    SICK,
    TWO,
    Fake,
    assign,
    fake_build,
    make_agent,
    settings_of,
    verified_build,
)


@pytest.fixture
def fleet(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "fleet"))


def test_a_device_installs_keeps_the_build_before_and_goes_back_on_order(fleet: Path, tmp_path: Path) -> None:
    device, repository = tmp_path / "device", FleetRepository(fleet)
    assert make_agent(fleet, device).look()["state"] == "success"
    assert verified_build(device) == ONE.digest
    assign(repository, TWO, "second")
    report = make_agent(fleet, device).look()
    assert (report["state"], report["build"], report["previous"], report["rollout"]) == (
        "success",
        TWO.digest,
        ONE.digest,
        "second",
    )
    assert make_agent(fleet, device).look()["state"] == "already-installed"
    assign(repository, ONE, "back")
    assert make_agent(fleet, device).look()["build"] == ONE.digest
    assert sorted(path.name for path in (device / "versions").iterdir()) == sorted([ONE.digest, TWO.digest])


def test_a_build_that_computes_something_else_is_not_switched_to_and_not_tried_twice(
    fleet: Path, tmp_path: Path
) -> None:
    device = tmp_path / "device"
    make_agent(fleet, device).look()
    assign(FleetRepository(fleet), SICK, "sick")
    agent = make_agent(fleet, device)
    report = agent.look()
    assert (report["state"], verified_build(device)) == ("failure", ONE.digest)
    assert "the health run gives other numbers: 6.0 dB, at least 30 are asked for" in report["why"]
    next(
        (fleet / "repository" / "targets" / CLASS).glob(f"*.{SICK.digest}.tar")
    ).unlink()  # a second try would fetch it
    FleetRepository(fleet).assign(CLASS, {"rollout": "sick", "default": SICK.digest, "again": 1})
    assert agent.look()["why"] == report["why"]


def test_a_build_that_falls_ill_while_it_is_watched_is_left_again(fleet: Path, tmp_path: Path) -> None:
    device, switch = tmp_path / "device", tmp_path / "ill"
    program = f'#!/bin/sh\n[ ! -e {switch} ] || exit 7\nexec cp "$1" "$2"\n'
    build = fake_build("ill", program=program)
    make_agent(fleet, device).look()
    repository = FleetRepository(fleet)
    repository.add_build(CLASS, build.digest, build.archive, {"device_class": CLASS, "manifest_sha256": build.digest})
    assign(repository, build, "ill")
    assert make_agent(fleet, device, watch_s=1000).look()["state"] == "watching"
    assert verified_build(device) == build.digest
    switch.touch()
    report = make_agent(fleet, device, watch_s=1000).look()
    assert (report["state"], verified_build(device)) == ("failure", ONE.digest)
    assert "went back" in report["why"] and "the health run ended with 7" in report["why"]
    assert make_agent(fleet, device).look()["state"] == "failure"  # not again in this rollout


def test_what_is_watched_long_enough_is_kept(fleet: Path, tmp_path: Path) -> None:
    device = tmp_path / "device"
    make_agent(fleet, device).look()
    assign(FleetRepository(fleet), TWO, "second")
    agent = make_agent(fleet, device, watch_s=0.2)
    assert agent.look()["state"] == "watching"
    time.sleep(0.25)
    assert agent.look()["state"] == "success"


def metadata(fleet: Path) -> Path:
    return fleet / "repository" / "metadata"


def replay_metadata(fleet: Path, device: Path) -> None:
    """An attacker serves what was signed before."""
    before = fleet.with_name("before")
    shutil.copytree(fleet, before)
    assign(FleetRepository(fleet), TWO, "second")
    make_agent(fleet, device).look()
    shutil.rmtree(fleet)
    before.rename(fleet)


def freeze(fleet: Path, device: Path) -> None:
    """An attacker serves nothing new for so long that it expires."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(repository_module.VALID, "timestamp", timedelta(seconds=-1))
        FleetRepository(fleet).refresh()


def tamper_target(fleet: Path, device: Path) -> None:
    assign(FleetRepository(fleet), TWO, "second")
    (path,) = (fleet / "repository" / "targets" / CLASS).glob(f"*.{TWO.digest}.tar")
    raw = bytearray(path.read_bytes())
    raw[-2000] ^= 1
    path.write_bytes(raw)


def tamper_metadata(fleet: Path, device: Path) -> None:
    path = metadata(fleet) / "timestamp.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    value = json.loads(path.read_text())
    value["signed"]["version"] += 1
    path.write_text(json.dumps(value))


def sign_by_another(fleet: Path, device: Path) -> None:
    """An attacker has the key of another role, or none."""
    (fleet / "keys" / "timestamp.pem").write_bytes(generate_key().pem)
    FleetRepository(fleet).refresh()


def sign_for_another_class(fleet: Path, device: Path) -> None:
    """The key of one class signs a build of another, as an attacker who has that key would."""
    repository = FleetRepository(fleet)
    repository.add_class("robot")
    with repository.edit_targets(CLASS) as kiosk:
        kiosk.targets.clear()
    with repository.edit_targets("robot") as robot:
        info = repository._store(f"{CLASS}/assignment.json", b"{}", {})
        robot.targets[info.path] = info
    repository.refresh()


def mix(fleet: Path, device: Path) -> None:
    """Metadata of two moments together: the snapshot is another than the timestamp names."""
    repository = FleetRepository(fleet)
    old = (metadata(fleet) / f"{repository.snapshot().version}.snapshot.json").read_bytes()
    repository.refresh()
    (metadata(fleet) / f"{repository.snapshot().version}.snapshot.json").write_bytes(old)


def endless(fleet: Path, device: Path) -> None:
    """A file that does not end."""
    with (metadata(fleet) / "timestamp.json").open("ab") as file:
        file.truncate(50_000_000)


def raise_versions(fleet: Path, device: Path) -> None:
    """An attacker had the keys that are online, and signed versions that the fleet does not reach for years."""
    repository, honest = FleetRepository(fleet), fleet.with_name("honest")
    shutil.copytree(fleet, honest)
    for role in ("snapshot", "timestamp"):
        with repository.edit(role) as signed:
            signed.version = 1_000_000
            if role == "timestamp":
                signed.snapshot_meta.version = repository.snapshot().version
    make_agent(fleet, device).look()
    shutil.rmtree(fleet)
    honest.rename(fleet)
    FleetRepository(fleet).refresh()


def withhold(fleet: Path, device: Path) -> None:
    """A mirror that has lost what the timestamp names."""
    FleetRepository(fleet).refresh()
    (metadata(fleet) / f"{FleetRepository(fleet).snapshot().version}.snapshot.json").unlink()


def assign_what_nobody_signed(fleet: Path, device: Path) -> None:
    """The assignment names a build that the class's key did not sign."""
    FleetRepository(fleet).assign(CLASS, {"rollout": "forged", "default": "f" * 64})


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (replay_metadata, "replayed: the repository offers older metadata"),
        (freeze, "frozen: the newest metadata has expired"),
        (tamper_target, "tampered: a file is not what was signed"),
        (tamper_metadata, "wrong key: metadata is not signed by whom this device trusts"),
        (sign_by_another, "wrong key: metadata is not signed by whom this device trusts"),
        (sign_for_another_class, "no key of that class vouches"),
        (mix, "replayed"),
        (endless, "endless: a file is longer than it may be"),
        (raise_versions, "replayed: the repository offers older metadata"),
        (withhold, "the repository cannot be read"),
        (assign_what_nobody_signed, "no key of that class vouches"),
    ],
)
def test_every_attack_on_the_repository_is_refused_by_name(
    fleet: Path, tmp_path: Path, attack: Callable[[Path, Path], None], message: str
) -> None:
    device = tmp_path / "device"
    make_agent(fleet, device).look()
    attack(fleet, device)
    before = verified_build(device)
    report = make_agent(fleet, device).look()
    assert message in report["problem"]
    assert (report["state"] in ("pending", "downloading"), report["why"]) == (True, "")  # of the build nothing is known
    assert verified_build(device) == before


def test_new_keys_end_what_an_attacker_signed_with_the_old_ones(fleet: Path, tmp_path: Path) -> None:
    """TUF's way out of raised versions: devices forget what the old keys have signed."""
    device, repository = tmp_path / "device", FleetRepository(fleet)
    make_agent(fleet, device).look()
    raise_versions(fleet, device)
    assert "replayed" in make_agent(fleet, device).look()["problem"]
    for role in ("snapshot", "timestamp"):
        repository.replace_key(role)
    assert make_agent(fleet, device).look()["problem"] == ""
    stolen = Path(shutil.copytree(fleet, tmp_path / "stolen"))
    for role in (CLASS, "targets", "root", "timestamp"):  # the second change of timestamp is signed by the new root
        repository.replace_key(role)
        assert make_agent(fleet, device).look()["problem"] == "", role
    assign(repository, TWO, "second")
    assert make_agent(fleet, device).look()["build"] == TWO.digest
    assert make_agent(fleet, tmp_path / "new").look()["build"] == TWO.digest  # set up with the first root of all
    assign(FleetRepository(stolen), ONE, "forged")
    shutil.copytree(stolen / "repository", fleet / "repository", dirs_exist_ok=True)
    assert make_agent(fleet, device).look()["problem"] != ""
    assert verified_build(device) == TWO.digest


def test_a_key_is_replaced_by_command_and_a_role_that_is_none_is_refused(fleet: Path) -> None:
    before = (fleet / "keys" / "timestamp.pem").read_bytes()
    done = CliRunner().invoke(rollout, ["replace-key", str(fleet), "timestamp"])
    assert (done.exit_code, "timestamp has a new key" in done.output) == (0, True), done.output
    assert (fleet / "keys" / "timestamp.pem").read_bytes() != before
    with pytest.raises(DataError, match="there is no role 'robot'"):
        FleetRepository(fleet).replace_key("robot")


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that answers every request in one way of its own."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            with contextlib.suppress(OSError):
                answer(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def trickle(connection: socket.socket) -> None:
    """One byte of the content now and then: none comes too late, and there is no end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    drip(connection)


def drip(connection: socket.socket) -> None:
    """The same with the head."""
    while True:
        connection.sendall(b"H")
        time.sleep(0.02)


def hang(connection: socket.socket) -> None:
    time.sleep(2)


def break_off(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{")


def refuse(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")


def babble(connection: socket.socket) -> None:
    connection.sendall(b"220 welcome to our mail server\r\n")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (trickle, "slow: the repository sends so little"),
        (drip, "slow: the repository sends so little"),
        (hang, "slow: the repository sends so little"),
        (break_off, "the repository cannot be read: .*99999 bytes too early"),
        (refuse, "the repository cannot be read: .*503"),
        (babble, "the repository cannot be read"),
    ],
)
def test_a_server_that_holds_or_drops_connections_does_not_hold_or_end_the_agent(
    fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[[socket.socket], None], message: str
) -> None:
    monkeypatch.setattr(fetch, "GRACE_S", 0.3)
    monkeypatch.setattr(fetch, "GAP_S", 0.4)
    device, root = tmp_path / "device", (fleet / "root.json").read_bytes()
    make_agent(fleet, device).look()
    with answering(answer) as url:
        source, began_s = Source(url, device, root=root, device_class=CLASS), time.monotonic()
        report = Agent(settings_of(device), source).look()
    assert re.search(message, report["problem"]), report["problem"]
    assert time.monotonic() - began_s < 3
    assert verified_build(device) == ONE.digest


def test_a_device_fetches_from_a_web_server(fleet: Path, tmp_path: Path) -> None:
    handler = functools.partial(Quiet, directory=str(fleet / "repository"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, root = f"http://127.0.0.1:{server.server_port}", (fleet / "root.json").read_bytes()
        device = tmp_path / "device"
        report = Agent(settings_of(device), Source(url, device, root=root, device_class=CLASS)).look()
        server.shutdown()
    assert (report["state"], report["problem"], verified_build(device)) == ("success", "", ONE.digest)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def test_a_build_of_another_class_is_refused(fleet: Path, tmp_path: Path) -> None:
    repository = FleetRepository(fleet)
    repository.add_build(CLASS, TWO.digest, TWO.archive, {"device_class": "robot", "manifest_sha256": TWO.digest})
    assign(repository, TWO, "second")
    assert "for devices of class 'robot', this is 'kiosk'" in make_agent(fleet, tmp_path / "device").look()["why"]


def test_an_archive_is_no_way_out_of_its_folder_and_holds_no_more_than_its_manifest(
    fleet: Path, tmp_path: Path
) -> None:
    repository, device = FleetRepository(fleet), tmp_path / "device"
    more, out = fake_build("more", artifact__extra=b"x"), fake_build("out")
    escaped = Fake(out.digest, pack({"artifact/manifest.json": b"{}", "../../../escaped": b"x"}, {}))
    for build, message in ((more, "extra was added"), (escaped, "the archive holds what no build has")):
        custom = {"device_class": CLASS, "manifest_sha256": build.digest}
        repository.add_build(CLASS, build.digest, build.archive, custom)
        assign(repository, build, build.digest)
        assert message in make_agent(fleet, device).look()["why"]
    assert verified_build(device) is None
    assert not list(tmp_path.rglob("escaped"))
    assert not list((device / "versions").iterdir())


def test_a_clock_that_is_off_by_years_is_named(fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TUF's client believes the clock: one that is early would take stale metadata for fresh."""
    make_agent(fleet, tmp_path / "device").look()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3 * 365 * 86400)
    assert "clock says" in make_agent(fleet, tmp_path / "new").look()["problem"]
    assert "this device's clock went back by 1095 days" in make_agent(fleet, tmp_path / "device").look()["problem"]


def arguments_of(fleet: Path, device: Path) -> list[str]:
    """Options of an agent that keeps a new build without watching it."""
    told = ["--folder", str(device), "--repository", f"file://{fleet}/repository", "--root", f"{fleet}/root.json"]
    return [*told, "--device", "d 1", "--class", CLASS, "--watch-s", "0"]


def run_device(fleet: Path, device: Path, *args: str, prelude: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in which nothing else of fleetc can be imported."""
    blocked = "compiler numpy onnx click pydantic ruamel"
    code = f"import sys\nsys.modules.update(dict.fromkeys({blocked.split()!r}))\n{prelude}\n"
    code += "from device.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments_of(fleet, device), "--once", *args],
        env={**os.environ, "PYTHONPATH": str(Path(repository_module.__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_agent_runs_where_nothing_else_of_fleetc_is_and_reports(fleet: Path, tmp_path: Path) -> None:
    device, reports = tmp_path / "device", tmp_path / "reports"
    done = run_device(fleet, device, "--report", str(reports))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"d 1 success on {ONE.digest[:16]}")
    report = read_json(reports / "d%201.json")
    assert open_report(report, (device / "report.pub").read_bytes())["build"] == ONE.digest
    assert (device / "report.pem").stat().st_mode & 0o077 == 0
    key = (device / "report.pem").read_bytes()
    assert run_device(fleet, device).returncode == 0
    assert (device / "report.pem").read_bytes() == key


def test_an_agent_that_is_ended_leaves_no_temporary_folder(fleet: Path, tmp_path: Path) -> None:
    """As a service manager ends it, while a health run goes on."""
    begun, temporary = tmp_path / "begun", tmp_path / "tmp"
    temporary.mkdir()
    health = f"sh -c 'touch {begun}; exec sleep 60'"
    agent = subprocess.Popen(
        [sys.executable, "-P", "-m", "device", *arguments_of(fleet, tmp_path / "device"), "--health", health],
        env={**os.environ, "PYTHONPATH": str(Path(repository_module.__file__).parent), "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )
    ends = time.monotonic() + 60
    while not begun.exists() and agent.poll() is None and time.monotonic() < ends:
        time.sleep(0.02)
    assert list(temporary.glob("fleetc-health-*"))
    agent.terminate()
    _, err = agent.communicate(timeout=30)
    assert (agent.returncode, err) == (130, "")
    assert list(temporary.iterdir()) == []


def test_a_full_disk_leaves_the_build_that_is_there(fleet: Path, tmp_path: Path) -> None:
    """The system refuses every byte beyond a size, as a full disk does."""
    device = tmp_path / "device"
    make_agent(fleet, device).look()
    assign(FleetRepository(fleet), TWO, "second")
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))"
    done = run_device(fleet, device, prelude=limit)
    assert (done.returncode, "nothing was changed" in done.stdout) == (1, True), done.stdout + done.stderr
    assert verified_build(device) == ONE.digest
    assert [path.name for path in (device / "versions").iterdir()] == [ONE.digest]
    assert make_agent(fleet, device).look()["build"] == TWO.digest


def test_kill_at_every_step_leaves_one_verified_build_and_the_next_start_goes_on(
    fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL before each change of a file system's name or content, one after another, until the update is done."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # whoever is killed leaves a folder there
    device, changes = tmp_path / "device", {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink"}
    make_agent(fleet, device).look()
    assign(FleetRepository(fleet), TWO, "second")
    kept, seen = Path(shutil.copytree(device, tmp_path / "kept", symlinks=True)), set[str | None]()
    for step in itertools.count():
        shutil.rmtree(device)
        shutil.copytree(kept, device, symlinks=True)
        child = os.fork()
        if child == 0:
            left = [step]

            def count(event: str, args: object, left: list[int] = left) -> None:
                if event in changes and (event != "open" or args[1] not in ("r", "rb", None)):  # type: ignore[index]
                    left[0] -= 1
                    if left[0] < 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            agent = make_agent(fleet, device)
            sys.addaudithook(count)
            agent.look()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        seen.add(verified_build(device))
        if not os.WIFSIGNALED(status):
            break
        if step % 5 == 0:  # each ends the same way; a fifth of them says so
            assert make_agent(fleet, device).look()["build"] == TWO.digest, step
            assert not list((device / "versions").glob(".*"))
    assert step > 20
    assert seen == {ONE.digest, TWO.digest}


def test_state_follows_the_intention_after_a_kill_between_both(fleet: Path, tmp_path: Path) -> None:
    device = tmp_path / "device"
    make_agent(fleet, device).look()
    assign(FleetRepository(fleet), TWO, "second")
    make_agent(fleet, device).look()
    write_json(device / "state.json", {**read_json(device / "state.json"), "build": ONE.digest})
    assert make_agent(fleet, device).build == ONE.digest


def test_requests_are_counted_from_the_switch_on(fleet: Path, tmp_path: Path) -> None:
    device, metrics = tmp_path / "device", tmp_path / "metrics"
    template = (
        'fleetc_requests_total{{model="m",variant="a",outcome="ok"}} {ok}\n'
        'fleetc_requests_total{{model="m",variant="a",outcome="late"}} {late}\n'
        'fleetc_gate_limit{{model="m",variant="a",gate="latency"}} 5\n'
        'fleetc_gate_observed{{model="m",variant="a",gate="latency"}} 3.5\n'
    )
    metrics.write_text(template.format(ok=100, late=40))
    agent = make_agent(fleet, device, metrics=str(metrics))
    agent.look()
    metrics.write_text(template.format(ok=190, late=50))
    report = agent.look()
    assert (report["requests"], report["late"], report["gates"]) == (
        100,
        10,
        {"latency": {"limit": 5, "observed": 3.5}},
    )
    metrics.write_text(template.format(ok=5, late=1))  # the server was started again
    assert agent.look()["requests"] == 6


def test_a_board_without_python_installs_by_a_shell_script(tmp_path: Path) -> None:
    script = Path(repository_module.__file__).with_name("install.sh")
    board, paths = tmp_path / "board", {}
    for name, build in (("one", ONE), ("two", TWO)):
        paths[name] = tmp_path / f"{name}.tar"
        paths[name].write_bytes(build.archive)

    def install(*args: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", str(script), *map(str, args)], capture_output=True, text=True, check=False)

    def digest(path: Path) -> str:
        return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout[:64]

    for name, build in (("one", ONE), ("two", TWO)):
        done = install(paths[name], board, digest(paths[name]))
        assert done.returncode == 0, done.stderr
        assert verified_build(board) == build.digest
    assert "tampered" in install(paths["one"], board, digest(paths["two"])).stderr
    broken = fake_build("broken", program="#!/bin/sh\nexit 3\n")
    (tmp_path / "broken.tar").write_bytes(broken.archive)
    assert "the health run failed" in install(tmp_path / "broken.tar", board, digest(tmp_path / "broken.tar")).stderr
    assert verified_build(board) == TWO.digest
    assert install("--back", board).returncode == 0
    assert verified_build(board) == ONE.digest
