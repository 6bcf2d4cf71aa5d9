"""Triton and MOSEC beside `fleetc serve`: the same build, the same requests, in turn.

Triton is the server inside PyPI's `nvidia-pytriton`, which carries one backend, the one for Python: it runs the
repository that `fleetc export --triton --python` writes. MOSEC runs the smallest worker that opens the same model with
the same settings. Each peer needs an environment of its own:

    python -m venv TRITON && TRITON/bin/pip install nvidia-pytriton==0.7.0 'numpy<2' openvino==2026.4.1
    python -m venv MOSEC && MOSEC/bin/pip install mosec openvino==2026.4.1

Servers are kept to one set of processors and clients to another (`--cores`); rounds take turns, so that what else the
machine does meets all alike.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from serving_load import Process, Server, closed_loop, infer_request, make_body, make_inputs, overhead, post

from compiler import read_artifact
from compiler.target import Artifact, find_target
from serving.builds import Served, read_builds
from serving.export import export_triton, read_exported

ROUNDS, SAMPLES = 5, 20
CLIENTS = (1, 8)
READY_S = 60.0
LONG_S = 60.0
"""Time that requests have: no server shall refuse any."""

MOSEC_WORKER = """
import json, sys
from pathlib import Path
import numpy as np
import openvino
from mosec import Server, Worker

told = json.loads(Path({told!r}).read_text())

class Model(Worker):
    def __init__(self):
        network = openvino.Core().read_model(told["model"])
        self.request = openvino.Core().compile_model(network, "CPU", told["settings"]).create_infer_request()

    def deserialize(self, data):
        return np.frombuffer(data, told["dtype"]).reshape(told["shape"])

    def serialize(self, data):
        return data.tobytes()

    def forward(self, items):
        return list(self.request.infer([np.stack(items)], share_inputs=True)[0].copy())

server = Server()
server.append_worker(Model, num=1, max_batch_size=told["largest"], max_wait_time=told["wait_ms"])
server.run()
"""


@dataclass(frozen=True)
class Environments:
    """Where the peers are installed; None: not measured."""

    triton: Path | None
    mosec: Path | None


@dataclass(frozen=True)
class Peer:
    """A server with the request that it understands."""

    server: Process
    request: bytes


def peers(folder: Path, environments: Environments, *, cores: tuple[str, str], count: int) -> dict[str, Any]:
    """Equal answers, then throughput and latency of every server in turn.

    Args:
        folder: An artifact of the target `openvino` with one input and one output.
        environments: Where the peers are.
        cores: Processors of the servers, and of the clients, as taskset takes them.
        count: Requests of each client in each round.
    """
    artifact = read_artifact(folder).artifact
    served = read_builds([folder])
    os.sched_setaffinity(0, [int(core) for core in cores[1].split(",")])
    before = ("taskset", "-c", cores[0])
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory(prefix="fleetc-peers-")))
        ours = Server(_alone(folder, place), LONG_S, before=before)
        stack.callback(ours.close)
        running = {"fleetc": Peer(ours, infer_request(*make_body(served)))}
        if environments.triton:
            triton = stack.enter_context(_triton(environments.triton, folder, place / "triton", before))
            running["triton"] = Peer(triton, infer_request(*make_body(served)))
        if environments.mosec:
            mosec = stack.enter_context(_mosec(environments.mosec, artifact, served, place / "mosec", before))
            running["mosec"] = Peer(mosec, post("/inference", next(iter(make_inputs(served).values())).tobytes()))
        time.sleep(2.0)
        result: dict[str, Any] = {
            "artifact": {"precision": artifact.precision, "settings": artifact.facts["config"]},
            "peers": _versions(environments),
            "cores": {"servers": cores[0], "clients": cores[1]},
            "load_before": os.getloadavg(),
            "equal_answers": _equal(running, served, artifact),
            "ready_s": {name: round(peer.server.ready_s, 2) for name, peer in running.items()},
            "memory_mib": {name: peer.server.memory_mib() for name, peer in running.items()},
            "clients": {str(clients): _in_turn(running, clients, count) for clients in CLIENTS},
        }
        result["load_after"] = os.getloadavg()
        return result


def _versions(environments: Environments) -> dict[str, str]:
    """Versions of what is measured beside ours; of Triton that of the server in the wheel."""
    found = {}
    for name, environment in (("nvidia-pytriton", environments.triton), ("mosec", environments.mosec)):
        if environment:
            told = f"from importlib.metadata import version; print(version({name!r}))"
            python = [str(environment / "bin" / "python"), "-c", told]
            found[name] = subprocess.run(python, capture_output=True, text=True, check=True).stdout.strip()
    return found


def _alone(folder: Path, place: Path) -> Path:
    """The delivered build without its ladder: no peer has one."""
    copy = Path(shutil.copytree(folder, place / "alone", ignore=shutil.ignore_patterns("rungs")))
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    (copy / "manifest.json").write_text(json.dumps({**manifest, "ladder": None}), "utf-8")
    return copy


def _equal(running: Mapping[str, Peer], served: Served, artifact: Artifact) -> dict[str, str]:
    """How many answers have the very bits of the target's own runner; values are read, and not statuses."""
    runner = find_target(artifact.target).load(artifact)
    equal = dict.fromkeys(running, 0)
    for seed in range(SAMPLES):
        inputs = make_inputs(served, seed)
        expected = b"".join(array.tobytes() for array in runner.run(inputs).values())
        assert expected  # noqa: S101  an empty tensor would be equal to an empty answer
        for name, peer in running.items():
            raw = next(iter(inputs.values())).tobytes()
            own = post("/inference", raw) if name == "mosec" else infer_request(*make_body(served, seed))
            (reply,) = asyncio.run(closed_loop(peer.server.port, own, 1, 1))
            equal[name] += reply.status == 200 and reply.body == expected
    runner.close()
    return {name: f"{count} of {SAMPLES}" for name, count in equal.items()}


def _in_turn(running: Mapping[str, Peer], clients: int, count: int) -> dict[str, Any]:
    """Rounds of every server in turn; medians, and each peer's figures over ours round by round."""
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in running}
    for peer in running.values():  # to warm up
        overhead(peer.server, peer.request, clients, max(5, count // 10))
    for _ in range(ROUNDS):
        for name, peer in running.items():
            rounds[name].append(overhead(peer.server, peer.request, clients, count))
    keys = ("requests_per_s", "p50_ms", "p99_ms", "front_cpu_ms", "builds_cpu_ms")
    result: dict[str, Any] = {
        name: {key: round(statistics.median(one[key] for one in of_server), 3) for key in keys}
        | {"failed": sum(one["requests"] - one["ok"] for one in of_server)}
        for name, of_server in rounds.items()
    }
    for name in [other for other in running if other != "fleetc"]:
        pairs = list(zip(rounds["fleetc"], rounds[name], strict=True))
        result[f"fleetc over {name}"] = {
            key: {
                "median": round(statistics.median(ours[key] / theirs[key] for ours, theirs in pairs), 3),
                "rounds": [round(ours[key] / theirs[key], 3) for ours, theirs in pairs],
            }
            for key in ("requests_per_s", "p99_ms")
        }
    return result


@contextmanager
def _triton(environment: Path, folder: Path, repository: Path, before: Sequence[str]) -> Iterator[Process]:
    """Triton with the exported repository in its Python backend."""
    export_triton(read_exported(folder), repository, name="m", is_python=True)
    (home,) = environment.glob("lib/python*/site-packages/pytriton/tritonserver")
    (libraries,) = environment.glob("lib/python*/site-packages/nvidia_pytriton.libs")
    version = home.parents[2].name.removeprefix("python")
    (stub,) = home.glob(f"python_backend_stubs/{version}/triton_python_backend_stub")
    backend = repository.parent / "backends" / "python"
    backend.mkdir(parents=True)
    for path in (*(home / "backends" / "python").iterdir(), stub):
        if path.name != stub.name or path == stub:
            (backend / path.name).symlink_to(path)
    port = _free_port()
    environ = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{libraries}:{_libpython()}",
        "PYTHONPATH": str(home.parents[1]),
        "PATH": f"{environment}/bin:{os.environ['PATH']}",
    }
    options = {
        "--model-repository": repository,
        "--backend-directory": backend.parent,
        "--http-address": "127.0.0.1",
        "--http-port": port,
        "--allow-grpc": "false",
        "--allow-metrics": "false",
    }
    command = [*before, str(home / "bin" / "tritonserver"), *(f"{key}={value}" for key, value in options.items())]
    with _started(command, environ, repository.parent / "triton.log", port, "/v2/health/ready") as process:
        yield process


@contextmanager
def _mosec(
    environment: Path, artifact: Artifact, served: Served, place: Path, before: Sequence[str]
) -> Iterator[Process]:
    """MOSEC with a worker that opens the same model with the same settings."""
    place.mkdir()
    here = len(os.sched_getaffinity(0))
    settings = dict(artifact.facts["config"])  # type: ignore[call-overload]  # JSON of the target
    settings["INFERENCE_NUM_THREADS"] = str(min(int(settings["INFERENCE_NUM_THREADS"]), here))
    ((_, dtype, shape),) = served.signature.shapes(served.signature.steps(1))
    told = {
        "model": str(artifact.root.absolute() / "payload" / "model.xml"),
        "settings": settings,
        "dtype": dtype,
        "shape": shape[1:],
        "largest": served.signature.largest,
        "wait_ms": 1,
    }
    (place / "told.json").write_text(json.dumps(told), "utf-8")
    (place / "worker.py").write_text(MOSEC_WORKER.format(told=str(place / "told.json")), "utf-8")
    port = _free_port()
    command = [*before, str(environment / "bin" / "python"), str(place / "worker.py")]
    command += ["--address", "127.0.0.1", "--port", str(port), "--timeout", "60000"]
    with _started(command, dict(os.environ), place / "log", port, "/metrics") as process:
        yield process


@contextmanager
def _started(command: Sequence[str], environ: Mapping[str, str], log: Path, port: int, path: str) -> Iterator[Process]:
    """A server that answers at a path; its log is shown where it does not."""
    started = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(command, env=dict(environ), stdout=output, stderr=output, text=True)
    try:
        while not _answers(f"http://127.0.0.1:{port}{path}"):
            if process.poll() is not None or time.monotonic() > started + READY_S:
                raise SystemExit(f"{command} does not answer:\n{log.read_text()[-3000:]}")
            time.sleep(0.05)
        yield Process(process, port, time.monotonic() - started)
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        _, left = psutil.wait_procs([psutil.Process(process.pid), *children], timeout=10)
        for child in left:
            child.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _libpython() -> str:
    """Where the library of this Python is: Triton's stub needs one of the same minor version."""
    import sysconfig

    return str(sysconfig.get_config_var("LIBDIR"))
