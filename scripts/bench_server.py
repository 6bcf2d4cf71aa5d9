"""What the build server costs: start, a job's overhead over `fleetc build`, submitting 200 jobs, a broken upload.

python scripts/bench_server.py [--out benchmarks/server.json] [--jobs 200] [--clients 8] [--upload-mib 1024]

The model is small, so that the overhead shows. Jobs that are only submitted ask for a label that no worker has: what is
measured is the server, not the builds. Writes one JSON document with commit, machine and versions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from bench_record import commit, machine, versions
from fault_server import Site, free_port, wait_for_server, write_fleet

from server.client import job_request, upload

PACKAGES = ("distributed", "fastapi", "sqlalchemy", "uvicorn", "urllib3")


def main() -> int:
    """Measures, and writes the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--upload-mib", type=int, default=1024)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleetc-bench-", ignore_cleanup_errors=True) as folder:
        figures = measure(Path(folder), options)
    load = psutil.getloadavg()[0]
    value = {**commit(), "machine": machine(), "versions": versions(PACKAGES), "load_average": load, **figures}
    text = json.dumps(value, indent=1) + "\n"
    if options.out is not None:
        options.out.write_text(text, "utf-8")
    print(text, end="")
    return 0


def measure(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures, on one server."""
    (root / "tmp").mkdir()
    fleet, site = write_fleet(root), Site(root, free_port(), free_port())
    began = time.perf_counter()
    site.start("server")
    wait_for_server(site)
    figures: dict[str, Any] = {"start_to_ready_s": round(time.perf_counter() - began, 2)}
    try:
        figures["overhead"] = overhead(site, fleet)
        figures["submit"] = submit_many(site, fleet, options.jobs, options.clients)
        figures["upload"] = broken_upload(site, options.upload_mib << 20)
    finally:
        site.processes["server"].terminate()
        site.processes["server"].wait(60)
    return figures


def overhead(site: Site, fleet: Path) -> dict[str, float]:
    """Wall seconds of a build and of a job that is waited for, each from nothing and again."""
    out = site.root
    plain = ["build", fleet, "-o", out / "plain", "--cache", out / "plain-cache", "--repeat", "1", "--jobs", "1"]
    served = ["submit", fleet, "-o", out / "served", "--repeat", "1", "--wait"]
    found = {}
    for name, command in (("build", plain), ("job", served)):
        for state in ("cold", "warm"):
            began = time.perf_counter()
            subprocess.run(site.fleetc(*command), env=site.env, check=True, capture_output=True)
            found[f"{name}_{state}_s"] = round(time.perf_counter() - began, 2)
    return found


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
