"""The tables, on SQLite and on PostgreSQL: attempts are fenced, and every state leads to its end."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from compiler.errors import ServerError
from server.attempt_rows import Attempt, Superseded, begin_attempt, end_attempt, find_attempt, give_up, hear
from server.jobs import OtherBody, Waiting, add_job, cancel_job, queue
from server.keys import Principal
from server.schema import DeviceState, FleetText, JobRequest, JobState, Outcome, Scope
from server.tables import Database, open_database
from server.views import read_events, view_job

WHO = Principal("0" * 12, "default", frozenset(Scope), None)
REQUEST = JobRequest(FleetText("fleet.yaml", "schema: 1"), {"model.onnx": "0" * 64})
FAILED = {"error": "ModelError", "exit_code": 3, "what": "no", "where": "", "remedy": ""}


def postgres_programs() -> Path | None:
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL of its own on a socket in a folder."""
    programs, as_user = postgres_programs(), ["runuser", "-u", "postgres", "--"]
    if programs is None or shutil.which("runuser") is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path("/tmp") / f"fleetc-postgres-{time.time_ns()}"
    run = {"check": True, "capture_output": True, "timeout": 120}
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    data = folder / "data"
    try:
        made = subprocess.run(
            [*as_user, programs / "initdb", "-D", data, "-A", "trust", "-N"],
            capture_output=True,
            check=False,
            timeout=120,
        )
        if made.returncode:
            pytest.skip(f"PostgreSQL cannot be started here: {made.stderr.decode()[-200:]}")
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        command = [*as_user, programs / "pg_ctl", "-D", data, "-w", "-o", options, "-l", folder / "log", "start"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)
        yield f"postgresql://postgres@/postgres?host={folder}"
        subprocess.run([*as_user, programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **run)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = request.getfixturevalue("postgres") if request.param == "postgres" else ""
    opened = open_database(url, tmp_path)
    yield opened
    opened.close()


def add(database: Database, *names: str, key: str | None = None) -> str:
    return add_job(database, REQUEST, WHO, labels={name: ["reference"] for name in names}, idempotency_key=key)[0]


def waiting(database: Database, job: str) -> list[Waiting]:
    with database.reading() as connection:
        return [one for one in queue(connection) if one.job == job]


def begin(database: Database, job: str) -> Attempt:
    begun = begin_attempt(database, waiting(database, job)[0], "worker")
    assert begun is not None
    attempt, token = begun
    assert find_attempt(database, attempt.id, token) == attempt
    with pytest.raises(Superseded):
        find_attempt(database, attempt.id, "another token")
    return attempt


def end(database: Database, attempt: Attempt, code: int | None, error: dict[str, object] | None = None) -> DeviceState:
    return end_attempt(database, attempt, Outcome(code, error=error, seconds=1.0), most_losses=3)


def test_the_last_device_finishes_the_job(database: Database) -> None:
    job = add(database, "a", "b")
    assert end(database, begin(database, job), 0) is DeviceState.SUCCEEDED
    assert view_job(database, job).state is JobState.RUNNING
    assert end(database, begin(database, job), 3, FAILED) is DeviceState.FAILED
    view = view_job(database, job)
    assert (view.state, view.exit_code) == (JobState.PARTIAL, 6) and view.finished is not None
    kinds = [kind for _, kind, _ in read_events(database, job, 0)]
    assert kinds[0] == "job-queued" and kinds[-1] == "job-finished" and kinds.count("job-finished") == 1


def test_an_attempt_that_was_given_up_can_write_nothing(database: Database) -> None:
    job = add(database, "a")
    first = begin(database, job)
    give_up(database, first, "its worker is gone", most_losses=3)
    second = begin(database, job)
    assert (first.number, second.number) == (1, 2)
    for write in (lambda: hear(database, first, []), lambda: end(database, first, 0)):
        with pytest.raises(Superseded):
            write()
    give_up(database, first, "again", most_losses=3)
    assert end(database, second, 0) is DeviceState.SUCCEEDED
    with pytest.raises(Superseded):
        end(database, second, 3, FAILED)
    assert view_job(database, job).devices[0].state is DeviceState.SUCCEEDED


def test_tables_of_an_older_server_get_the_columns_that_they_lack(database: Database, tmp_path: Path) -> None:
    job = add(database, "a")
    with database.writing() as connection:
        connection.execute(text("ALTER TABLE devices DROP COLUMN original"))
        connection.execute(text("ALTER TABLE devices DROP COLUMN not_on"))
    url = database.engine.url.render_as_string(hide_password=False) if database.engine.name == "postgresql" else ""
    database.close()
    opened = open_database(url, tmp_path)
    try:
        assert view_job(opened, job).devices[0].original == ""
        assert waiting(opened, job)[0].not_on == ""
    finally:
        opened.close()


def test_a_device_begins_once_however_many_ask(database: Database) -> None:
    job = add(database, "a")
    (device,) = waiting(database, job)
    begun: list[object] = []
    threads = [threading.Thread(target=lambda: begun.append(begin_attempt(database, device, "w"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one is not None for one in begun) == 1 and len(begun) == 8


@pytest.mark.parametrize(
    ("outcomes", "state", "attempts"),
    [
        ([(4, "ToolchainFailed"), (0, "")], DeviceState.SUCCEEDED, 2),
        ([(4, "ToolchainFailed")] * 2, DeviceState.FAILED, 2),
        ([(5, "GateFailed")], DeviceState.REFUSED, 1),
        ([(-9, "")] * 3, DeviceState.LOST, 3),
        ([(130, ""), (None, ""), (None, ""), (None, ""), (0, "")], DeviceState.SUCCEEDED, 5),
    ],
)
def test_what_may_pass_is_tried_again_and_what_may_not_ends(
    database: Database, outcomes: list[tuple[int | None, str]], state: DeviceState, attempts: int
) -> None:
    job = add(database, "a")
    for code, name in outcomes:
        error = {**FAILED, "error": name, "exit_code": code} if name else None
        end(database, begin(database, job), code, error)
    (device,) = view_job(database, job).devices
    assert (device.state, device.attempt) == (state, attempts)
    assert (device.error is None) == (state is DeviceState.SUCCEEDED)


def test_cancelled_in_every_state(database: Database) -> None:
    job = add(database, "queued", "runs", "done")
    done, runs = begin(database, job), None
    end(database, done, 0)
    runs = begin(database, job)
    assert hear(database, runs, []) is False
    cancel_job(database, job)
    assert hear(database, runs, [{"event": "stage-began", "stage": "compile"}]) is True
    assert end(database, runs, None) is DeviceState.CANCELLED
    cancel_job(database, job)
    view = view_job(database, job)
    assert (view.state, view.exit_code) == (JobState.CANCELLED, 130)
    assert [one.state for one in view.devices].count(DeviceState.SUCCEEDED) == 1


def test_one_idempotency_key_is_one_job_whoever_is_first(database: Database) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(add(database, "a", key="one"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
    with pytest.raises(OtherBody):
        add_job(database, replace(REQUEST, priority=1), WHO, labels={"a": []}, idempotency_key="one")


def test_a_higher_priority_goes_first_and_the_earlier_of_equals(database: Database) -> None:
    low, middle = add(database, "a"), add(database, "a")
    high, _ = add_job(database, replace(REQUEST, priority=5), WHO, labels={"a": []})
    with database.reading() as connection:
        order = [one.job for one in queue(connection) if one.job in (low, middle, high)]
    assert order == [high, low, middle]
    assert view_job(database, high).devices[0].position == 1


def test_a_second_server_is_refused(database: Database, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    is_postgres = "postgres" in request.node.name
    url = request.getfixturevalue("postgres") if is_postgres else ""
    folder = tmp_path / "other" if is_postgres else tmp_path
    folder.mkdir(exist_ok=True)
    with pytest.raises(ServerError, match="already"):
        open_database(url, folder)
