#!/usr/bin/env python3
"""Measures `fleetc serve` on an artifact with a ladder, and writes the figures as JSON.

    scripts/bench_serving.py dist/kiosk --seconds 20 --out benchmarks/serving.json

simulated   the five traces through the scheduler alone, with the ladder's measured times: ladder and each build
overhead    processor milliseconds a request of the front, one client and eight; time until ready; memory
traces      the same traces in real time, open loop, on the loopback: in time, effective accuracy, switches
recovery    kill -9 of the first build's process: requests lost, and the time until an answer comes again

The load generator and the server share the machine: with two processors real-time figures are pessimistic.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from bench_record import commit, machine, versions

from serving.builds import Served, read_builds
from serving.ladder import Rung
from serving.simulate import gamma, poisson, requests_of, simulate, spike

STEADY, BURSTY, ABOVE_NEXT, OVERLOAD = 0.7, 0.8, 1.15, 1.5
"""Load of the traces, in parts of the capacity of the first build, of the last but one, and of the last."""

CV2 = 8.0


@dataclass(frozen=True)
class Reply:
    """One request: when it came, how long its answer took, its status and the build."""

    at_s: float
    seconds: float
    status: int
    variant: str


def item_s(rung: Rung) -> float:
    """Seconds of an item at the best batch size."""
    return min(seconds / size for size, seconds in rung.service_s.items())


def traces(rungs: Sequence[Rung], seconds: float) -> dict[str, list[float]]:
    """Name → arrivals; a spike is the middle third."""
    top, last, third = item_s(rungs[0]), item_s(rungs[-1]), seconds / 3
    next_to_last = item_s(rungs[-2] if len(rungs) > 1 else rungs[-1])

    def spikes(rate: float, seed: int) -> list[float]:
        return spike(0.5 / top, rate, seconds, at_s=third, for_s=third, seed=seed)

    return {
        "steady": poisson(STEADY / top, seconds, seed=1),
        "bursty": gamma(BURSTY / top, seconds, seed=2, cv2=CV2),
        "twice the first": spikes(2.0 / top, 3),
        "above the last but one": spikes(ABOVE_NEXT / next_to_last, 4),
        "overload": spikes(OVERLOAD / last, 5),
    }


def simulated(served: Served, slo_s: float, seconds: float) -> dict[str, Any]:
    """Every trace through the scheduler: the ladder, and each build alone."""
    rungs = [build.rung for build in served.builds]
    found: dict[str, Any] = {}
    for name, arrivals in traces(rungs, seconds).items():
        choices = {"ladder": rungs} | {rung.name: [rung] for rung in rungs}
        outcomes = {
            label: simulate(chosen, requests_of(arrivals, slo_s), largest=served.signature.largest)
            for label, chosen in choices.items()
        }
        found[name] = {
            label: {
                "in_time": round(outcome.in_time_share, 5),
                "effective_accuracy": round(outcome.effective_accuracy, 5),
                "switches": len(outcome.switches),
            }
            for label, outcome in outcomes.items()
        }
    return found


class Server:
    """`fleetc serve`, a process of its own."""

    def __init__(self, folder: Path, slo_s: float) -> None:
        started = time.monotonic()
        code = "from compiler.cli import main; main()"
        command = [sys.executable, "-c", code, "serve", str(folder), "--port", "0", "--name", "m", "--slo-ms"]
        self.process = subprocess.Popen([*command, str(slo_s * 1e3)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None  # noqa: S101  it was asked for
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1])
        self.ready_s = time.monotonic() - started

    def family(self) -> list[psutil.Process]:
        """The front and its builds."""
        front = psutil.Process(self.process.pid)
        return [front, *front.children()]

    def cpu_s(self) -> list[float]:
        """Processor seconds of the front, and of the builds."""
        times = [sum(process.cpu_times()[:2]) for process in self.family()]
        return [times[0], sum(times[1:])]

    def close(self) -> None:
        """Ends it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def make_body(served: Served) -> tuple[bytes, str]:
    """A binary request of one item, and the length of its JSON."""
    shapes = served.signature.shapes({**served.signature.steps(0), **({"batch": 1} if served.signature.batch else {})})
    draw = np.random.default_rng(0)
    arrays = [(name, draw.random(shape).astype(dtype)) for name, dtype, shape in shapes]
    head = {
        "inputs": [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": {"float32": "FP32", "int64": "INT64", "int32": "INT32", "uint8": "UINT8"}[array.dtype.name],
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in arrays
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(head).encode()
    return text + b"".join(array.tobytes() for _, array in arrays), str(len(text))


class Client:
    """One connection that is kept."""

    def __init__(self, port: int, body: bytes, length: str) -> None:
        head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: m\r\nContent-Length: {len(body)}\r\n"
        self._request = f"{head}Inference-Header-Content-Length: {length}\r\n\r\n".encode() + body
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, at_s: float) -> Reply:
        """One request; its time counts from when it should have been sent."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = await reader.readexactly(int(fields["content-length"]))
        text = json.loads(body[: int(fields.get("inference-header-content-length", len(body)))])
        variant = text.get("parameters", {}).get("variant", "")
        return Reply(at_s, time.monotonic() - at_s, int(head.split(" ", 2)[1]), variant)


async def closed_loop(port: int, body: tuple[bytes, str], clients: int, count: int) -> list[Reply]:
    """Clients that ask again as soon as they are answered."""

    async def keep_asking() -> list[Reply]:
        client = Client(port, *body)
        return [await client.ask(time.monotonic()) for _ in range(count)]

    return [reply for replies in await asyncio.gather(*(keep_asking() for _ in range(clients))) for reply in replies]


async def open_loop(port: int, body: tuple[bytes, str], arrivals: Sequence[float]) -> list[Reply]:
    """Requests at their times, whether or not earlier ones are answered."""
    idle: list[Client] = []
    begun = time.monotonic()

    async def ask(at_s: float) -> Reply:
        client = idle.pop() if idle else Client(port, *body)
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


def overhead(server: Server, body: tuple[bytes, str], clients: int, count: int) -> dict[str, Any]:
    """Throughput, latency and processor time a request of clients in a closed loop."""
    before, started = server.cpu_s(), time.monotonic()
    replies = asyncio.run(closed_loop(server.port, body, clients, count))
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


def live(server: Server, body: tuple[bytes, str], served: Served, slo_s: float, seconds: float) -> dict[str, Any]:
    """Every trace, open loop."""
    rungs = [build.rung for build in served.builds]
    accuracy = {rung.name: rung.accuracy for rung in rungs}
    found: dict[str, Any] = {}
    for name, arrivals in traces(rungs, seconds).items():
        replies = asyncio.run(open_loop(server.port, body, arrivals))
        good = [reply for reply in replies if reply.status == 200 and reply.seconds <= slo_s]
        refused_ms = [1e3 * reply.seconds for reply in replies if reply.status == 503]
        found[name] = {
            "offered": len(replies),
            "in_time": round(len(good) / len(replies), 5),
            "refused": len(refused_ms),
            "refusal_p50_ms": round(float(np.median(refused_ms)), 2) if refused_ms else None,
            "other_failures": sum(reply.status not in (200, 503) for reply in replies),
            "effective_accuracy": round(sum(accuracy[reply.variant] for reply in good) / len(replies), 5),
            "answers": {rung.name: sum(reply.variant == rung.name for reply in good) for rung in rungs},
        }
    return found


def recovery(server: Server, body: tuple[bytes, str]) -> dict[str, Any]:
    """Kills the first build's process while one client asks on."""

    async def kill_and_ask() -> tuple[int, float]:
        client = Client(server.port, *body)
        await client.ask(time.monotonic())
        os.kill(server.family()[1].pid, signal.SIGKILL)
        started, lost = time.monotonic(), 0
        while (await client.ask(time.monotonic())).status != 200:
            lost += 1
            await asyncio.sleep(0.01)
        return lost, time.monotonic() - started

    lost, seconds = asyncio.run(kill_and_ask())
    return {"requests_without_answer": lost, "answers_again_after_s": round(seconds, 3)}


def main() -> None:
    """Measures, and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each trace")
    parser.add_argument("--count", type=int, default=200, help="requests of each client in a closed loop")
    parser.add_argument("--simulate", action="store_true", help="nothing in real time")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    served = read_builds([arguments.artifact])
    slo_s = served.slo_s or 0.05
    result: dict[str, Any] = {
        **commit(),
        "machine": machine(),
        "load_before": os.getloadavg(),
        "versions": versions(["numpy", "uvicorn", "starlette"]),
        "slo_ms": slo_s * 1e3,
        "ladder": {build.name: ladder_row(build.rung) for build in served.builds},
        "simulated": simulated(served, slo_s, max(60.0, arguments.seconds)),
    }
    if not arguments.simulate:
        result |= measured(arguments.artifact, served, slo_s, arguments)
    text = json.dumps(result, indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    print(text)


def ladder_row(rung: Rung) -> dict[str, Any]:
    """A build's accuracy and times."""
    return {"accuracy": rung.accuracy, "service_ms": {size: 1e3 * seconds for size, seconds in rung.service_s.items()}}


def measured(folder: Path, served: Served, slo_s: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """What needs a server."""
    server, body = Server(folder, slo_s), make_body(served)
    try:
        time.sleep(2.0 * len(served.builds))  # the other builds are loaded while the first answers
        return {
            "ready_s": round(server.ready_s, 2),
            "memory_mib": [round(process.memory_full_info().pss / 2**20) for process in server.family()],
            "overhead": [overhead(server, body, clients, arguments.count) for clients in (1, 8)],
            "traces": live(server, body, served, slo_s, arguments.seconds),
            "recovery": recovery(server, body),
        }
    finally:
        server.close()


if __name__ == "__main__":
    main()
