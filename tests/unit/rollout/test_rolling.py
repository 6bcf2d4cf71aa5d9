"""Rollouts: groups, gates, the journal, and what is refused."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from filelock import FileLock

from compiler.errors import CompilerError, DataError, GateFailed, UsageError
from rollout.controller import Controller
from rollout.device.files import write_json
from rollout.device.signing import device_key, sign_report
from rollout.journal import Event, Journal, Standing, State
from rollout.reports import read_reports
from rollout.repository import FleetRepository
from rollout.rolling import rollout
from rollout.spec import divide, read_spec
from tests.unit.rollout.fleet import CLASS, ONE, SICK, TWO, assign, make_agent, verified_build

DEVICES = [f"d{number:02}" for number in range(20)]
FILE = """schema: 1
name: {name}
fleet: fleet
device_class: kiosk
build: {build}
soak: {soak}
gates: {gates}
on_breach: {on_breach}
groups:
  - {{name: lab, labels: {{site: lab}}}}
  - {{name: canary, share: 10%}}
  - {{name: rest, share: rest}}
devices:
"""


def write_file(folder: Path, text: str = FILE, **changes: str) -> Path:
    """A rollout file for twenty devices, of which the first is in the lab."""
    facts = {"name": "second", "build": TWO.digest, "soak": "0s", "gates": "{}", "on_breach": "rollback", **changes}
    lines = [f"  {name}: {{site: {'lab' if name == 'd00' else 'field'}}}" for name in DEVICES]
    path = folder / "rollout.yaml"
    path.write_text(text.format(**facts) + "\n".join(lines) + "\n")
    return path


class Fleet:
    """A fleet whose devices report what a test says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fleet = folder, folder / "fleet"
        self.repository = FleetRepository(self.fleet)
        self.builds = dict.fromkeys(DEVICES, ONE.digest)

    def controller(self, **changes: str) -> Controller:
        """A rollout that was begun and started."""
        spec, document = read_spec(write_file(self.folder, **changes))
        controller = Controller(self.fleet, spec.name)
        controller.create(spec, spec.build, document)
        controller.journal.append(Event.STARTED)
        return controller

    def obey(self, *, silent: tuple[str, ...] = (), **figures: Any) -> None:
        """Every device does what it is told, and reports."""
        told = self.repository.assignment(CLASS)
        for name in DEVICES:
            if name not in silent:
                self.builds[name] = told["devices"].get(name, told["default"])
                self.report(name, rollout=told["rollout"], **figures)

    def said(self, name: str) -> dict[str, Any]:
        """What a device that follows the rollout reports."""
        return {
            "device": name,
            "device_class": CLASS,
            "build": self.builds[name],
            "state": "success",
            "rollout": "second",
        }

    def report(self, name: str, **changes: Any) -> None:
        report = {**self.said(name), "rollout": "", **changes}
        (self.fleet / "reports").mkdir(exist_ok=True)
        write_json(self.fleet / "reports" / f"{name}.json", report)


@pytest.fixture
def fleet(tmp_path: Path, made: Path) -> Fleet:
    shutil.copytree(made, tmp_path / "fleet")
    return Fleet(tmp_path)


def until_still(controller: Controller, fleet: Fleet, **figures: Any) -> Standing:
    """Controller and devices take turns until nothing changes."""
    lines = -1
    while (standing := controller.tick()).lines != lines:
        lines = standing.lines
        fleet.obey(**figures)
    return standing


def test_groups_follow_each_other_and_the_build_becomes_everybodys(fleet: Fleet) -> None:
    controller = fleet.controller()
    standing = controller.tick()
    assert [len(devices) for devices in standing.groups.values()] == [1, 2, 17]
    assert (tuple(standing.groups["lab"]), list(standing.started)) == (("d00",), ["lab"])
    exposed = fleet.repository.assignment(CLASS)["devices"]
    assert exposed == {"d00": TWO.digest}
    standing = until_still(controller, fleet)
    assert standing.state == State.FINISHED
    assert set(fleet.builds.values()) == {TWO.digest}
    assert fleet.repository.assignment(CLASS)["default"] == TWO.digest


def test_a_group_soaks_before_the_next(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = fleet.controller(soak="10m")
    assert list(until_still(controller, fleet).started) == ["lab"]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 601)
    assert list(until_still(controller, fleet).started) == ["lab", "canary"]


def test_late_requests_of_the_first_group_send_it_back_and_nobody_else_was_exposed(fleet: Fleet) -> None:
    """5 % are late, and 1 % may be."""
    controller = fleet.controller(gates="{late: 1%, requests: 50}")
    controller.tick()
    fleet.obey(requests=40, late=2)
    assert controller.tick().state == State.RUNNING  # 2 of 40 say nothing yet
    fleet.obey(requests=200, late=10)
    standing = controller.tick()
    assert (standing.state, standing.exposed) == (State.STOPPING, ("d00",))
    assert standing.why == "5 % of 200 requests were late, and the limit is 1 %"
    standing = until_still(controller, fleet)
    assert (standing.state, set(fleet.builds.values())) == (State.STOPPED, {ONE.digest})
    assert standing.group_state("lab") == "error" and standing.group_state("rest") == "scheduled"


def test_a_breach_may_pause_instead(fleet: Fleet) -> None:
    controller = fleet.controller(on_breach="pause")
    controller.tick()
    fleet.obey(requests=200, errors=20)
    standing = controller.tick()
    assert (standing.state, standing.why) == (
        State.PAUSED,
        "10 % of 200 requests failed, and the limit is 1 %",
    )


def test_devices_that_fail_are_counted_and_those_that_only_lost_the_repository_are_not(fleet: Fleet) -> None:
    controller = fleet.controller(gates="{failed: 10%}")
    controller.tick()
    fleet.report("d00", rollout="second", problem="the repository cannot be read")
    assert controller.tick().state == State.RUNNING
    fleet.report("d00", rollout="second", state="failure", why="the health run failed")
    assert controller.tick().why == "1 of 1 devices of lab failed: d00: the health run failed"


def test_a_gate_of_the_build_that_a_device_is_beyond_counts_as_a_failure(fleet: Fleet) -> None:
    """The manifest's limit against the exporter's fleetc_gate_observed; a floor the other way round."""
    gates = {
        "latency": {"limit": "5.0", "unit": "ms", "observed": "3.0"},
        "memory: run": {"limit": "40.0", "unit": "% less", "observed": "50.0"},
    }
    custom = {"device_class": CLASS, "manifest_sha256": TWO.digest, "gates": gates}
    fleet.repository.add_build(CLASS, TWO.digest, TWO.archive, custom)
    controller = fleet.controller()
    controller.tick()
    good = {"latency": {"limit": 5.0, "observed": 4.0}, "memory: run": {"limit": 40.0, "observed": 45.0}}
    fleet.obey(gates=good)
    assert controller.tick().state == State.RUNNING
    fleet.obey(gates={**good, "memory: run": {"limit": 40.0, "observed": 30.0}})
    assert "gate memory: run: 30 % less, limit 40" in controller.tick().why


def test_figures_that_are_no_numbers_count_as_silence(fleet: Fleet) -> None:
    controller = fleet.controller(gates="{requests: 10}")
    controller.tick()
    fleet.obey(requests=float("nan"))
    assert list(controller.tick().installed) == []
    fleet.obey(requests=5, late=6)
    assert list(controller.tick().installed) == []
    fleet.obey(silent=("d00",))
    write_json(fleet.fleet / "reports" / "d01.json", {**fleet.said("d00"), "build": TWO.digest})
    assert list(controller.tick().installed) == []  # a device speaks for itself alone
    fleet.obey(requests=0)  # no traffic: nothing can be judged
    standing = controller.tick()
    assert list(standing.installed) == ["lab"] and not standing.finished


def test_where_the_fleet_has_keys_a_device_speaks_for_itself_alone(fleet: Fleet, tmp_path: Path) -> None:
    keys = {}
    for name in ("d00", "d01"):
        (tmp_path / name).mkdir()
        keys[name] = device_key(tmp_path / name)
    enrolled, reports = fleet.fleet / "devices", fleet.fleet / "reports"
    fleet.report("d00")
    assert list(read_reports(fleet.fleet)[0]) == ["d00"]  # nobody is enrolled: whoever can write is believed
    enrolled.mkdir()
    shutil.copy(tmp_path / "d00" / "report.pub", enrolled / "d00.pub")
    signed = sign_report(fleet.said("d00"), keys["d00"])
    payload = base64.b64encode(json.dumps({**fleet.said("d00"), "late": 1}).encode()).decode()
    for value, message in (
        (fleet.said("d00"), "it is not signed"),
        (sign_report(fleet.said("d00"), keys["d01"]), "not signed by the key that the fleet has for this device"),
        ({**signed, "payload": payload}, "not signed by the key that the fleet has for this device"),
        (
            {**signed, "payloadType": "application/vnd.in-toto+json"},
            "is a 'application/vnd.in-toto+json' and no report",
        ),
        ({**signed, "signatures": []}, "it is no signed envelope"),
        ({**signed, "payload": "no base64!"}, "makes no sense"),
    ):
        write_json(reports / "d00.json", value)
        believed, problems = read_reports(fleet.fleet)
        assert not believed and message in problems[0], problems
    write_json(reports / "d00.json", signed)
    write_json(reports / "d01.json", sign_report(fleet.said("d01"), keys["d01"]))
    believed, problems = read_reports(fleet.fleet)
    assert list(believed) == ["d00"]
    assert problems == [f"the report of d01 makes no sense: the fleet has no key for it in {enrolled}"]


def test_a_paused_rollout_waits_and_a_killed_one_goes_on(fleet: Fleet) -> None:
    controller = fleet.controller(soak="1h")
    controller.tick()
    controller.journal.append(Event.PAUSED, why="somebody paused it")
    fleet.obey()
    assert controller.tick().state == State.PAUSED
    controller.journal.append(Event.RESUMED)
    again = Controller(fleet.fleet, "second")
    assert list(again.tick().installed) == ["lab"]
    again.journal.append(Event.ROLLBACK, why="somebody rolled it back")
    assert until_still(again, fleet).state == State.STOPPED


def test_the_journal_drops_what_was_not_finished_and_notices_what_was_changed(fleet: Fleet) -> None:
    controller = fleet.controller()
    path = controller.journal.path
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "fini')
    assert controller.journal.standing().state == State.RUNNING
    assert not Journal(path).append(Event.PAUSED, expected=1)  # others have written since
    assert Journal(path).append(Event.PAUSED, expected=2)
    assert controller.journal.standing().state == State.PAUSED
    path.write_bytes(whole.replace(b"lab", b"bal"))
    with pytest.raises(DataError, match="line 2 of the journal is not what was written"):
        controller.journal.standing()


def test_two_rollouts_on_one_fleet_are_refused(fleet: Fleet) -> None:
    fleet.controller()
    with pytest.raises(DataError, match="the rollout 'second' of class 'kiosk' is running"):
        fleet.controller(name="third", build=SICK.digest)
    with pytest.raises(DataError, match="was begun already"):
        fleet.controller()


def test_a_candidate_that_is_the_current_build_and_an_unknown_one_are_refused(fleet: Fleet) -> None:
    with pytest.raises(DataError, match="is the current build: there is nothing to roll out"):
        fleet.controller(build=ONE.digest)
    with pytest.raises(DataError, match="is not in the fleet's repository"):
        fleet.controller(build="f" * 64)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("share: rest", "share: 95%", "the shares sum to 1.05, which is 105 %"),
        ("share: 10%", "share: 110%", "expected a share above 0% and at most 100%"),
        ("share: 10%", "share: 0%", "expected a share above 0% and at most 100%"),
        ("share: rest", "share: 10%", "of 20 devices are in no group"),
        ("site: lab", "site: moon", "the group 'lab' has no device: it would be skipped"),
        ("name: canary", "name: lab", "there is a group 'lab' before it"),
        ("share: 10%", "share: rest", "after `rest` nobody is left"),
        ("share: 10%", "labels: {site: field}, share: 10%", "give one of `share` and `labels`"),
        ("soak: 0s", "soak: soon", "expected a time with its unit"),
        ("on_breach: rollback", "on_breach: shrug", "rollback"),
        ("soak:", "soaking:", "did you mean 'soak'"),
        ("schema: 1", "schema: 2", "schema"),
    ],
)
def test_a_rollout_file_that_makes_no_sense_is_refused(tmp_path: Path, before: str, after: str, message: str) -> None:
    path = write_file(tmp_path)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(UsageError) as refused:
        spec, _ = read_spec(path)
        divide(spec, spec.devices, where=str(path))
    assert message in str(refused.value)
    assert "rollout.yaml" in str(refused.value)


def command(*args: str | Path) -> Any:
    return CliRunner().invoke(rollout, list(map(str, args)))


def test_the_commands_plan_start_and_show(fleet: Fleet, tmp_path: Path) -> None:
    """Three real devices: the rollout is finished by the agents alone."""
    text = FILE.replace("10%", "34%").replace("  - {{name: lab, labels: {{site: lab}}}}\n", "")
    text = text.replace("devices:\n", "")
    path = write_file(tmp_path, text)
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("  d")))
    devices = [tmp_path / f"real{number}" for number in range(3)]

    def look() -> None:
        for device in devices:
            write_json(fleet.fleet / "reports" / f"{device.name}.json", make_agent(fleet.fleet, device).look())

    (fleet.fleet / "reports").mkdir()
    assert "there are no devices" in str(command("plan", path).exception)
    look()
    planned = command("plan", path)
    assert planned.exit_code == 0, planned.output
    assert "canary  2        66.7%" in planned.output
    process = subprocess.Popen(
        [sys.executable, "-c", "from rollout.rolling import rollout; rollout()", "start", path, "--poll-s", "0.05"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    ends = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < ends:
        look()
    _, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    assert "group finished: rest" in err
    assert {verified_build(device) for device in devices} == {TWO.digest}
    with FileLock(fleet.fleet / "rollouts" / ".controller.lock"):
        assert "another process sees to the rollouts" in str(command("resume", path).exception)
    shown = json.loads(command("status", path, "--json").output)
    assert (shown["state"], shown["group_states"]["rest"]) == ("finished", "finished")
    assert "second is finished" in command("status", path).output


def test_rolling_back_by_hand_ends_with_the_exit_code_of_a_gate(fleet: Fleet, tmp_path: Path) -> None:
    controller = fleet.controller()
    controller.tick()
    fleet.obey()
    assert command("pause", tmp_path / "rollout.yaml").exit_code == 0
    fleet.builds["d00"] = ONE.digest
    fleet.report("d00")
    outcome = command("rollback", tmp_path / "rollout.yaml", "--poll-s", "0.01")
    assert isinstance(outcome.exception, GateFailed)
    assert "somebody rolled it back" in str(outcome.exception)
    assert isinstance(command("pause", tmp_path / "rollout.yaml").exception, CompilerError)


def test_kill_of_the_controller_at_every_step_loses_no_decision(fleet: Fleet) -> None:
    """SIGKILL before each change of a file while a rollout is decided; the next start goes on, and it is finished."""
    changes = {"open", "os.rename", "os.truncate", "os.mkdir"}
    controller, step, kills = fleet.controller(), 0, 0
    while controller.journal.standing().state != State.FINISHED:
        child = os.fork()
        if child == 0:
            left = [step % 7]

            def count(event: str, args: object, left: list[int] = left) -> None:
                if event in changes and (event != "open" or args[1] not in ("r", "rb", None)):  # type: ignore[index]
                    left[0] -= 1
                    if left[0] < 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            mine = Controller(fleet.fleet, "second")
            sys.addaudithook(count)
            mine.tick()
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        kills += killed
        step += 1
        if not killed or step % 4 == 0:
            fleet.obey()
    assert kills > 20
    assert controller.journal.standing().finished == ("lab", "canary", "rest")
    assert set(fleet.builds.values()) == {TWO.digest}


def test_what_a_killed_writer_left_of_the_metadata_is_published_by_the_next(fleet: Fleet) -> None:
    """SIGKILL before each change of a file while an assignment is signed: the same assignment again reaches devices."""
    changes, step, killed = {"open", "os.rename"}, 0, True
    while killed:
        build = (ONE, TWO)[step % 2]
        child = os.fork()
        if child == 0:
            left = [step]

            def count(event: str, args: object, left: list[int] = left) -> None:
                if event in changes and (event != "open" or args[1] not in ("r", "rb", None)):  # type: ignore[index]
                    left[0] -= 1
                    if left[0] < 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            assign(fleet.repository, build, f"step {step}")
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assign(fleet.repository, build, f"step {step}")
        assert make_agent(fleet.fleet, fleet.folder / "device").look()["build"] == build.digest, step
        step += 1
    assert step > 5


def test_metadata_is_signed_again_before_it_expires(fleet: Fleet) -> None:
    version = fleet.repository.timestamp().version
    assert command("refresh", fleet.fleet).exit_code == 0
    assert FleetRepository(fleet.fleet).timestamp().version == version + 1
    assert "holds no repository" in str(command("refresh", fleet.folder).exception)
