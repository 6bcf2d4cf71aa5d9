"""What strangers send is refused by its status and in words, and hurts nobody."""

from __future__ import annotations

import hashlib
import json
import random
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import urllib3

from server.connection import Connection, Refusal
from tests.server.conftest import Server, wait_until

FLEET = "schema: 1\nmodel: model.onnx\ndevices:\n  a: {profile: raspberry-pi-5}\n"
MODEL = b"not a model, and nobody opens it before a worker does"
DIGEST = hashlib.sha256(MODEL).hexdigest()


def ask(server: Server, method: str, path: str, **options: Any) -> urllib3.BaseHTTPResponse:
    headers = {"Authorization": f"Bearer {server.key}", **options.pop("headers", {})}
    return urllib3.request(method, server.url + path, headers=headers, retries=False, redirect=False, **options)


def refusal(connection: Connection, path: str, value: object) -> Refusal:
    with pytest.raises(Refusal) as caught:
        connection.post(path, value)
    return caught.value


@pytest.fixture(scope="module")
def other(running: Server) -> Connection:
    """A key of another project that may read and submit."""
    made = running.connection.post("/v1/keys", {"name": "other", "project": "other", "scopes": ["read", "submit"]})
    return Connection(running.url, made["key"])


@pytest.fixture(scope="module")
def uploaded(running: Server) -> dict[str, Any]:
    """A request whose model is there."""
    running.connection.upload_part(f"/v1/blobs/{DIGEST}", MODEL, first=0, total=len(MODEL))
    return {"fleet": {"name": "fleet.yaml", "text": FLEET}, "files": {"model.onnx": DIGEST}}


def fleet(text: str) -> dict[str, Any]:
    return {"fleet": {"name": "fleet.yaml", "text": text}, "files": {"model.onnx": DIGEST}}


@pytest.mark.parametrize(
    "name",
    [
        "../model.onnx",
        "/etc/passwd",
        "a/../../b",
        "a//b",
        "./a",
        "a\\b",
        "a\x00b",
        "fleet.yaml",
        "x" * 300,
        "a/\x1b[31m",
    ],
)
def test_a_path_that_is_no_plain_path_below_the_folder_is_refused(
    running: Server, uploaded: dict[str, Any], name: str
) -> None:
    for path in ("/v1/jobs", "/v1/plan"):
        refused = refusal(running.connection, path, {**uploaded, "files": {**uploaded["files"], name: DIGEST}})
        assert refused.status == 422 and refused.problem["exit_code"] == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FLEET.replace("model.onnx", "/etc/hostname"), "outside"),
        (FLEET.replace("model.onnx", "../../jobs.sqlite"), "outside"),
        (FLEET.replace("raspberry-pi-5", "/etc/passwd"), "outside"),
        (FLEET + "x: &a [1]\ny: *a\n", "anchors"),
        ("a: " + "[" * 5000, ""),
        (FLEET + "e: !!python/object/apply:os.system [id]\n", "tags"),
        ("\x00", ""),
        (FLEET.replace("schema: 1", "schema: 99"), "schema"),
    ],
)
def test_a_fleet_file_of_a_stranger_is_read_as_any_other(
    running: Server, uploaded: dict[str, Any], text: str, words: str
) -> None:
    refused = refusal(running.connection, "/v1/jobs", fleet(text))
    assert refused.status == 422 and words in str(refused.problem)
    assert str(running.place.root) not in json.dumps(dict(refused.problem))


def test_code_of_a_fleet_file_needs_its_scope(running: Server, other: Connection, uploaded: dict[str, Any]) -> None:
    other.upload_part(f"/v1/blobs/{DIGEST}", MODEL, first=0, total=len(MODEL))
    named = fleet(FLEET + "calibration: {path: 'evil:run'}\n")
    refused = refusal(other, "/v1/jobs", named)
    assert refused.status == 403 and "evil:run" in refused.problem["detail"]


def test_a_key_reaches_its_own_project_alone(running: Server, other: Connection, uploaded: dict[str, Any]) -> None:
    job = running.connection.post("/v1/jobs", {**uploaded, "labels": ["board:none"]})["id"]
    for path in (f"/v1/jobs/{job}", f"/v1/jobs/{job}/log", f"/v1/jobs/{job}/artifacts/a.tar"):
        with pytest.raises(Refusal) as refused:
            other.get(path)
        assert refused.value.status == 404
    assert refusal(other, f"/v1/jobs/{job}/cancel", None).status == 404
    assert other.get("/v1/jobs") == [] and other.get("/v1/queue") == []
    assert refusal(other, "/v1/keys", {"name": "x", "scopes": ["admin"]}).status == 403
    assert refusal(other, "/v1/workers", {"name": "x", "csr": ""}).status == 403
    running.connection.post(f"/v1/jobs/{job}/cancel")


def test_files_of_another_project_are_not_there(running: Server, uploaded: dict[str, Any]) -> None:
    made = running.connection.post("/v1/keys", {"name": "third", "project": "third", "scopes": ["submit"]})
    third = Connection(running.url, made["key"])
    assert third.get(f"/v1/blobs/{DIGEST}/parts") == {"received": 0, "complete": False}
    refused = refusal(third, "/v1/jobs", uploaded)
    assert refused.status == 424 and "model.onnx" in refused.problem["detail"]


def test_keys_that_are_none_are_ended_or_are_over_are_refused(running: Server) -> None:
    made = running.connection.post("/v1/keys", {"name": "short", "scopes": ["read"], "valid_days": 1e-9})
    ended = running.connection.post("/v1/keys", {"name": "ended", "scopes": ["read"]})["key"]
    running.connection.call("DELETE", f"/v1/keys/{ended.split('_')[1]}")
    for key in ("", "x", "fleetc_" + "0" * 12 + "_x", "fleetc_é_x", made["key"], ended, running.key[:-1]):
        answer = urllib3.request("GET", f"{running.url}/v1/jobs", headers={"Authorization": f"Bearer {key}".encode()})
        assert answer.status == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
    assert running.key not in (running.data / "jobs.sqlite").read_bytes().decode("latin-1")


def test_a_page_of_another_site_reaches_nothing(running: Server) -> None:
    assert ask(running, "GET", "/v1/jobs", headers={"Host": "evil.example"}).status == 421
    assert ask(running, "POST", "/v1/plan", headers={"Origin": "http://evil.example"}, body=b"{}").status == 403


def test_an_upload_that_breaks_goes_on_where_it_broke(running: Server) -> None:
    data = random.Random(1).randbytes(3 << 20)
    digest, connection = hashlib.sha256(data).hexdigest(), running.connection
    path, received = f"/v1/blobs/{digest}", 0
    gap = {"Content-Range": f"bytes {len(data) - 1}-{len(data) - 1}/{len(data)}"}
    for length in (700_000, 1, 1 << 20, 300_001):
        send_broken(running, path, data, received, length)
        # a part that would leave a gap is refused by 416, once the broken request has let go of the file
        wait_until(lambda: ask(running, "PUT", path, body=b"x", headers=gap).status == 416)
        state = connection.get(f"{path}/parts")
        assert received <= state["received"] <= received + length and not state["complete"]
        received = state["received"]
    assert received > 0
    state = connection.upload_part(path, data[received:], first=received, total=len(data))
    assert state == {"received": len(data), "complete": True}
    assert ask(running, "HEAD", path).status == 200
    assert "Traceback" not in (running.place.root / "server.log").read_text()


def send_broken(server: Server, path: str, data: bytes, first: int, length: int) -> None:
    """A part whose connection ends in the middle."""
    place = urlsplit(server.url)
    head = [
        f"PUT {path} HTTP/1.1",
        f"Host: {place.netloc}",
        f"Authorization: Bearer {server.key}",
        f"Content-Range: bytes {first}-{len(data) - 1}/{len(data)}",
        f"Content-Length: {len(data) - first}",
    ]
    with socket.create_connection((str(place.hostname), int(place.port or 0)), timeout=30) as sock:
        sock.sendall(("\r\n".join(head) + "\r\n\r\n").encode() + data[first : first + length])


def test_bytes_of_another_digest_are_refused_and_forgotten(running: Server) -> None:
    path = f"/v1/blobs/{'0' * 64}"
    assert ask(running, "PUT", path, body=b"something").status == 422
    assert running.connection.get(f"{path}/parts") == {"received": 0, "complete": False}
    assert (
        ask(running, "PUT", path, body=b"x", headers={"Content-Range": "bytes 0-99999999999/100000000000"}).status
        == 413
    )


def raw(server: Server, data: bytes) -> bytes:
    place = urlsplit(server.url)
    with socket.create_connection((str(place.hostname), int(place.port or 0)), timeout=30) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        return sock.recv(64)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 300_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET \xff\xfe HTTP/9.9\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000000\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ],
)
def test_what_is_no_http_ends_its_connection_alone(running: Server, data: bytes) -> None:
    assert not raw(running, data).startswith(b"HTTP/1.1 5")
    assert running.connection.get("/healthz")["status"] == "ok"


BODIES = [
    b"",
    b"{",
    b"null",
    b"[" * 10_000,
    b'{"a":' * 10_000,
    b"\xff\xfe",
    b'{"fleet": {"name": "fleet.yaml", "text": 1e999}}',
    b'{"fleet": NaN}',
    json.dumps({"fleet": {"name": "a.yaml", "text": "a: 1"}, "files": {}, "priority": 10**400}).encode(),
    json.dumps({"fleet": {"name": "a.yaml\n", "text": "a"}, "files": {}}).encode(),
    json.dumps({"fleet": {"name": "a.yaml", "text": "\ud800"}, "files": {}}).encode(),
    json.dumps({"fleet": {"name": "a.yaml", "text": "a"}, "files": {"a": "0" * 64}, "unknown": 1}).encode(),
    b"fleet=1",
]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plan", "/v1/keys"])
@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded"])
def test_a_body_that_is_none_of_ours_is_the_clients_fault(running: Server, path: str, kind: str) -> None:
    for body in BODIES:
        answer = ask(running, "POST", path, body=body, headers={"Content-Type": kind})
        assert 400 <= answer.status < 500, body[:80]
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert {"status", "detail"} <= set(answer.json())
    assert ask(running, "POST", path, body=b" " * (17 << 20)).status == 413


def paths(chance: random.Random) -> Iterator[tuple[str, str, bytes]]:
    """Endless requests of nonsense."""
    words = [
        "v1",
        "jobs",
        "blobs",
        "attempts",
        "..",
        "%2e%2e",
        "%00",
        "artifacts",
        "a" * 64,
        "0" * 12,
        "é",
        "latest",
        "keys",
        "news",
    ]
    while True:
        path = "/" + "/".join(chance.choice(words) for _ in range(chance.randrange(1, 6)))
        query = (
            f"?{chance.choice(['limit', 'before', 'wait_s', 'x'])}={chance.choice(['-1', 'nan', '1e400', 'é', '0'])}"
        )
        method = chance.choice(["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "TRACE"])
        yield method, path + query, chance.choice(BODIES)


def test_requests_of_nonsense_are_refused_and_never_our_fault(running: Server, slow_factor: int) -> None:
    chance = random.Random(20)
    pool = urllib3.PoolManager(retries=False)
    headers = {"Authorization": f"Bearer {running.key}", "Content-Type": "application/json"}
    for _, (method, path, body) in zip(range(200 * slow_factor), paths(chance), strict=False):
        answer = pool.request(method, running.url + path, body=body, headers=headers, redirect=False)
        assert answer.status < 500, (method, path, body[:80])
    assert running.connection.get("/readyz")["status"] == "ready"
