"""Servers that are measured, and the clients that ask them: closed and open loops, processor time, memory."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

from serving.builds import Served
from serving.protocol import DATATYPES

STOP_S = 60.0
LOADED_S = 15.0
"""Seconds that builds have to be loaded while the first one answers."""


@dataclass(frozen=True)
class Reply:
    """One request: when it was due and how late it was sent, how long its answer took, its status, build and bytes."""

    at_s: float
    sent_late_s: float
    seconds: float
    status: int
    variant: str
    body: bytes


class Process:
    """A server: its process and those that it started.

    Args:
        process: The process.
        port: Where it answers.
        ready_s: Seconds until it did.
    """

    def __init__(self, process: subprocess.Popen[str], port: int, ready_s: float) -> None:
        self.process, self.port, self.ready_s = process, port, ready_s

    def family(self) -> list[psutil.Process]:
        """The process that was started, and all below it."""
        front = psutil.Process(self.process.pid)
        return [front, *front.children(recursive=True)]

    def cpu_s(self) -> list[float]:
        """Processor seconds of the first process, and of the others."""
        times = [sum(process.cpu_times()[:2]) for process in self.family()]
        return [times[0], sum(times[1:])]

    def memory_mib(self) -> list[int]:
        """Memory of each process, its part of what they share."""
        return [round(process.memory_full_info().pss / 2**20) for process in self.family()]

    def close(self) -> None:
        """Ends it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(STOP_S)


class Server(Process):
    """`fleetc serve`.

    Args:
        folder: The artifact.
        slo_s: Time of a request.
        before: What its command line begins with: to pin it, or to put it into a control group.
    """

    def __init__(self, folder: Path, slo_s: float, *, before: Sequence[str] = ()) -> None:
        started = time.monotonic()
        code = "from compiler.cli import main; main()"
        command = [*before, sys.executable, "-c", code, "serve", str(folder), "--port", "0", "--name", "m", "--slo-ms"]
        process = subprocess.Popen([*command, str(slo_s * 1e3)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None  # noqa: S101  it was asked for
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        super().__init__(process, port, time.monotonic() - started)

    def wait_for(self, builds: int) -> None:
        """Waits until so many builds are loaded; no longer than `LOADED_S`, since memory may not be enough for all."""
        ends = time.monotonic() + LOADED_S
        while self._loaded() < builds and time.monotonic() < ends:
            time.sleep(0.1)

    def outcomes(self) -> Counter[str]:
        """How many requests ended how, by the server's own clock."""
        found = Counter[str]()
        for sample in self._samples("fleetc_requests"):
            if sample.name.endswith("_total"):
                found[sample.labels["outcome"]] += int(sample.value)
        return found

    def _loaded(self) -> int:
        return sum(sample.value == 1.0 for sample in self._samples("fleetc_rung_available"))

    def _samples(self, family: str) -> list[Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        return {one.name: one for one in text_string_to_metric_families(text)}[family].samples


def make_inputs(served: Served, seed: int = 0) -> dict[str, np.ndarray]:
    """One item of random values."""
    shapes = served.signature.shapes({**served.signature.steps(0), **({"batch": 1} if served.signature.batch else {})})
    draw = np.random.default_rng(seed)
    return {name: draw.random(shape).astype(dtype) for name, dtype, shape in shapes}


def make_body(served: Served, seed: int = 0) -> tuple[bytes, str]:
    """A binary request of one item, and the length of its JSON."""
    inputs = make_inputs(served, seed)
    head = {
        "inputs": [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": DATATYPES[array.dtype.name],
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in inputs.items()
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(head).encode()
    return text + b"".join(array.tobytes() for array in inputs.values()), str(len(text))


def infer_request(body: bytes, length: str) -> bytes:
    """A request of the Open Inference Protocol to model `m`."""
    return post("/v2/models/m/infer", body, f"Inference-Header-Content-Length: {length}\r\n")


def post(path: str, body: bytes, headers: str = "") -> bytes:
    """An HTTP request as it is sent."""
    return f"POST {path} HTTP/1.1\r\nHost: m\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


class Client:
    """One connection that is kept.

    Args:
        port: Where the server answers.
        request: What is sent, again and again.
    """

    def __init__(self, port: int, request: bytes) -> None:
        self._port, self._request = port, request
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, at_s: float) -> Reply:
        """One request; its time counts from when it should have been sent."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        sent_late_s = time.monotonic() - at_s
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = await reader.readexactly(int(fields["content-length"]))
        seconds, length = time.monotonic() - at_s, fields.get("inference-header-content-length")
        variant = json.loads(body[: int(length)]).get("parameters", {}).get("variant", "") if length else ""
        return Reply(at_s, sent_late_s, seconds, int(head.split(" ", 2)[1]), variant, body[int(length or 0) :])


async def closed_loop(port: int, request: bytes, clients: int, count: int) -> list[Reply]:
    """Clients that ask again as soon as they are answered."""

    async def keep_asking() -> list[Reply]:
        client = Client(port, request)
        return [await client.ask(time.monotonic()) for _ in range(count)]

    return [reply for replies in await asyncio.gather(*(keep_asking() for _ in range(clients))) for reply in replies]


async def open_loop(port: int, request: bytes, arrivals: Sequence[float]) -> list[Reply]:
    """Requests at their times, whether or not earlier ones are answered."""
    idle: list[Client] = []
    begun = time.monotonic()

    async def ask(at_s: float) -> Reply:
        client = idle.pop() if idle else Client(port, request)
        reply = await client.ask(at_s)
        idle.append(client)
        return reply

    tasks = []
    for arrival in arrivals:
        wait_s = begun + arrival - time.monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        tasks.append(asyncio.create_task(ask(begun + arrival)))
    return list(await asyncio.gather(*tasks))


def overhead(server: Process, request: bytes, clients: int, count: int) -> dict[str, Any]:
    """Throughput, latency and processor time a request of clients in a closed loop."""
    before, started = server.cpu_s(), time.monotonic()
    replies = asyncio.run(closed_loop(server.port, request, clients, count))
    seconds, after = time.monotonic() - started, server.cpu_s()
    taken_ms = [1e3 * reply.seconds for reply in replies if reply.status == 200]
    front_s, builds_s = (late - early for late, early in zip(after, before, strict=True))
    return {
        "clients": clients,
        "requests": len(replies),
        "ok": len(taken_ms),
        "requests_per_s": round(len(taken_ms) / seconds, 1),
        "p50_ms": round(float(np.median(taken_ms)), 2),
        "p99_ms": round(float(np.quantile(taken_ms, 0.99)), 2),
        "front_cpu_ms": round(1e3 * front_s / len(replies), 3),
        "builds_cpu_ms": round(1e3 * builds_s / len(replies), 3),
    }
