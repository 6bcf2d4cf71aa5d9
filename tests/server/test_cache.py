"""The server's shared cache and its signature: what one worker finished, other builds take; nobody else's is seen."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from pathlib import Path

import pytest
import urllib3

from server.api.app import MAX_JSON_BYTES
from server.certificates import server_certificate
from tests.cli.conftest import Outcome
from tests.server.conftest import Server, serving


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the client brought what `built` has built: a folder of its own, as other files share the server."""
    return tmp_path_factory.mktemp("dist")


@pytest.fixture(scope="module")
def built(running: Server, dist: Path) -> Server:
    """A server that has built a fleet of one device."""
    running.place.write_fleet({"one": running.place.profile("one")})
    outcome = running.place.run("submit", running.place.fleet, "--repeat", "1", "--wait", "-o", dist)
    assert outcome.code == 0, outcome.err
    return running


@pytest.fixture(scope="module")
def public(built: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's public key, as anybody gets it."""
    path = tmp_path_factory.mktemp("keys") / "server.pub"
    path.write_bytes(urllib3.request("GET", f"{built.url}/v1/public-keys/server").data)
    return path


def key_of(server: Server, project: str, *scopes: str) -> str:
    body = {"name": "test", "project": project, "scopes": scopes}
    return str(server.connection.post("/v1/keys", body)["key"])


def build(server: Server, folder: Path, public: Path, token: str) -> Outcome:
    """`fleetc build` of the same fleet with an empty store of its own."""
    place = server.place
    shared = ("--remote-cache", f"{server.url}/cache", "--remote-cache-token", token, "--trusted-key", public)
    # a process of its own: this one may have another test's plugin of the same name
    return place.call(
        "build", place.fleet, "-o", folder, "--repeat", "1", "--cache", folder / "cache", "--json", *shared
    )


def ask(server: Server, method: str, path: str, token: str, body: bytes = b"") -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return urllib3.request(method, f"{server.url}{path}", headers=headers, body=body or None, retries=False).status


def entry(server: Server) -> str:
    """Path of an entry of the project `default`."""
    path = next((server.data / "cache" / "default" / "ac").glob("??/*"))
    return f"/cache/ac/{path.name}"


def stages(folder: Path) -> list[bool]:
    measured = json.loads((folder / "one" / "measurements.json").read_text())
    return [stage["from_store"] for stage in measured["stages"]]


def test_a_build_elsewhere_takes_what_a_worker_finished(
    built: Server, dist: Path, public: Path, tmp_path: Path
) -> None:
    outcome = build(built, tmp_path, public, key_of(built, "default", "read"))
    assert outcome.code == 0, outcome.err
    assert all(stages(tmp_path))
    names = ["one/manifest.json", "build.json"]
    assert [(tmp_path / name).read_bytes() for name in names] == [(dist / name).read_bytes() for name in names]


def test_a_second_worker_takes_what_the_first_finished(built: Server, tmp_path: Path) -> None:
    shutil.rmtree(built.data / "worker" / "cache")  # as on another machine
    job = built.finished(built.submit()["id"])
    assert job["state"] == "succeeded"
    measured = built.connection.get(f"/v1/jobs/{job['id']}/artifacts/one/measurements.json")
    assert all(stage["from_store"] for stage in measured["stages"])


def test_a_project_sees_its_own_entries_alone(built: Server) -> None:
    path = entry(built)
    assert ask(built, "GET", path, key_of(built, "default", "read")) == 200
    assert ask(built, "GET", path, key_of(built, "other", "read")) == 404
    assert ask(built, "GET", path, key_of(built, "default", "submit")) == 403
    assert ask(built, "GET", path, "") == ask(built, "GET", path, "fleetc_0_wrong") == 401
    assert ask(built, "GET", f"/v1/attempts/{'0' * 32}{path}", built.key) == 409


def test_only_who_may_work_for_the_project_offers_entries(built: Server) -> None:
    path = f"/cache/cas/{'0' * 64}"
    assert ask(built, "PUT", path, key_of(built, "default", "read", "submit"), b"x") == 403
    assert ask(built, "PUT", path, key_of(built, "default", "worker"), b"x") == 400  # other bytes than the digest's
    assert ask(built, "PUT", "/cache/../keys", built.key, b"x") in (400, 404, 405)


def test_files_are_larger_than_other_requests_may_be(built: Server) -> None:
    body = bytes(MAX_JSON_BYTES + 1)
    path = f"/cache/cas/{hashlib.sha256(body).hexdigest()}"
    assert ask(built, "PUT", path, built.key, body) == 200
    assert ask(built, "HEAD", path, built.key) == 200


def test_what_is_fetched_is_signed_by_the_server(built: Server, dist: Path, public: Path, tmp_path: Path) -> None:
    place = built.place
    artifact = dist / "one"
    assert place.run("verify", artifact, "--key", public, "--files-only").code == 0
    changed = tmp_path / "one"
    shutil.copytree(artifact, changed)
    with (changed / "bom.cdx.json").open("ab") as file:
        file.write(b" ")
    assert place.run("verify", changed, "--key", public, "--files-only").code == 5


def test_the_key_is_its_owners_alone_and_stays(built: Server, public: Path) -> None:
    folder = built.data / "signing"
    assert stat.S_IMODE((folder / "server.pem").stat().st_mode) == 0o600
    assert (folder / "server.pub").read_bytes() == public.read_bytes()


@pytest.mark.slow
def test_a_cache_behind_an_authority_of_its_own_is_used_by_whoever_names_that(tmp_path: Path, site: Path) -> None:
    server = serving(tmp_path / "own", site, "--slots", "0")
    certificate, key = server_certificate(server.data / "tls", ["127.0.0.1"])
    server.options += ("--certificate", str(certificate), "--certificate-key", str(key))
    server.start()
    try:
        assert server.url.startswith("https://")
        place, public = server.place, server.data / "signing" / "server.pub"
        place.write_fleet({"one": place.profile("one")})
        shared = ("--remote-cache", f"{server.url}/cache", "--remote-cache-token", server.key, "--trusted-key", public)
        named = ("--remote-cache-ca", server.data / "tls" / "ca.pem")
        outcomes = {}
        for name in ("first", "second"):  # the first makes all of it, and offers it
            folders = ("-o", tmp_path / name, "--cache", tmp_path / name / "cache")
            outcomes[name] = place.call("build", place.fleet, *folders, "--repeat", "1", *shared, *named)
    finally:
        server.kill()
    assert [outcome.code for outcome in outcomes.values()] == [0, 0], outcomes["second"].err
    assert all(stages(tmp_path / "second")) and not any(stages(tmp_path / "first"))
    assert "warning" not in outcomes["first"].err + outcomes["second"].err
