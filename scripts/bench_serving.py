#!/usr/bin/env python3
"""Measures `fleetc serve` on an artifact with a ladder, and writes the figures as JSON.

    scripts/bench_serving.py dist/kiosk --seconds 20 --out benchmarks/serving.json
    scripts/bench_serving.py dist/kiosk --only peers --triton V1 --mosec V2 --cores 0:1 --out benchmarks/serving.json

simulated   the five traces through the scheduler alone, with the ladder's measured times: ladder and each build
server      time until ready; memory; processor milliseconds a request of the front, one client and eight
traces      the five traces in real time, open loop, on the loopback: in time, effective accuracy, switches
recovery    kill -9 of the first build's process: requests lost, and the time until an answer comes again
peers       Triton and MOSEC beside it, where environments are named in which they are installed (serving_peers.py)
limits      half of the processors' time, memory for less than two builds; needs root (serving_limits.py)

`--only` measures some sections and leaves the others of `--out` as they are; each says at which commit and under which
load it was measured. The load generator and the server share the machine: with two processors real-time figures are
pessimistic.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_record import commit, machine, versions
from serving_limits import limits
from serving_load import Client, Server, infer_request, make_body, open_loop, overhead
from serving_peers import Environments, peers

from serving.builds import Served, manifest_digest, read_builds
from serving.ladder import Rung
from serving.simulate import gamma, poisson, requests_of, simulate, spike

STEADY, BURSTY, ABOVE_NEXT, OVERLOAD = 0.7, 0.8, 1.15, 1.5
"""Load of the traces, in parts of the capacity of the first build, of the last but one, and of the last."""

CV2 = 8.0

PACKAGES = ("numpy", "uvicorn", "starlette", "openvino")


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


def live(server: Server, request: bytes, served: Served, slo_s: float, seconds: float) -> dict[str, Any]:
    """Every trace, open loop."""
    rungs = [build.rung for build in served.builds]
    accuracy = {rung.name: rung.accuracy for rung in rungs}
    found: dict[str, Any] = {}
    for name, arrivals in traces(rungs, seconds).items():
        before = server.outcomes()
        replies = asyncio.run(open_loop(server.port, request, arrivals))
        by_server = server.outcomes() - before
        good = [reply for reply in replies if reply.status == 200 and reply.seconds <= slo_s]
        refused_ms = [1e3 * reply.seconds for reply in replies if reply.status == 503]
        found[name] = {
            "offered": len(replies),
            "in_time": round(len(good) / len(replies), 5),
            # client, front and builds share this machine: what the client was late with is not the server's
            "in_time_by_the_server": round(by_server["ok"] / len(replies), 5),
            "sent_late_p99_ms": round(1e3 * float(np.quantile([reply.sent_late_s for reply in replies], 0.99)), 2),
            "refused": len(refused_ms),
            "refusal_p50_ms": round(float(np.median(refused_ms)), 2) if refused_ms else None,
            "other_failures": sum(reply.status not in (200, 503) for reply in replies),
            "effective_accuracy": round(sum(accuracy[reply.variant] for reply in good) / len(replies), 5),
            "answers": {rung.name: sum(reply.variant == rung.name for reply in good) for rung in rungs},
        }
    return found


def recovery(server: Server, request: bytes) -> dict[str, Any]:
    """Kills the first build's process while one client asks on."""

    async def kill_and_ask() -> tuple[int, float]:
        client = Client(server.port, request)
        await client.ask(time.monotonic())
        os.kill(server.family()[1].pid, signal.SIGKILL)
        started, lost = time.monotonic(), 0
        while (await client.ask(time.monotonic())).status != 200:
            lost += 1
            await asyncio.sleep(0.01)
        return lost, time.monotonic() - started

    lost, seconds = asyncio.run(kill_and_ask())
    return {"requests_without_answer": lost, "answers_again_after_s": round(seconds, 3)}


def serving(folder: Path, served: Served, slo_s: float, measure: Callable[[Server, bytes], Any]) -> Any:
    """What is measured of a server that has loaded every build."""
    server = Server(folder, slo_s)
    try:
        server.wait_for(len(served.builds))
        return measure(server, infer_request(*make_body(served)))
    finally:
        server.close()


def of_server(server: Server, request: bytes, count: int) -> dict[str, Any]:
    """What it takes to start, to stay, and to answer."""
    return {
        "ready_s": round(server.ready_s, 2),
        "memory_mib": server.memory_mib(),
        "overhead": [overhead(server, request, clients, count) for clients in (1, 8)],
    }


def sections(arguments: argparse.Namespace, served: Served, slo_s: float) -> dict[str, Callable[[], Any]]:
    """Name → what measures it; those that need something come only where it is given."""
    folder, seconds = arguments.artifact, arguments.seconds

    def with_server(measure: Callable[[Server, bytes], Any]) -> Callable[[], Any]:
        return lambda: serving(folder, served, slo_s, measure)

    every: dict[str, Callable[[], Any]] = {
        "simulated": lambda: simulated(served, slo_s, max(60.0, seconds)),
        "server": with_server(lambda server, request: of_server(server, request, arguments.count)),
        "traces": with_server(lambda server, request: live(server, request, served, slo_s, seconds)),
        "recovery": with_server(recovery),
        "limits": lambda: limits(folder, slo_s=slo_s, seconds=seconds, rate=arguments.rate),
    }
    if arguments.triton or arguments.mosec:
        environments = Environments(arguments.triton, arguments.mosec)
        cores = tuple(arguments.cores.split(":"))
        every["peers"] = lambda: peers(folder, environments, cores=cores, count=arguments.count)
    return every


def main() -> None:
    """Measures, and writes what was measured."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers that run are ended
    arguments = read_arguments()
    served = read_builds([arguments.artifact])
    slo_s = served.slo_s or 0.05
    every = sections(arguments, served, slo_s)
    result = json.loads(arguments.out.read_text("utf-8")) if arguments.out and arguments.out.exists() else {}
    result |= {
        "machine": machine(),
        "slo_ms": slo_s * 1e3,
        "ladder": {build.name: ladder_row(build.rung) for build in served.builds},
    }
    for name in arguments.only or every:
        before = {**commit(), "versions": versions(PACKAGES), "load_before": os.getloadavg()}
        before["manifest_sha256"] = manifest_digest(arguments.artifact)
        result[name] = before | every[name]()
        text = json.dumps(result, indent=1) + "\n"
        if arguments.out:
            arguments.out.write_text(text, encoding="utf-8")
    print(text)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each trace")
    parser.add_argument("--count", type=int, default=200, help="requests of each client in a closed loop")
    parser.add_argument("--only", action="append", help="a section to measure; may be given more than once")
    parser.add_argument("--triton", type=Path, help="environment with nvidia-pytriton")
    parser.add_argument("--mosec", type=Path, help="environment with mosec")
    parser.add_argument("--cores", default="0:1", help="peers: processors of the servers, and of the clients")
    parser.add_argument("--rate", type=float, help="limits: requests a second")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def ladder_row(rung: Rung) -> dict[str, Any]:
    """A build's accuracy and times."""
    return {"accuracy": rung.accuracy, "service_ms": {size: 1e3 * seconds for size, seconds in rung.service_s.items()}}


if __name__ == "__main__":
    main()
