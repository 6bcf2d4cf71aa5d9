"""A fleet on disk, plugins installed for real, and the real command in a process of its own."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from compiler import cli
from compiler.target.testing import install_plugin, text_case

MODEL = """(float[batch, 3, 8, 8] x) => (float[batch, 4] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    m = Mul(a, s)
    r = Relu(m)
    c = Conv <pads = [1, 1, 1, 1]> (r, w2)
    e = Add(c, m)
    f = Sigmoid(e)
    g = GlobalAveragePool(f)
    h = Flatten(g)
    y = MatMul(h, v)
}"""
"""A branch, a foldable Mul, and one operator of every kind that the tests single out."""

PLUGIN = '''
import os
from pathlib import Path
from dataclasses import dataclass, replace
from typing import Annotated
from pydantic import Field
from compiler.fleet.profile import validate_options
from compiler.target.testing.fake import FakeTarget, Options

@dataclass(frozen=True)
class More(Options):
    """Also: wait for a file, note each build, be wrong at one operator, give random bytes."""
    wait_for: Annotated[str, Field(description="Deferred until this file is there.")] = ""
    log: Annotated[str, Field(description="File that gets a line per build.")] = ""
    wrong_at: Annotated[str, Field(description="Operator whose presence makes the results wrong.")] = ""
    random: Annotated[str, Field(description="silent or named: a file of random bytes.")] = ""
    start: Annotated[str, Field(description="File that gets the process id of a tool that never ends.")] = ""
    code: Annotated[int, Field(description="Bytes of the payload that the target does not count.")] = 0
    half_gain: Annotated[float, Field(description="Speed-up that is expected of fp16.")] = 1.0

class Runner:
    def __init__(self, inner, wrong):
        self._inner, self._wrong, self.evidence = inner, wrong, inner.evidence
    def run(self, inputs):
        found = self._inner.run(inputs)
        return {k: v * 3 + 1 if self._wrong else v for k, v in found.items()}
    def close(self):
        self._inner.close()

class Moody(FakeTarget):
    Options = More

    def capability(self, profile):
        whole, gain = super().capability(profile), validate_options(More, profile).half_gain
        rules = (replace(rule, gain=gain) if rule.name == "fp16" else rule for rule in whole.precisions)
        return replace(whole, precisions=tuple(rules))

    def build(self, model, plan, profile, *, workdir):
        options = plan.options
        if options.log:
            with open(options.log, "a") as file:
                file.write(profile.name + "\\n")
        if options.start:
            import subprocess, time
            tool = subprocess.Popen(["sleep", "300"])
            Path(options.start).write_text(f"{os.getpid()} {tool.pid}")
            time.sleep(300)
        built = super().build(model, plan, profile, workdir=workdir)
        if options.random:
            (workdir / "payload" / "noise.bin").write_bytes(os.urandom(32))
            named = {"payload/noise.bin": "it is noise"} if options.random == "named" else {}
            built = replace(built, files=(*built.files, "payload/noise.bin"), non_reproducible=named)
        least = None
        if options.code:
            used = sum(path.stat().st_size for path in (workdir / "payload").iterdir())
            for name, size in {"code": options.code, "speed": max(0, (plan.payload_bytes or used) - used)}.items():
                (workdir / "payload" / name).write_bytes(bytes(size))
                built = replace(built, files=(*built.files, f"payload/{name}"))
            least = used
        wrong = any(node.op_type == options.wrong_at for node in model.graph)
        waits = options.wait_for and not Path(options.wait_for).exists()
        return replace(built, facts={**built.facts, "wrong": wrong, "payload_bytes": plan.payload_bytes},
                       least_payload_bytes=least,
                       deferred="the device has to finish it" if waits else built.deferred)

    def load(self, artifact):
        return Runner(super().load(artifact), artifact.facts["wrong"])

TARGET = Moody("moody")
'''

WILD = '''
import os, signal, time
from compiler.target import Evidence
from compiler.target.testing.fake import FakeTarget
from targets.reference import TARGET as REFERENCE

class Runner:
    """Crashes, gives NaN or takes its time where the first number of a batch says so."""
    evidence = Evidence.HOST
    def __init__(self, inner, facts):
        self._inner, self._facts = inner, facts
    def run(self, inputs):
        first = float(inputs["x"].flat[0])
        if first == self._facts["crash_at"]:
            os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(self._facts["seconds"])
        outputs = self._inner.run(inputs)
        factor = float("nan") if first in self._facts["nan_at"] else self._facts.get("factor", 1)
        return {name: array * factor for name, array in outputs.items()}
    def close(self):
        self._inner.close()

class Wild(FakeTarget):
    def load(self, artifact):
        self.held = os.urandom(artifact.facts.get("held_bytes", 0))
        return Runner(REFERENCE.load(artifact), artifact.facts)

TARGET = Wild("wild")
'''


@dataclass(frozen=True)
class Outcome:
    """How one run of the command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.out)


def checked(outcome: Outcome) -> Outcome:
    """No traceback and no colour, whatever happened."""
    assert "Traceback" not in outcome.err + outcome.out, outcome.err
    assert "\x1b" not in outcome.err + outcome.out
    return outcome


def run_here(args: Sequence[str | Path], *, folder: Path, variables: Mapping[str, str]) -> Outcome:
    """The command in this process, in a folder and with some variables of the environment."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["fleetc", *map(str, args)])
        for name, value in variables.items():
            patch.setenv(name, value)
        code = cli._exit_code()
    return Outcome(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Place:
    """A folder with a model, a fleet file, a cache and plugins, and the command to run in it.

    Args:
        root: The folder.
        env: Environment of the command.
        repeat: Timed runs of a build; with any, a process that shares nothing runs the artifact, and takes longer to
            start than all the rest of a small build. Where limits are judged, builds that came out alike need one.
    """

    root: Path
    env: Mapping[str, str]
    repeat: int = 0

    @property
    def dist(self) -> Path:
        return self.root / "dist"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def fleet(self) -> Path:
        return self.root / "fleet.yaml"

    def command(self, *args: str | Path) -> list[str]:
        return [sys.executable, "-P", "-c", "from compiler.cli import main; main()", *map(str, args)]

    def start(self, *args: str | Path, **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        return subprocess.Popen(
            self.command(*args), cwd=self.root, env=dict(self.env), text=True, **{**pipes, **options}
        )

    @property
    def variables(self) -> dict[str, str]:
        """What its environment has that this process's has not."""
        return {name: self.env[name] for name in ("FLEETC_CACHE", "FLEETC_RACE_SECONDS", "PYTHONPATH")}

    def run(self, *args: str | Path) -> Outcome:
        """The command in this process, which saves the start; `start` is the real thing."""
        return checked(run_here(args, folder=self.root, variables=self.variables))

    def call(self, *args: str | Path, timeout: float = 120, **options: Any) -> Outcome:
        """The command in a process of its own."""
        process = self.start(*args, **options)
        out, err = process.communicate(timeout=timeout)
        return checked(Outcome(process.returncode, out, err))

    def profile(self, name: str, target: str = "moody", **options: object) -> str:
        """Writes a profile and gives its path as a fleet file names it."""
        lines = [f"schema: 1\nname: {name}\ntarget: {target}"]
        lines += [f"target_options: {json.dumps(options)}"] if options else []
        (self.root / f"{name}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return f"./{name}.yaml"

    def write_fleet(self, devices: Mapping[str, str | Mapping[str, object]], **more: object) -> Path:
        """Writes the fleet file: device → profile, or all its keys."""
        entries = {name: {"profile": one} if isinstance(one, str) else one for name, one in devices.items()}
        value = {"schema": 1, "model": "model.onnx", "devices": entries, **more}
        self.fleet.write_text(json.dumps(value), encoding="utf-8")
        return self.fleet

    def moody(self, moods: Mapping[str, Mapping[str, object]]) -> Path:
        """A fleet of one device per mood."""
        return self.write_fleet({name: self.profile(name, **options) for name, options in moods.items()})

    def build(self, *args: str | Path) -> Outcome:
        return self.run(*self.build_command(*args))

    def build_command(self, *args: str | Path) -> list[str | Path]:
        return ["build", self.fleet, "-o", self.dist, "--repeat", str(self.repeat), *args]

    def digests(self) -> dict[str, bytes]:
        """Every file of the output folder that must repeat, with its bytes."""
        files = sorted(path for path in self.dist.rglob("*") if path.is_file())
        return {
            path.relative_to(self.dist).as_posix(): path.read_bytes()
            for path in files
            if path.name not in ("measurements.json", "report.html")
        }

    def manifest(self, device: str) -> Any:
        return json.loads((self.dist / device / "manifest.json").read_text(encoding="utf-8"))


def write_model(path: Path, text: str = MODEL, **weights: tuple[int, ...]) -> Path:
    """The model of the tests, with names on its nodes."""
    shapes = weights or {"w": (4, 3, 3, 3), "b": (4,), "s": (1, 4, 1, 1), "w2": (4, 4, 3, 3), "v": (4, 4)}
    proto = text_case("end-to-end", text, weights=shapes).proto()
    for node in proto.graph.node:
        node.name = f"{node.op_type.lower()}_{node.output[0]}"
    onnx.save(proto, path)
    return path


def make_place(root: Path, site: Path, *, repeat: int = 0) -> Place:
    """A place with an empty cache."""
    root.mkdir(exist_ok=True)
    paths: Sequence[str] = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(paths), "FLEETC_CACHE": str(root / "cache"), "FLEETC_RACE_SECONDS": "0"}
    env = {**os.environ, **variables}  # no test depends on a ratio that needs more than the least number of runs
    write_model(root / "model.onnx")
    return Place(root, env, repeat)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of installed plugins, visible here and in child processes."""
    folder = tmp_path_factory.mktemp("site")
    install_plugin(folder, "moody", PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture(scope="session")
def wild(site: Path) -> None:
    """The target `wild`, whose builds do what their artifact's facts say."""
    install_plugin(site, "wild", WILD)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Place:
    """One delivered fleet for tests that only look: device `one` (moody), `two` (reference, a batch range)."""
    place = make_place(tmp_path_factory.mktemp("shared"), site)
    ranged = {"profile": place.profile("two", "reference"), "batch": {"min": 1, "opt": 2, "max": 4}}
    place.write_fleet({"one": place.profile("one"), "two": ranged})
    outcome = place.build()
    assert outcome.code == 0, outcome.err
    np.savez(place.root / "in.npz", x=np.ones((1, 3, 8, 8), np.float32))
    return place


@pytest.fixture
def place(tmp_path: Path, site: Path, shared: Place) -> Place:
    """A place of its own whose cache holds what the shared one made, so that passes need not run again."""
    found = make_place(tmp_path / "place", site)
    shutil.copytree(shared.cache, found.cache)
    return found


@pytest.fixture
def delivered(tmp_path: Path, shared: Place) -> Place:
    """A copy of the shared place, to be damaged."""
    shutil.copytree(shared.root, tmp_path / "copy")
    return Place(tmp_path / "copy", {**shared.env, "FLEETC_CACHE": str(tmp_path / "copy" / "cache")})
