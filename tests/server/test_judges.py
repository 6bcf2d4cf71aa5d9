"""What others' tools say of the server: schemathesis of its API, promtool of its figures."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import urllib3
from fuzz_api import fuzz

from tests.server.conftest import Server

SCHEMATHESIS, PROMTOOL = shutil.which("schemathesis"), shutil.which("promtool")


@pytest.mark.skipif(SCHEMATHESIS is None, reason="schemathesis is not installed (scripts/fuzz_api.py)")
def test_schemathesis_finds_no_failure(tmp_path: Path) -> None:
    assert fuzz(tmp_path, str(SCHEMATHESIS), examples=5, limit_s=60) == 0


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian's package prometheus)")
def test_promtool_has_nothing_to_say_of_the_figures(running: Server) -> None:
    running.place.write_fleet({"one": running.place.profile("one")})
    running.finished(running.submit()["id"])
    headers = {"Authorization": f"Bearer {running.key}"}
    text = urllib3.request("GET", f"{running.url}/metrics", headers=headers).data
    assert b"fleetc_stage_seconds_bucket" in text and b"fleetc_cache_stages_total" in text
    done = subprocess.run([str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
