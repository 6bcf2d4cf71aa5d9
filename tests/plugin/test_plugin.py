"""The example in examples/acme_npu: a package of one file, installed, found, checked, built, judged."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

_EXAMPLE = Path(__file__).parents[2] / "examples" / "acme_npu"
_JUDGE = """
from compiler.target import HardwareProfile, find_target, list_targets
from compiler.target.testing import check_target, conformance_cases, onnx_backend_cases

target = find_target("acme_npu")
profile = HardwareProfile(schema=1, name="acme-board", target="acme_npu", target_options={"tiles": 4})
outcomes = check_target(target, profile, conformance_cases() + onnx_backend_cases(target.capability(profile), per_op=1))
print("reference" in list_targets(), target.toolchain()["acme-npu"])
print(*sorted(f"{outcome.status} {outcome.case}" for outcome in outcomes), sep="\\n")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What installing the example leaves in site-packages, laid out from its own metadata: no network, no build."""
    site = tmp_path_factory.mktemp("site")
    project = tomllib.loads((_EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))
    for module in project["tool"]["setuptools"]["py-modules"]:
        (site / f"{module}.py").write_bytes((_EXAMPLE / f"{module}.py").read_bytes())
    name, version = project["project"]["name"], project["project"]["version"]
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    groups = project["project"]["entry-points"].items()
    points = "".join(
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in of.items()) for group, of in groups
    )
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    return site


@pytest.fixture(scope="module")
def lines(installed: Path) -> list[str]:
    paths = [str(installed), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", _JUDGE], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_installed_plugin_is_found_beside_the_shipped_targets(lines: list[str]) -> None:
    assert lines[0] == "True 0.1.0"


def test_plugin_computes_every_case_it_does_not_refuse(lines: list[str]) -> None:
    assert [line for line in lines[1:] if not line.startswith(("passed ", "refused "))] == []


def test_plugin_passes_the_cases_of_the_operators_it_claims(lines: list[str]) -> None:
    passed = {line.removeprefix("passed ") for line in lines[1:] if line.startswith("passed ")}
    assert {"conv-3x3-same", "conv-dynamic-batch", "gemm", "max-pool-ceil", "block-residual", "silu"} <= passed
    assert len(passed) > 35


def test_plugin_refuses_what_it_does_not_claim(lines: list[str]) -> None:
    assert "refused block-attention" in lines
