"""A fleet on the loopback: agents, a TUF repository behind a web server, and a controller that may be killed.

Builds are shell scripts, requests are numbers in the metrics file of each device: it is measured who got which build.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from rollout.bundle import pack
from rollout.controller import Controller
from rollout.device.agent import Agent, Settings
from rollout.device.files import write_json
from rollout.device.source import Source
from rollout.journal import ENDS, Event, Standing
from rollout.repository import FleetRepository
from rollout.spec import read_spec

CLASS, AGENTS, KILLS, KILLED_AGENTS = "kiosk", 200, 100, 10
LATE_PCT, REQUESTS_A_LOOK = 5, 10
PROGRAM = b'#!/bin/sh\nexec cp "$1" "$2"\n'
FILE = """schema: 1
name: second
fleet: fleet
device_class: kiosk
build: {build}
soak: 0s
gates: {{late: 1%, requests: {requests}}}
groups:
  - {{name: first, share: 5%}}
  - {{name: half, share: 45%}}
  - {{name: rest, share: rest}}
devices:
"""


@dataclass(frozen=True)
class Scene:
    """A fleet on disk, and where its repository is served."""

    folder: Path
    url: str
    digests: tuple[str, str]

    @property
    def fleet(self) -> Path:
        """The fleet's folder."""
        return self.folder / "fleet"

    def agent(self, name: str) -> Agent:
        """An agent as it starts."""
        place = self.folder / name
        root = (self.fleet / "root.json").read_bytes()
        source = Source(self.url, place, root=root, device_class=CLASS)
        return Agent(Settings(place, name, CLASS, watch_s=0.0, metrics=str(self.folder / f"{name}.prom")), source)

    def count(self, name: str, requests: int, late: int) -> None:
        """Writes what a device's server would have counted."""
        lines = [f'fleetc_requests_total{{outcome="ok"}} {requests - late}']
        lines.append(f'fleetc_requests_total{{outcome="late"}} {late}')
        (self.folder / f"{name}.prom").write_text("\n".join(lines) + "\n")

    def begin(self, names: list[str], *, requests: int) -> Controller:
        """A rollout of the second build."""
        path = self.folder / "rollout.yaml"
        text = FILE.format(build=self.digests[1], requests=requests)
        path.write_text(text + "".join(f"  {name}: {{}}\n" for name in names))
        spec, document = read_spec(path)
        controller = Controller(self.fleet, spec.name)
        controller.create(spec, spec.build, document)
        controller.journal.append(Event.STARTED)
        return controller


@contextmanager
def scene() -> Iterator[Scene]:
    """Two builds in a repository, the first assigned to everybody, served on the loopback."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        repository = FleetRepository(folder / "fleet")
        repository.create()
        repository.add_class(CLASS)
        digests = []
        for name in ("one", "two"):
            digest, archive = build(name)
            repository.add_build(CLASS, digest, archive, {"device_class": CLASS, "manifest_sha256": digest})
            digests.append(digest)
        repository.assign(CLASS, {"schema": 1, "rollout": "first", "default": digests[0], "devices": {}})
        handler = functools.partial(Quiet, directory=str(folder / "fleet" / "repository"))
        with Patient(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield Scene(folder, f"http://127.0.0.1:{server.server_port}", (digests[0], digests[1]))
            server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """Hands files out, and says nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class Patient(ThreadingHTTPServer):
    """Serves clients that are killed while they read."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing."""


def build(weights: str) -> tuple[str, bytes]:
    """Digest and archive of a build whose program copies its input."""
    stream = io.BytesIO()
    np.save(stream, np.arange(8, dtype=np.float32))
    files = {"payload/weights": weights.encode(), "run": PROGRAM}
    listed = {name: {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)} for name, raw in files.items()}
    files["manifest.json"] = json.dumps({"files": listed}).encode()
    facts = {"command": ["{artifact}/run", "{inputs}", "{outputs}"], "inputs": ["in-0.npy"], "outputs": ["out-0.npy"]}
    contents = {f"artifact/{name}": raw for name, raw in files.items()}
    contents |= {"health/health.json": json.dumps(facts).encode()}
    contents |= {f"health/{name}.npy": stream.getvalue() for name in ("in-0", "out-0")}
    return hashlib.sha256(files["manifest.json"]).hexdigest(), pack(contents, {"artifact/run": 0o111})


def breaching() -> dict[str, Any]:
    """200 agents and a build of which 5 % of the requests are late; 0.3 % of the one before are."""
    names = [f"d{number:03}" for number in range(AGENTS)]
    draw, started = random.Random(16), time.monotonic()
    with scene() as here:
        counts = {name: [0, 0] for name in names}
        for name in names:
            here.count(name, 0, 0)
        agents = {name: here.agent(name) for name in names}
        look_all(here, agents)
        controller = here.begin(names, requests=500)
        standing, looks = controller.tick(), 0
        while standing.state not in ENDS:
            for name, agent in agents.items():
                late = 0.05 if agent.build == here.digests[1] else 0.003
                counts[name][0] += REQUESTS_A_LOOK
                counts[name][1] += sum(draw.random() < late for _ in range(REQUESTS_A_LOOK))
                here.count(name, *counts[name])
            look_all(here, agents)
            standing, looks = controller.tick(), looks + 1
        exposed = set(standing.exposed)
        return {
            "agents": AGENTS,
            "first_group": len(standing.groups["first"]),
            "exposed": len(exposed),
            "beyond_first_group": len(exposed - set(standing.groups["first"])),
            "not_back": sum(verified_build(here.folder / name) != here.digests[0] for name in names),
            "why": standing.why,
            "looks": looks,
            "wall_s": round(time.monotonic() - started, 1),
        }


def look_all(here: Scene, agents: dict[str, Agent]) -> None:
    """Every agent looks and reports."""
    (here.fleet / "reports").mkdir(exist_ok=True)
    for name, agent in agents.items():
        write_json(here.fleet / "reports" / f"{name}.json", agent.look())


def killing() -> dict[str, Any]:
    """SIGKILL at random moments of agents and of the controller, until 100 have hit; then the rollout goes on."""
    names = [f"d{number:03}" for number in range(KILLED_AGENTS)]
    draw, started, hits, broken = random.Random(16), time.monotonic(), {"agent": 0, "controller": 0}, 0
    rounds = 0
    with scene() as here:
        for name in names:
            here.count(name, 0, 0)
        look_all(here, {name: here.agent(name) for name in names})
        while sum(hits.values()) < KILLS:
            rounds += 1
            controller = here.begin(names, requests=0)
            while (standing := controller.journal.standing()).state not in ENDS and sum(hits.values()) < KILLS:
                for name in names:
                    works = {"controller": controller.tick, "agent": functools.partial(look_once, here, name)}
                    for who, work in works.items():
                        is_hit = sum(hits.values()) < KILLS and killed(work, draw)
                        hits[who] += is_hit
                    broken += verified_build(here.folder / name) not in here.digests
            standing = finish(here, controller, names)
            ended = sum(verified_build(here.folder / name) == here.digests[1] for name in names)
            again(here, names)
        return {
            "asked": KILLS,
            "kills": hits,
            "rollouts": rounds,
            "without_verified_build": broken,
            "last_rollout": str(standing.state),
            "devices_on_the_new_build_at_its_end": f"{ended} of {len(names)}",
            "wall_s": round(time.monotonic() - started, 1),
        }


def look_once(here: Scene, name: str) -> None:
    """An agent starts, looks and reports."""
    look_all(here, {name: here.agent(name)})


def killed(work: Any, draw: random.Random) -> bool:
    """Does something in a process that is killed at a random moment. Whether it was hit before it had ended."""
    started = time.monotonic()
    undisturbed_s = LASTS.get(work_name(work), 0.0)
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    if not undisturbed_s:  # the first shows how long it takes
        os.waitpid(child, 0)
        LASTS[work_name(work)] = time.monotonic() - started
        return False
    time.sleep(draw.uniform(0, 1.5 * undisturbed_s))
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


LASTS: dict[str, float] = {}
"""Seconds that an agent's look, and the controller's, take undisturbed: kills are spread over all of that time."""


def work_name(work: Any) -> str:
    """Of a function, also where arguments are bound to it."""
    return str(getattr(work, "func", work).__name__)


def finish(here: Scene, controller: Controller, names: list[str]) -> Standing:
    """Without kills, until the rollout has ended."""
    while True:
        standing = controller.tick()
        look_all(here, {name: here.agent(name) for name in names})
        if standing.state in ENDS:
            return standing


def again(here: Scene, names: list[str]) -> None:
    """Everybody back on the first build, as before the rollout."""
    first = {"schema": 1, "rollout": f"again {time.time()}", "default": here.digests[0], "devices": {}}
    FleetRepository(here.fleet).assign(CLASS, first)
    look_all(here, {name: here.agent(name) for name in names})
    (here.fleet / "rollouts" / "second.jsonl").unlink()


def verified_build(folder: Path) -> str:
    """The build in use, every byte compared; empty where it is not whole."""
    link = folder / "current"
    artifact = link.resolve() / "artifact"
    try:
        raw = (artifact / "manifest.json").read_bytes()
        files = json.loads(raw)["files"]
        is_whole = all(
            hashlib.sha256((artifact / name).read_bytes()).hexdigest() == file["sha256"] for name, file in files.items()
        )
    except OSError:
        return ""
    digest = hashlib.sha256(raw).hexdigest()
    return digest if is_whole and link.readlink().name == digest else ""
