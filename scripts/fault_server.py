"""Kill the build server, its worker, builds and tools at random, and see that every job ends as it would have.

python scripts/fault_server.py [--kills 100] [--seed 1] [--minutes 60]

Jobs of a small model are kept in the queue while one process after another is killed with SIGKILL. At the end every
job must have succeeded with the digests of a plain `fleetc build`, exactly once, and no process may be left. Prints one
JSON document; ends with 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import psutil
from onnx import helper

from server.builds import NAME
from server.connection import Connection, Refusal, Unreachable

ROOT = Path(__file__).resolve().parent.parent
DEVICES = ("one", "two")
KINDS = ("server", "worker", "build", "tool")
SETTLE_S = 600.0
"""Longest time that the jobs may take to end after the last kill."""


@dataclass
class Site:
    """Server and worker as processes, in one folder."""

    root: Path
    port: int
    join: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """One temporary folder and one file of client settings for all of them."""
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        client = str(self.root / "client.json")
        return {**os.environ, "PYTHONPATH": paths, "FLEETC_CLIENT_FILE": client, "TMPDIR": str(self.root / "tmp")}

    @property
    def connection(self) -> Connection:
        """The server, with patience for its being started again."""
        value = json.loads((self.root / "client.json").read_text("utf-8"))
        return Connection(value["server"], value["key"], patience_s=120)

    def fleetc(self, *arguments: object) -> list[str]:
        """A command line."""
        return [sys.executable, "-P", "-c", "from compiler.cli import main; main()", *map(str, arguments)]

    def start(self, kind: str, *more: str) -> None:
        """Starts the server or the worker, with further options; both log to a file."""
        data, address = self.root / kind, f"127.0.0.1:{self.join}"
        if kind == "server":
            options = [
                "--data",
                data,
                "--port",
                str(self.port),
                "--join",
                address,
                "--attempts",
                "1000",
                "--silence",
                "20",
            ]
        else:
            options = ["--data", data, "--name", "second"]
        with (self.root / f"{kind}.log").open("ab") as log:
            self.processes[kind] = subprocess.Popen(
                self.fleetc(kind, *options, *more), cwd=self.root, env=self.env, stdout=log, stderr=log
            )

    def victims(self, kind: str) -> list[psutil.Process]:
        """Processes of one kind."""
        if kind in ("server", "worker"):
            process = self.processes[kind]
            return [psutil.Process(process.pid)] if process.poll() is None else []
        found = []
        for owner in self.processes.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(owner.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        is_build = child.name() == NAME
                        found += [child] if is_build == (kind == "build") else []
        return found


def main() -> int:
    """Runs the whole of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleetc-faults-", ignore_cleanup_errors=True) as folder:
        value = run(Path(folder), options.kills, random.Random(options.seed), time.monotonic() + 60 * options.minutes)
    print(json.dumps({"seed": options.seed, **value}, indent=1))
    return 0 if value["ok"] else 1


def run(root: Path, kills: int, chance: random.Random, deadline: float) -> dict[str, Any]:
    """Kills, waits for the end, and compares."""
    (root / "tmp").mkdir()
    fleet = write_fleet(root)
    site = Site(root, free_port(), free_port())
    subprocess.run(
        site.fleetc("build", fleet, "-o", root / "plain", "--cache", root / "plain-cache", "--repeat", "1"),
        env=site.env,
        capture_output=True,
        check=True,
    )
    expected = {name: (root / "plain" / name / "manifest.json").read_bytes() for name in DEVICES}
    site.start("server")
    wait_for_server(site)
    site.start("worker")
    jobs, done = list[str](), Counter[str]()
    while sum(done.values()) < kills and time.monotonic() < deadline:
        if not jobs or is_finished(site, jobs[-1]):
            jobs.append(submit(site, fleet))
        time.sleep(chance.uniform(0.2, 6.0))
        victims = site.victims(kind := chance.choice(KINDS))
        if victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim = chance.choice(victims)
                victim.kill()
                done[kind] += 1
                if kind in site.processes:
                    site.processes[kind].wait(60)
        for name, process in list(site.processes.items()):
            if process.poll() is not None:
                site.start(name)
                wait_for_server(site)
    return {"kills": dict(done), "jobs": len(jobs), **settle(site, jobs, expected)}


def settle(site: Site, jobs: list[str], expected: dict[str, bytes]) -> dict[str, Any]:
    """Waits for the end of all jobs, stops everything, and says what is wrong."""
    problems, limit = list[str](), time.monotonic() + SETTLE_S
    while not all(is_finished(site, job) for job in jobs) and time.monotonic() < limit:
        time.sleep(1)
    attempts = 0
    for job in jobs:
        view = site.connection.get(f"/v1/jobs/{job}")
        attempts += sum(one["attempt"] for one in view["devices"])
        if view["state"] != "succeeded":
            problems += [f"{job}: {one['device']}: {one['state']}: {one.get('error')}" for one in view["devices"]]
            continue
        ends = [kind for _, kind, _ in site.connection.events(f"/v1/jobs/{job}/events") if kind == "job-finished"]
        problems += [f"{job}: ended {len(ends)} times"] if len(ends) != 1 else []
        for name in DEVICES:
            if (delivered := manifest(site, job, name)) != expected[name]:
                problems.append(f"{job}: {name}: other bytes: {changed_keys(expected[name], delivered)}")
    family = [one for owner in site.processes.values() for one in psutil.Process(owner.pid).children(recursive=True)]
    for process in site.processes.values():
        process.terminate()
    for process in site.processes.values():
        process.wait(60)
    _, left = psutil.wait_procs(family, timeout=30)
    problems += [f"process {one.pid} is left" for one in left]
    return {"attempts": attempts, "problems": problems, "ok": not problems}


def changed_keys(expected: bytes, delivered: bytes) -> str:
    """The keys of a manifest whose values differ."""
    before, after = json.loads(expected), json.loads(delivered)
    return ", ".join(sorted(key for key in {*before, *after} if before.get(key) != after.get(key)))


def manifest(site: Site, job: str, device: str) -> bytes:
    """A manifest as it was delivered."""
    target = site.root / "tmp" / f"{job}-{device}.json"
    site.connection.download(f"/v1/jobs/{job}/artifacts/{device}/manifest.json", target)
    return target.read_bytes()


def is_finished(site: Site, job: str) -> bool:
    """Whether a job has ended; not where the server does not answer."""
    with contextlib.suppress(Unreachable, Refusal):
        return site.connection.get(f"/v1/jobs/{job}")["finished"] is not None
    return False


def submit(site: Site, fleet: Path) -> str:
    """A job; submitted again where the server was killed meanwhile, by a key that makes it one job."""
    key = f"job-{time.time_ns()}"
    for _ in range(20):
        command = site.fleetc("submit", fleet, "--repeat", "1", "--json", "--idempotency-key", key)
        done = subprocess.run(command, env=site.env, capture_output=True, check=False)
        if done.returncode == 0:
            return str(json.loads(done.stdout)["id"])
    raise SystemExit(f"no job can be submitted: {done.stderr.decode()}")


def wait_for_server(site: Site) -> None:
    """Waits until it answers."""
    limit = time.monotonic() + SETTLE_S
    while time.monotonic() < limit:
        with contextlib.suppress(OSError, ValueError, Unreachable, Refusal):
            site.connection.get("/healthz")
            return
        time.sleep(0.2)
    raise SystemExit((site.root / "server.log").read_text("utf-8"))


def write_fleet(root: Path) -> Path:
    """A small model for two device classes."""
    shape = [1, 3, 8, 8]
    weights = helper.make_tensor("w", onnx.TensorProto.FLOAT, [4, 3, 3, 3], [(n % 7 - 3) / 9 for n in range(108)])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", 1, shape)], [value("y", 1, [1, 4, 6, 6])], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), root / "model.onnx")
    (root / "profile.yaml").write_text("schema: 1\nname: reference\ntarget: reference\n", "utf-8")
    devices = "".join(f"  {name}: {{profile: ./profile.yaml}}\n" for name in DEVICES)
    (root / "fleet.yaml").write_text(f"schema: 1\nmodel: model.onnx\ndevices:\n{devices}", "utf-8")
    return root / "fleet.yaml"


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
