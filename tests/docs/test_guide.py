"""Every command of docs/guide.md is run, in order, on a tiny model; blocks marked `not run` are skipped.

A line that is nothing but one `fleetc` command runs in this process, which saves its start; what needs a shell has one.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.cli.conftest import Outcome, run_here

pytestmark = pytest.mark.needs_openvino

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"
BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^\n]+) -->\n)?^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
EXPECTED_CODE = re.compile(r"# exits with (\d+)$")
PLAIN = re.compile(r"fleetc( [\w./:=%-]+)+( +# exits with \d+)?")
"""A line in which a shell would find words alone."""
NAMED = re.compile(r"\]\(([^)#:]+\.md)")
MODEL = """<ir_version: 10, opset_import: ["": 18]>
tiny (float[N,3,16,16] image, float[8,3,3,3] weight, float[8,1,1] scale, float[8,4] table) => (float[N,4] scores) {
  [conv1] c = Conv<pads=[1,1,1,1]>(image, weight)
  [scale1] s = Mul(c, scale)
  [relu1] r = Relu(s)
  [pool1] p = GlobalAveragePool(r)
  [flatten1] f = Flatten(p)
  [product1] scores = MatMul(f, table)
}"""


@dataclass(frozen=True)
class Step:
    """One command of the guide; `files` are those the guide told to write before it, `reason` why it is not run."""

    command: str
    files: tuple[tuple[str, str], ...]
    reason: str = ""


def steps_of(text: str) -> list[Step]:
    steps: list[Step] = []
    files: list[tuple[str, str]] = []
    for block in BLOCK.finditer(text):
        mark, kind, body = block["mark"] or "", block["kind"], block["body"]
        if mark.startswith("file: "):
            files.append((mark.removeprefix("file: "), body))
        if kind == "console":
            reason = mark.removeprefix("not run: ") if mark.startswith("not run: ") else ""
            steps += [Step(line.removeprefix("$ "), tuple(files), reason) for line in body.splitlines()]
            files = []
    return steps


STEPS = steps_of(GUIDE.read_text(encoding="utf-8"))


class Walk:
    """Runs the steps in order, each once, also when a later one is asked for alone."""

    def __init__(self, folder: Path, steps: list[Step]) -> None:
        self.folder, self._steps = folder, steps
        self.results: list[Outcome | None] = []

    def result(self, index: int) -> Outcome | None:
        while len(self.results) <= index:
            self.results.append(self._run(self._steps[len(self.results)]))
        return self.results[index]

    def _run(self, step: Step) -> Outcome | None:
        for name, body in step.files:
            (self.folder / name).write_text(body, encoding="utf-8")
        if step.reason:
            return None
        variables = {"FLEETC_CACHE": str(self.folder / "cache"), "FLEETC_RACE_SECONDS": "0"}
        if PLAIN.fullmatch(step.command):
            _, *words = shlex.split(step.command, comments=True)
            return run_here(words, folder=self.folder, variables=variables)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        done = subprocess.run(
            ["bash", "-c", step.command],
            cwd=self.folder,
            env={**os.environ, **variables, "PATH": path},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    pytest.importorskip("openvino", reason="the guide's devices are built with OpenVINO")
    folder = tmp_path_factory.mktemp("guide")
    write_model(folder / "model.onnx")
    return Walk(folder, STEPS)


def write_model(path: Path) -> None:
    """The model that the pages speak of."""
    model = ir.from_onnx_text(MODEL)
    random = np.random.default_rng(0)
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        assert value.name is not None and value.shape is not None
        value.const_value = ir.tensor(random.normal(size=value.shape.numpy()).astype(np.float32), name=value.name)
        model.graph.register_initializer(value)
    ir.save(model, path)


@pytest.mark.parametrize("index", range(len(STEPS)), ids=[step.command[:60] for step in STEPS])
def test_a_command_of_the_guide_ends_as_it_says(index: int, walk: Walk) -> None:
    check(walk.result(index), STEPS[index])


def check(result: Outcome | None, step: Step) -> None:
    """It ended as the page says."""
    if result is None:
        pytest.skip(step.reason)
    said = EXPECTED_CODE.search(step.command)
    assert result.code == (int(said[1]) if said else 0), f"{step.command}\n{result.out}\n{result.err}"


def test_most_commands_of_the_guide_are_run() -> None:
    assert sum(not step.reason for step in STEPS) > 25


@pytest.mark.parametrize("document", sorted((GUIDE.parents[1]).glob("*.md")) + sorted(GUIDE.parent.rglob("*.md")))
def test_documents_named_in_a_document_are_there(document: Path) -> None:
    missing = [name for name in NAMED.findall(document.read_text("utf-8")) if not (document.parent / name).is_file()]
    assert missing == []
