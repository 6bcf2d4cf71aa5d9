"""Asks for every operation of the build server's API, rightly and wrongly, as schemathesis reads its OpenAPI file.

python scripts/fuzz_api.py [--examples 50] [--minutes 10] [--schemathesis PROGRAM]

It needs schemathesis, best in an environment of its own: `python -m venv X; X/bin/pip install schemathesis`. A server
of its own is started and stopped. Ends with 1 where schemathesis finds a failure.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_server import key_of
from fault_server import Site, free_port, wait_for_server

NOT_CHECKED = "positive_data_acceptance"
"""A request that its schema allows may still be refused: what a fleet file says is judged by planning it."""


def main() -> int:
    """Starts a server and has it asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=50, help="requests for each operation and phase")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--schemathesis", default=shutil.which("schemathesis"))
    options = parser.parse_args()
    if options.schemathesis is None:
        sys.exit("schemathesis is not installed: name it by --schemathesis, or put it into the PATH")
    with tempfile.TemporaryDirectory(prefix="fleetc-fuzz-", ignore_cleanup_errors=True) as folder:
        return fuzz(Path(folder), options.schemathesis, options.examples, 60 * options.minutes)


def fuzz(root: Path, program: str, examples: int, limit_s: float) -> int:
    """Asks a server of its own. Returns the exit code of schemathesis."""
    (root / "tmp").mkdir()
    site = Site(root, free_port(), free_port())
    site.start("server")
    wait_for_server(site)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [program, "run", f"{site.connection.url}/v1/openapi.json", "-H", f"Authorization: Bearer {key_of(site)}"]
    command += ["--max-examples", str(examples), "--generation-deterministic", "--no-color", "--warnings", "off"]
    command += ["--exclude-checks", NOT_CHECKED, "--max-time", str(int(limit_s))]
    try:
        done = subprocess.run(command, cwd=root, env=environment, check=False, timeout=limit_s + 60)
    finally:
        site.processes["server"].terminate()
        site.processes["server"].wait(60)
    log = (root / "server.log").read_text("utf-8")
    if "Traceback" in log:
        print(log)
        return 1
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
