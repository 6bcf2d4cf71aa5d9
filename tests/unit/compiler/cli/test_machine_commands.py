"""`fleetc targets` says of each target what its toolchain lacks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from compiler.cli.machine import targets
from compiler.target.testing import install_plugin

SOURCE = """
from compiler.target.testing import FakeTarget

class Acme(FakeTarget):
    alternatives = frozenset({"ahead", "late"})

    def toolchain(self):
        return {"ahead": "1.7", "late": "absent", "linker": %r}

TARGET = Acme(%r)
"""


@pytest.mark.parametrize(("linker", "problem"), [("2.1", ""), ("absent", "absent: linker")])
def test_an_absent_alternative_is_shown_and_is_no_problem(
    linker: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"either_{linker.partition('.')[0]}"  # a module of that name is imported once per process
    install_plugin(tmp_path, name, SOURCE % (linker, name))
    rows = {row["target"]: row for row in json.loads(CliRunner().invoke(targets, ["--json"]).output)}
    assert rows[name]["toolchain"] == {"ahead": "1.7", "late": "absent", "linker": linker}
    assert rows[name]["problem"] == problem
