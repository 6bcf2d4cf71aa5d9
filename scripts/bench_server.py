"""What the build server costs: start, a job's overhead, submitting 200 jobs, a broken upload, two workers against one.

python scripts/bench_server.py [--out benchmarks/server.json] [--jobs 200] [--clients 8] [--upload-mib 1024]
python scripts/bench_server.py --section workers        only two workers against one

The model is small, so that the overhead shows. Jobs that are only submitted ask for a label that no worker has: what is
measured is the server, not the builds. Six device classes are built by one worker, then by two, each bound to a core of
its own as if it were a machine. Writes one JSON document with commit, machine, versions and load; a section alone
replaces its part of an earlier document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from bench_record import Figures, bar, commit, machine, versions
from bench_remote_cache import write_small_fleet
from fault_server import Site, free_port, wait_for_server, write_fleet

from server.client import job_request, upload

PACKAGES = ("distributed", "fastapi", "sqlalchemy", "uvicorn", "urllib3", "openvino", "apache-tvm")
WARM_RUNS = 5
SIX = ("raspberry-pi-4", "raspberry-pi-5", "rk3588", "ampere-altra", "aws-graviton3", "jetson-orin-nano-cpu")
"""Six classes of the compiler that computes most; their cores differ, so that no two share a compiled build."""

SETTLE_S = 15.0


def main() -> int:
    """Measures, and writes the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--upload-mib", type=int, default=1024)
    parser.add_argument("--section", choices=("server", "workers"))
    options = parser.parse_args()
    for name, measure in (("server", measure_server), ("workers", measure_workers)):
        if options.section in (None, name):
            head = {**commit(), "load_average_before": [round(load, 2) for load in os.getloadavg()]}
            head |= {"machine": machine(), "versions": versions(PACKAGES)}
            with tempfile.TemporaryDirectory(prefix="fleetc-bench-", ignore_cleanup_errors=True) as folder:
                record(name, {**head, **measure(Path(folder), options)}, options.out)
    return 0


def record(name: str, figures: Figures, out: Path | None) -> None:
    """Prints a section, and puts it into the file; other sections of it stay."""
    print(json.dumps({name: figures}, indent=1))
    if out is not None:
        value = json.loads(out.read_text("utf-8")) if out.is_file() else {}
        out.write_text(json.dumps({**value, name: figures}, indent=1) + "\n", "utf-8")


def measure_server(root: Path, options: argparse.Namespace) -> Figures:
    """Everything that one server is enough for."""
    (root / "tmp").mkdir()
    fleet, site = write_fleet(root), Site(root, free_port(), free_port())
    began = time.perf_counter()
    site.start("server")
    wait_for_server(site)
    figures: Figures = {"start_to_ready_s": round(time.perf_counter() - began, 2)}
    try:
        figures["overhead"] = overhead(site, fleet)
        figures["submit"] = submit_many(site, fleet, options.jobs, options.clients)
        figures["upload"] = broken_upload(site, options.upload_mib << 20)
    finally:
        site.processes["server"].terminate()
        site.processes["server"].wait(60)
    return figures


def overhead(site: Site, fleet: Path) -> Figures:
    """Wall and processor seconds of a build and of a job that is waited for: from nothing, and again."""
    out, found = site.root, dict[str, Any]()
    plain = ["build", fleet, "-o", out / "plain", "--cache", out / "plain-cache", "--repeat", "1", "--jobs", "1"]
    served = ["submit", fleet, "-o", out / "served", "--repeat", "1", "--wait"]
    for name, command in (("build", plain), ("job", served)):
        runs = [run(site, command) for _ in range(1 + WARM_RUNS)]
        found[name] = {
            "cold": dict(zip(("wall_s", "cpu_s"), runs[0], strict=True)),
            "warm": {key: [one[at] for one in runs[1:]] for at, key in enumerate(("wall_s", "cpu_s"))},
        }
    cold = [found[name]["cold"]["wall_s"] for name in ("job", "build")]
    warm = [statistics.median(found[name]["warm"]["wall_s"]) for name in ("job", "build")]
    found["bars"] = [
        bar(f"seconds that a job takes longer than a build, {state}", job - build, 2.0)
        for state, (job, build) in (("cold", cold), ("warm", warm))
    ]
    return found


def run(site: Site, command: Sequence[object]) -> tuple[float, float]:
    """Wall and processor seconds of a command; the server's part in it is counted."""
    before, began = cpu_s(site), time.perf_counter()
    subprocess.run(site.fleetc(*command), env=site.env, check=True, capture_output=True)
    wall = time.perf_counter() - began
    return round(wall, 2), round(cpu_s(site) - before, 2)


def cpu_s(site: Site) -> float:
    """Processor seconds of the server with its worker and builds, and of the commands that have ended."""
    times = [os.times()]
    total = sum(one.children_user + one.children_system for one in times)
    for process in site.processes.values():
        server = psutil.Process(process.pid)
        for one in (server, *server.children(recursive=True)):
            spent = one.cpu_times()
            total += spent.user + spent.system + spent.children_user + spent.children_system
    return float(total)


def measure_workers(root: Path, options: argparse.Namespace) -> Figures:
    """Seconds of six device classes on one worker and on two, each from nothing."""
    found: Figures = {"device_classes": len(SIX), "workers": {}}
    for count in (1, 2):
        place = root / str(count)
        (place / "tmp").mkdir(parents=True)
        seconds, manifests = build_six(place, count)
        found["workers"][str(count)] = round(seconds, 2)
        found.setdefault("manifests", manifests)
        found["same_manifests"] = manifests == found["manifests"]
    del found["manifests"]
    ratio = found["workers"]["1"] / found["workers"]["2"]
    return {**found, "ratio": round(ratio, 2), "bars": [bar("one worker over two, at least 1.7", -ratio, -1.7)]}


def build_six(root: Path, count: int) -> tuple[float, dict[str, str]]:
    """Builds the six with so many workers. Returns seconds, and the digest of each manifest."""
    fleet, site = write_small_fleet(root), Site(root, free_port(), free_port())
    devices = "".join(f"  {name}: {{profile: {name}}}\n" for name in SIX)
    fleet.write_text(f"schema: 1\nmodel: small.onnx\ndevices:\n{devices}", "utf-8")
    site.start("server", "--slots", "0")
    wait_for_server(site)
    for number in range(count):
        start_worker(site, number)
    while len(site.connection.get("/v1/workers")) < count:
        time.sleep(0.1)
    time.sleep(SETTLE_S)  # until they have imported what builds need
    began = time.perf_counter()
    try:
        done = subprocess.run(
            site.fleetc("submit", fleet, "--repeat", "0", "--wait", "--json", "-o", root / "dist"),
            env=site.env,
            check=True,
            capture_output=True,
        )
        seconds = time.perf_counter() - began
    finally:
        for process in site.processes.values():
            process.terminate()
        for process in site.processes.values():
            process.wait(60)
    return seconds, {one["name"]: one["manifest"] for one in json.loads(done.stdout)["devices"]}


def start_worker(site: Site, number: int) -> None:
    """A worker on a core of its own, with temporary files of its own: as on another machine."""
    own = site.root / f"worker-{number}"
    (own / "tmp").mkdir(parents=True)
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(usual)[number]})  # a child inherits it
    try:
        with (own / "log").open("wb") as log:
            site.processes[own.name] = subprocess.Popen(
                site.fleetc("worker", "--name", own.name, "--data", own / "data", "--no-timing"),
                env={**site.env, "TMPDIR": str(own / "tmp")},
                stdout=log,
                stderr=log,
            )
    finally:
        os.sched_setaffinity(0, usual)


def submit_many(site: Site, fleet: Path, jobs: int, clients: int) -> dict[str, float]:
    """Several clients submit jobs at once; none of them begins."""
    request, files = job_request(fleet, settings={}, labels=["nobody"])
    for digest, file in files.items():
        upload(site.connection, file, digest, progress=lambda received: None)

    def one(number: int) -> float:
        began = time.perf_counter()
        site.connection.post("/v1/jobs", request, headers={"Idempotency-Key": f"bench-{number}"})
        return time.perf_counter() - began

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        seconds = sorted(pool.map(one, range(jobs)))
    wall = time.perf_counter() - began
    memory = psutil.Process(site.processes["server"].pid).memory_info().rss
    return {
        "jobs": jobs,
        "clients": clients,
        "jobs_per_s": round(jobs / wall, 1),
        "post_median_ms": round(1000 * statistics.median(seconds), 1),
        "post_p99_ms": round(1000 * seconds[int(0.99 * (len(seconds) - 1))], 1),
        "server_rss_mib": round(memory / (1 << 20), 1),
    }


def broken_upload(site: Site, size: int) -> dict[str, float]:
    """A file whose upload breaks three times, each time in the middle of what is left."""
    file, chance, digest = site.root / "large.bin", random.Random(3), hashlib.sha256()
    with file.open("wb") as stream:
        for _ in range(size >> 20):
            piece = chance.randbytes(1 << 20)
            digest.update(piece)
            stream.write(piece)
    path, sent, began = f"/v1/blobs/{digest.hexdigest()}", 0, time.perf_counter()
    for _ in range(3):
        first = site.connection.get(f"{path}/parts")["received"]
        sent += send_half(site, path, file, first, size)
    again = site.connection.get(f"{path}/parts")["received"]
    upload(site.connection, file, digest.hexdigest(), progress=lambda received: None)
    seconds = time.perf_counter() - began
    return {"mib": size >> 20, "broken": 3, "sent_twice_mib": (sent - again) >> 20, "seconds": round(seconds, 2)}


def send_half(site: Site, path: str, file: Path, first: int, size: int) -> int:
    """Sends half of what is left in a request that promises all of it. Returns the bytes sent."""
    connection, half = site.connection, (size - first) // 2
    place = urlsplit(connection.url)
    head = (
        f"PUT {path} HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer {key_of(site)}\r\n"
        f"Content-Range: bytes {first}-{size - 1}/{size}\r\nContent-Length: {size - first}\r\n\r\n"
    )
    with socket.create_connection((str(place.hostname), int(place.port or 0))) as sock, file.open("rb") as stream:
        sock.sendall(head.encode())
        sock.sendfile(stream, first, half)
    time.sleep(1)  # the server notices the end of the connection
    return half


def key_of(site: Site) -> str:
    """The key that the server noted."""
    return str(json.loads((site.root / "client.json").read_text("utf-8"))["key"])


if __name__ == "__main__":
    sys.exit(main())
