"""`fleetc serve`, a process of its own, asked by NVIDIA's own client and by clients that send anything."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from compiler import find_target, read_artifact
from compiler.target import DataError
from serving.answers import Answer
from serving.builds import read_builds
from serving.deployment import Deployment
from serving.export import export
from serving.metrics import Metrics
from serving.protocol import Inference
from tests.cli.conftest import Place
from tests.control_group import memory_group

CRASH, NAN, NAN_EVERYWHERE = 6.0, 7.0, 8.0
LATENCY = {"runs": 20, "p50_ms": 1.0, "p90_ms": 1.0}


def variant(source: Path, folder: Path, name: str, *, item_ms: float, accuracy_pct: float, **facts: object) -> Path:
    """A delivered artifact under another name, that the wild target runs."""
    shutil.copytree(source, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    told = {"crash_at": -1.0, "nan_at": [NAN_EVERYWHERE], "seconds": 0.0, **facts}
    manifest["artifact"] |= {"target": "wild", "precision": name, "facts": told}
    score = {"metric": "top-1", "low_pct": None, "high_pct": None, "count": 1, "details": {}}
    drop = {
        "metric": "top-1",
        "reference": {**score, "value_pct": 100.0},
        "candidate": {**score, "value_pct": accuracy_pct},
        "drop_pct": 100.0 - accuracy_pct,
        "low_pct": None,
        "high_pct": None,
        "rule": "point",
        "judged_pct": 0.0,
        "why": "",
    }
    manifest["decision"] |= {"precision": name, "trial": 1}
    manifest["trials"] = [
        {
            "number": 1,
            "purpose": "candidate",
            "precision": name,
            "status": "passed",
            "why": "",
            "pruned": 0.0,
            "kept_float": {},
            "options": None,
            "warnings": [],
            "note": "",
            "accuracy": {"drop": drop, "measured_on": "artifact", "evidence": "measured-host"},
            "saliency": None,
            "footprint": None,
            "speed": None,
            "gates": [],
            "stages": [],
        }
    ]
    gate = {"name": "latency", "limit": 25.0, "value": item_ms, "unit": "ms", "passed": True}
    manifest["gates"] = [{**gate, "evidence": "measured-host", "rule": "median"}]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    measured = json.loads((folder / "measurements.json").read_text())
    measured["latency"] = [
        {**LATENCY, "sizes": f"batch={size}", "p99_ms": item_ms * size, "items_per_s": 1e3 * size} for size in (1, 2, 4)
    ]
    (folder / "measurements.json").write_text(json.dumps(measured))
    return folder


@dataclass(frozen=True)
class Serving:
    """A server that runs."""

    process: subprocess.Popen[str]
    port: int
    log: Path
    grpc_port: int

    @property
    def client(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(f"127.0.0.1:{self.port}", concurrency=1)

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body or None, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def infer(
        self, first: float = 0.0, *, count: int = 1, key: str = "", **parameters: object
    ) -> tuple[int, dict[str, Any]]:
        x = np.zeros((count, 3, 8, 8), np.float32)
        x.flat[0] = first
        tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
        body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
        status, _, answer = self.ask("POST", "/v2/models/m/infer", body, {"X-Request-Key": key} if key else {})
        return status, json.loads(answer)

    def metrics(self) -> dict[str, list[Any]]:
        text = self.ask("GET", "/metrics")[2].decode()
        return {family.name: family.samples for family in text_string_to_metric_families(text)}

    def wait_for(self, text: str, seconds: float = 30.0) -> None:
        ends = time.monotonic() + seconds
        while text not in self.log.read_text():
            assert time.monotonic() < ends, self.log.read_text()
            time.sleep(0.02)


@contextmanager
def serving(place: Place, folder: Path, *args: str | Path, group: Path | None = None) -> Iterator[Serving]:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"serve-{len(list(folder.iterdir()))}.log"
    code = "import sys; from compiler.cli import cli; from serving.command import serve; cli.add_command(serve);"
    code += "from compiler.cli import main; main()"
    command = [place.command()[0], "-P", "-c", code, "-v", "serve", "--port", "0", "--name", "m", *map(str, args)]
    if group is not None:
        command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *command]
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, env=dict(place.env), cwd=folder, stdout=subprocess.PIPE, stderr=output, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, log.read_text()
            ports = [int(part) for part in re.findall(r"://127\.0\.0\.1:(\d+)", line)]
            yield Serving(process, ports[0], log, ports[-1])
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(20)


@pytest.fixture(scope="module")
def builds(shared: Place, wild: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two builds of one model: an accurate one with faults, and a fast one."""
    folder, source = tmp_path_factory.mktemp("builds"), shared.dist / "two"
    nan_at = [NAN, NAN_EVERYWHERE]
    exact = variant(source, folder / "exact", "exact", item_ms=8.0, accuracy_pct=100.0, crash_at=CRASH, nan_at=nan_at)
    return exact, variant(source, folder / "fast", "fast", item_ms=2.0, accuracy_pct=99.0)


@pytest.fixture(scope="module")
def served(shared: Place, builds: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    options = ("--slo-ms", "60000", "--grpc-port", "0")
    with serving(shared, tmp_path_factory.mktemp("served"), *options, *builds) as server:
        server.wait_for("fast is loaded")
        yield server


def back_on_top(server: Serving) -> None:
    """Waits until every build is loaded and the first of them answers."""
    ends = time.monotonic() + 60.0
    while {sample.value for sample in server.metrics()["fleetc_rung_available"]} != {1.0}:
        assert time.monotonic() < ends, server.log.read_text()
        time.sleep(0.1)
    while server.infer()[1].get("parameters", {}).get("variant") != "exact":
        assert time.monotonic() < ends, server.log.read_text()
        time.sleep(0.1)


def test_nvidias_client_gets_the_runners_own_numbers(served: Serving, builds: tuple[Path, Path]) -> None:
    back_on_top(served)
    artifact = read_artifact(builds[0]).artifact
    runner = find_target("reference").load(artifact)
    x = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    expected = runner.run({"x": x})["y"]
    client = served.client
    asked = triton.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x)
    plain = triton.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x, binary_data=False)
    as_text = [triton.InferRequestedOutput("y", binary_data=False)]
    for answer in (
        client.infer("m", [asked], request_id="seven"),
        client.infer("m", [plain], outputs=as_text, timeout=10_000_000, priority=1, model_version="1"),
        client.infer("m", [asked], request_compression_algorithm="gzip"),
    ):
        found = answer.as_numpy("y")
        assert found is not None
        np.testing.assert_array_equal(found, expected)
    response = client.infer("m", [asked], request_id="seven").get_response()
    assert response["id"] == "seven"
    told = response["parameters"]
    assert {key: told[key] for key in ("variant", "precision", "degraded")} == {
        "variant": "exact",
        "precision": "exact",
        "degraded": False,
    }
    assert len(told["manifest_sha256"]) == 64
    assert told["queue_ms"] >= 0


@pytest.mark.parametrize(("gather_s", "is_read", "sizes"), [(60.0, True, [3, 3, 3]), (0.002, False, [1])])
def test_a_batch_waits_a_moment_for_requests_that_are_being_read(
    shared: Place,
    builds: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    gather_s: float,
    is_read: bool,
    sizes: list[int],
) -> None:
    monkeypatch.setenv("PYTHONPATH", shared.env["PYTHONPATH"])
    monkeypatch.setattr("serving.deployment.GATHER_S", gather_s)
    x = np.ones((1, 3, 8, 8), np.float32)
    inference = Inference({"x": x}, size=1, outputs=())

    async def ask() -> list[int]:
        deployment = Deployment("m", "1", read_builds([builds[1]]), slo_s=60.0, metrics=Metrics([60.0]))
        await deployment.start()
        released = asyncio.Event()

        async def read_and_ask() -> Answer:
            with deployment.reading():
                await released.wait()
            return await deployment.infer(inference)

        late = [asyncio.create_task(read_and_ask()) for _ in range(2)]
        first = asyncio.create_task(deployment.infer(inference))
        for _ in range(10):  # rounds of the loop: the dispatcher has seen the first
            await asyncio.sleep(0)
        if is_read:
            released.set()
        answers = await asyncio.gather(first, *(late if is_read else ()))
        for task in late:
            task.cancel()
        await deployment.close()
        return [answer.batch for answer in answers]

    assert asyncio.run(ask()) == sizes


def test_nvidias_client_finds_everything_it_asks_for(served: Serving) -> None:
    client = served.client
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "fleetc"
    metadata = client.get_model_metadata("m")
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
    assert client.get_model_config("m")["max_batch_size"] == 4
    assert [row["name"] for row in client.get_model_repository_index()] == ["m"]
    served.infer(count=2)
    stats = client.get_inference_statistics("m")["model_stats"][0]
    assert stats["inference_stats"]["success"]["count"] >= 1
    assert 2 in [row["batch_size"] for row in stats["batch_stats"]]


def test_nvidias_client_gets_the_same_over_grpc(served: Serving) -> None:
    back_on_top(served)
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    expected = served.client.infer(
        "m", [triton.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x)]
    ).as_numpy("y")
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{served.grpc_port}") as client:
        asked = triton_grpc.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x)
        answer = client.infer("m", [asked], request_id="eight", timeout=10_000_000, priority=1, client_timeout=20)
        np.testing.assert_array_equal(answer.as_numpy("y"), expected)
        response = answer.get_response()
        assert (response.id, response.model_version) == ("eight", "1")
        told = response.parameters
        assert (told["variant"].string_param, told["degraded"].bool_param) == ("exact", False)
        assert told["queue_ms"].double_param >= 0
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("m")
        assert client.get_server_metadata().name == "fleetc"
        assert list(client.get_model_metadata("m").inputs[0].shape) == [-1, 3, 8, 8]
        assert client.get_model_config("m").config.max_batch_size == 4
        assert [row.state for row in client.get_model_repository_index().models] == ["READY"]
        assert client.get_inference_statistics("m").model_stats[0].inference_stats.success.count >= 1


@pytest.mark.parametrize(
    ("shape", "model", "timeout_us", "status", "words"),
    [
        ((1, 3, 8), "m", 0, "INVALID_ARGUMENT", "shape is [1, 3, 8]"),
        ((5, 3, 8, 8), "m", 0, "INVALID_ARGUMENT", "the model takes 1 to 4"),
        ((1, 3, 8, 8), "other", 0, "NOT_FOUND", "there is no model 'other'"),
        ((1, 3, 8, 8), "m", 100, "UNAVAILABLE", "later than its deadline"),
    ],
)
def test_what_grpc_cannot_answer_has_a_status_and_words(
    served: Serving, shape: tuple[int, ...], model: str, timeout_us: int, status: str, words: str
) -> None:
    back_on_top(served)
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{served.grpc_port}") as client:
        zeros = np.zeros(shape, np.float32)
        asked = triton_grpc.InferInput("x", list(shape), "FP32").set_data_from_numpy(zeros)
        with pytest.raises(InferenceServerException) as refused:
            client.infer(model, [asked], timeout=timeout_us)
    assert refused.value.status() == f"StatusCode.{status}"
    assert words in str(refused.value)


def test_a_grpc_port_that_is_taken_is_said(shared: Place, builds: tuple[Path, Path], served: Serving) -> None:
    outcome = shared.call("serve", builds[1], "--port", "0", "--grpc-port", str(served.grpc_port))
    assert outcome.code == DataError.exit_code
    assert "--grpc-port" in outcome.err


def test_a_delivered_artifact_is_exported_with_its_measured_times(builds: tuple[Path, Path], tmp_path: Path) -> None:
    source = shutil.copytree(builds[0], tmp_path / "source")
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["artifact"]["target"] = "reference"
    (source / "manifest.json").write_text(json.dumps(manifest))
    told = CliRunner().invoke(export, [str(source), "--triton", str(tmp_path / "models"), "--name", "m"])
    assert (told.exit_code, told.output) == (0, f"{tmp_path / 'models/m'}\n")
    config = (tmp_path / "models/m/config.pbtxt").read_text()
    assert "max_batch_size: 4\n" in config
    # 8 ms an item at every size: no batch is worth waiting for
    assert "max_queue_delay_microseconds: 0\n" in config
    assert "preferred_batch_size" not in config
    refused = CliRunner().invoke(export, [str(builds[0]), "--triton", str(tmp_path / "models"), "--name", "wild"])
    assert isinstance(refused.exception, DataError)
    assert "no backend" in str(refused.exception)


def test_a_crash_costs_one_batch_and_the_next_build_answers(served: Serving) -> None:
    back_on_top(served)
    status, answer = served.infer(CRASH)
    assert status == 503
    assert "SIGSEGV" in answer["error"]
    status, answer = served.infer()
    assert (status, answer["parameters"]["variant"], answer["parameters"]["degraded"]) == (200, "fast", True)
    back_on_top(served)


def test_killing_the_process_of_a_build_does_not_stop_the_answers(served: Serving) -> None:
    back_on_top(served)
    children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    served.wait_for("ended while nothing ran")
    started = time.monotonic()
    while served.infer()[0] != 200:
        assert time.monotonic() - started < 10.0
    back_on_top(served)


def test_of_nan_another_build_is_asked(served: Serving) -> None:
    back_on_top(served)
    status, answer = served.infer(NAN)
    assert (status, answer["parameters"]["variant"]) == (200, "fast")
    assert "NaN" not in json.dumps(answer)
    back_on_top(served)
    status, answer = served.infer(NAN_EVERYWHERE)
    assert (status, answer["error"]) == (422, "the model gives NaN for this input")
    assert served.infer()[1]["parameters"]["variant"] == "exact"  # nobody was taken out: the input is at fault


def test_what_cannot_be_in_time_is_refused_on_arrival(served: Serving) -> None:
    x = np.zeros((1, 3, 8, 8), np.float32)
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    body = json.dumps({"inputs": [tensor], "parameters": {"timeout": 1}}).encode()
    status, headers, answer = served.ask("POST", "/v2/models/m/infer", body)
    assert status == 503
    assert int(headers["retry-after"]) >= 1
    assert float(headers["fleetc-predicted-wait-ms"]) > 0
    assert "later than its deadline" in json.loads(answer)["error"]


def test_many_clients_are_answered_in_batches(served: Serving) -> None:
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda _: served.infer()[0], range(48)))
    assert statuses == [200] * 48
    stats = served.client.get_inference_statistics("m")["model_stats"][0]
    assert stats["execution_count"] < stats["inference_count"]


def test_metrics_tell_outcomes_builds_and_gates(served: Serving) -> None:
    served.infer(timeout=1)
    served.infer()
    metrics = served.metrics()
    outcomes = {sample.labels["outcome"] for sample in metrics["fleetc_requests"] if sample.name.endswith("_total")}
    assert {"ok", "shed"} <= outcomes
    info = {sample.labels["variant"]: sample.labels for sample in metrics["fleetc_build_info"]}
    assert set(info) == {"exact", "fast"}
    assert len(info["exact"]["manifest_sha256"]) == 64
    limits = {sample.labels["variant"]: sample.value for sample in metrics["fleetc_gate_limit"]}
    assert limits == {"exact": 25.0, "fast": 25.0}
    buckets = {sample.labels.get("le") for sample in metrics["fleetc_request_duration_seconds"]}
    assert {"0.025", "60.0"} <= buckets  # the gate's limit, and the time that requests have


def test_the_callers_trace_goes_on(served: Serving) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    _, headers, _ = served.ask("POST", "/v2/models/m/infer", b"{}", {"traceparent": parent})
    assert headers["traceparent"] == parent


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v2/models/other/infer", b"{}", {}, 404),
        ("/v2/models/m/versions/9/infer", b"{}", {}, 404),
        ("/v2/models/m/infer", b"", {}, 400),
        ("/v2/models/m/infer", b"[1", {}, 400),
        ("/v2/models/m/infer", b"[" * 100_000, {}, 413),
        ("/v2/models/m/infer", b"[" * 20_000, {}, 400),
        ("/v2/models/m/infer", b"\xff\xfe", {}, 400),
        ("/v2/models/m/infer", b"{}", {"Inference-Header-Content-Length": "99"}, 400),
        ("/v2/models/m/infer", b"{}", {"Inference-Header-Content-Length": "-1"}, 400),
        ("/v2/models/m/infer", b"{}", {"Content-Encoding": "gzip"}, 400),
        ("/v2/models/m/infer", b"{}", {"Content-Encoding": "br"}, 415),
        ("/v2/models/m/infer", b"x" * 2_000_000, {}, 413),
        ("/v2/repository/models/m/load", b'{"parameters": {"config": "{}"}}', {}, 400),
        ("/v2/nothing", b"", {}, 404),
    ],
)
def test_bad_requests_are_told_what_is_wrong(
    served: Serving, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    found, _, answer = served.ask("POST", path, body, headers)
    assert found == status
    assert json.loads(answer)["error"]
    assert served.infer()[0] == 200


def test_clients_that_stop_in_the_middle_hold_nobody_up(served: Serving) -> None:
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: m\r\nContent-Length: 500\r\n\r\n{"
    halves = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(20)]
    for half in halves:
        half.sendall(head)
    halves[0].shutdown(socket.SHUT_WR)
    assert served.infer()[0] == 200
    for half in halves:
        half.close()
    assert served.infer()[0] == 200


def test_another_version_takes_over_and_a_broken_one_does_not(
    shared: Place, builds: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(builds[1], tmp_path / "m")
    with serving(shared, tmp_path, "--slo-ms", "5000", folder) as server:
        statuses: list[int] = []
        stop = threading.Event()

        def keep_asking() -> None:
            while not stop.is_set():
                statuses.append(server.infer()[0])

        asking = threading.Thread(target=keep_asking)
        asking.start()
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["decision"]["precision"] = "faster"
        (folder / "manifest.json").write_text(json.dumps(manifest))
        assert server.ask("POST", "/v2/repository/models/m/load")[0] == 200
        assert server.infer()[1]["parameters"]["variant"] == "faster"
        model = next((folder / "payload").iterdir())
        model.write_bytes(model.read_bytes() + b"tampered")
        status, _, answer = server.ask("POST", "/v2/repository/models/m/load")
        assert (status, "not the bytes that were delivered" in json.loads(answer)["error"]) == (400, True)
        assert server.infer()[1]["model_version"] == "2"
        assert server.ask("POST", "/v2/repository/models/m/load", b'{"parameters": {"previous": true}}')[0] == 200
        assert server.infer()[1]["parameters"]["variant"] == "fast"
        stop.set()
        asking.join()
        assert set(statuses) == {200}
        assert server.ask("POST", "/v2/repository/models/m/unload")[0] == 200
        assert server.infer()[0] == 404
        assert server.ask("GET", "/v2/health/ready")[0] == 400


def test_sigterm_answers_what_was_let_in(shared: Place, builds: tuple[Path, Path], tmp_path: Path) -> None:
    slow = variant(builds[1], tmp_path / "slow", "slow", item_ms=1.0, accuracy_pct=100.0, seconds=1.0)
    with serving(shared, tmp_path, "--slo-ms", "10000", slow) as server, ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(server.infer) for _ in range(6)]
        while server.metrics()["fleetc_pending_requests"][0].value < 6:
            time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        assert [answer.result()[0] for answer in answers] == [200] * 6
        assert server.process.wait(20) == 0


def test_a_port_that_is_taken_and_an_artifact_that_is_not_whole_are_refused(
    served: Serving, shared: Place, builds: tuple[Path, Path], tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from compiler.target import CompilerError
    from serving.command import serve

    taken = CliRunner().invoke(serve, ["--port", str(served.port), str(builds[0])])
    assert isinstance(taken.exception, CompilerError)
    assert (taken.exception.exit_code, "in use" in str(taken.exception)) == (2, True)
    folder = shutil.copytree(builds[0], tmp_path / "broken")
    next((folder / "payload").iterdir()).unlink()
    broken = CliRunner().invoke(serve, ["--port", "0", str(folder)])
    assert isinstance(broken.exception, CompilerError)
    assert "missing" in str(broken.exception)


@pytest.mark.slow
def test_only_build_gives_way_to_one_that_takes_less_where_memory_is_short(
    shared: Place, builds: tuple[Path, Path], tmp_path: Path
) -> None:
    """The most accurate build is loaded first, and leaves no room for another."""
    source = shared.dist / "two"
    sizes = {"large": 128 << 20, "small": 1 << 20}
    for name, held_bytes in sizes.items():
        accuracy_pct = 100.0 if name == "large" else 99.0
        item_ms = 8.0 if name == "large" else 2.0
        folder = variant(
            source, tmp_path / name, name, item_ms=item_ms, accuracy_pct=accuracy_pct, held_bytes=held_bytes
        )
        manifest = json.loads((folder / "manifest.json").read_text())
        figures = {"weights_bytes": 1, "weights_evidence": "measured-host", "run_bytes": held_bytes}
        rest = {"run_evidence": "measured-host", "why": "", "process_bytes": None, "process_evidence": "none"}
        manifest["trials"][0]["footprint"] = {**figures, **rest}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    with memory_group(1 << 30) as group, serving(shared, tmp_path / "alone", tmp_path / "large", group=group):
        used = used_bytes(group)
    folders = (tmp_path / "large", tmp_path / "small")
    with (
        memory_group(used + (40 << 20)) as group,  # a build in use needs 64 MiB free
        serving(shared, tmp_path / "served", "--slo-ms", "60000", *folders, group=group) as server,
    ):
        statuses, ends = set(), time.monotonic() + 60.0
        while (answer := server.infer())[1].get("parameters", {}).get("variant") != "small":
            statuses.add(answer[0])
            assert time.monotonic() < ends, server.log.read_text()
        assert statuses <= {200, 503}
        assert {server.infer()[0] for _ in range(20)} == {200}
        assert "memory is short" in server.log.read_text()
        assert "ended by SIGKILL" not in server.log.read_text()


def used_bytes(group: Path) -> int:
    """Memory of a control group, without pages of files that the kernel can drop at once."""
    is_second = (group / "memory.current").exists()
    usage = (group / ("memory.current" if is_second else "memory.usage_in_bytes")).read_text()
    rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(usage) - int(rows["inactive_file" if is_second else "total_inactive_file"])
