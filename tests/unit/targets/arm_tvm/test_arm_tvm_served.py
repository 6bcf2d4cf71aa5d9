"""`run --serve`: bundles that answer at a socket, one build or a ladder of them, on the host and under QEMU."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from arm_tvm_models import make, needs_aarch64
from onnx import helper

from compiler.artifact import Artifact
from compiler.errors import ToolchainFailed
from compiler.fleet.profile import load_profile
from compiler.target import StaysLoaded, TargetPlan
from serving.engine import BuildProcess
from targets.arm_tvm import TARGET, Options
from targets.arm_tvm.bundle.zig import run_zig
from targets.arm_tvm.run.emulate import emulated_cpu, emulator, host_arch
from tests.control_group import memory_group

pytestmark = pytest.mark.needs_tvm
PI5 = Options("aarch64-linux-gnu", "cortex-a76", ("+neon", "+fullfp16", "+dotprod"))
HOST = Options(f"{host_arch()}-linux-gnu")
emulated = [pytest.mark.needs_emulator, needs_aarch64]
WIDE = 3072
WIDE_BYTES = 4 * 1024 * WIDE
X = np.random.default_rng(5).standard_normal((1, 1024)).astype(np.float32)
DONE, LATE, MALFORMED, FAILED = range(4)
MAGIC = b"FLC1"


def layers(*widths: int):
    """Products with a ReLU between them, of x (1, 1024); the last width is that of y."""
    draw, nodes, weights, name, before = np.random.default_rng(1), [], {}, "x", 1024
    for place, width in enumerate(widths):
        weights[f"w{place}"] = draw.standard_normal((before, width)) / before**0.5
        last = place == len(widths) - 1
        nodes.append(helper.make_node("MatMul", [name, f"w{place}"], ["y" if last else f"p{place}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"p{place}"], [f"r{place}"]))
        name, before = f"r{place}", width
    return make(nodes, {"x": (1, 1024)}, {"y": (1, widths[-1])}, weights)


def build(model, options: Options, workdir: Path, cache_dir: Path) -> Artifact:
    plan = TargetPlan("fp32", options, threads=1, cache_dir=cache_dir)
    return TARGET.build(model, plan, load_profile("raspberry-pi-5"), workdir=workdir)


@dataclass(frozen=True)
class Pair:
    """An accurate build of 12 MiB that takes a thousand times as many products as the cheap one beside it."""

    accurate: Artifact
    cheap: Artifact

    @property
    def command(self) -> list[str]:
        program = str(self.accurate.root / "run")
        is_here = self.accurate.facts["mtriple"] == HOST.mtriple
        return [program] if is_here else [*emulator(emulated_cpu("cortex-a76")), program]

    @property
    def rungs(self) -> list[str]:
        return ["--rungs", f"{self.accurate.root},{self.cheap.root}"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Pair:
    place = tmp_path_factory.mktemp("here")
    return Pair(
        build(layers(WIDE, 8), HOST, place / "accurate", cache_dir), build(layers(8), HOST, place / "cheap", cache_dir)
    )


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Pair:
    place = tmp_path_factory.mktemp("arm")
    return Pair(
        build(layers(WIDE, 8), PI5, place / "accurate", cache_dir), build(layers(8), PI5, place / "cheap", cache_dir)
    )


@dataclass(frozen=True)
class Serving:
    """A program that answers."""

    process: subprocess.Popen[bytes]
    path: Path
    log: Path

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.path))
        client.settimeout(30)
        return client

    def ask(self, *, within_us: int = 0) -> tuple[int, int, bytes]:
        """Status, place of the build that answered, and the output or the reason."""
        with self.connect() as client:
            client.sendall(request(within_us=within_us))
            return answer(client)

    def rungs(self) -> list[psutil.Process]:
        """The processes of its builds, the one that was started first first."""
        return sorted(psutil.Process(self.process.pid).children(), key=lambda child: child.create_time())

    def wait_for(self, pattern: str, seconds: float = 30.0) -> None:
        ends = time.monotonic() + seconds
        while not re.search(pattern, self.log.read_text()):
            assert time.monotonic() < ends, self.log.read_text()
            time.sleep(0.02)

    def wait_until_answered_by(self, rung: int, *, within_us: int = 0) -> None:
        ends = time.monotonic() + 30.0
        while (found := self.ask(within_us=within_us))[:2] != (DONE, rung):
            assert time.monotonic() < ends, (found, self.log.read_text())
            time.sleep(0.02)


def request(x: np.ndarray = X, *, within_us: int = 0, magic: bytes = MAGIC, length: int | None = None) -> bytes:
    data = x.tobytes()
    return magic + struct.pack("<IQ", within_us, len(data) if length is None else length) + data


def answer(client: socket.socket) -> tuple[int, int, bytes]:
    head = take(client, 28)
    magic, status, rung, _, _, length = struct.unpack("<4s4IQ", head)
    assert magic == MAGIC
    return status, rung, take(client, length)


def take(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        got = client.recv(count - len(data))
        if not got:
            raise ConnectionError(f"closed after {len(data)} of {count} bytes")
        data += got
    return data


@contextmanager
def serving(command: Sequence[str], place: Path, *options: str, limit_bytes: int = 0) -> Iterator[Serving]:
    path, log = place / "s", place / "log"

    def limit() -> None:
        if limit_bytes:
            resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))

    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*command, "--serve", str(path), *options],
            env={"TVM_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=output,
            preexec_fn=limit,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"serving on "), log.read_text()
            yield Serving(process, path, log)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def served(here: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(here.command, tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.mark.parametrize("pair", ["here", pytest.param("arm", marks=emulated)])
def test_bundle_that_stays_loaded_gives_the_same_bits_as_one_that_is_started(pair, request):
    runner = TARGET.load(request.getfixturevalue(pair).cheap)
    assert isinstance(runner, StaysLoaded)
    stays = runner.stay_loaded()
    inputs = [{"x": X}, {"x": -2 * X}, {"x": X}]
    found = [stays.run(values)["y"].tobytes() for values in inputs]
    stays.close()
    assert found == [runner.run(values)["y"].tobytes() for values in inputs]
    assert found[0] != found[1]


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_when_what_was_let_in_is_answered(here, tmp_path, signal_name):
    with serving(here.command, tmp_path) as server, server.connect() as client:
        child = server.rungs()[0]
        client.sendall(request())
        time.sleep(0.02)
        server.process.send_signal(getattr(signal, signal_name))
        assert answer(client)[0] == DONE
        assert server.process.wait(10) == 0
        assert not server.path.exists()
        assert not child.is_running()


def test_builds_end_with_a_program_that_is_killed(here, tmp_path):
    with serving(here.command, tmp_path, *here.rungs) as server:
        server.wait_for("accurate is loaded")
        children = server.rungs()
        assert len(children) == 2
        server.process.kill()
        assert not psutil.wait_procs(children, timeout=5)[1]


MALFORMED_REQUESTS = {
    "a request begins with FLC1": request(magic=b"GET "),
    "input 1 has 4095 bytes, 'x' takes 4096": request(length=4095),
    "input 1 has 18446744073709551615 bytes": request(length=2**64 - 1),
    "input 1 has 0 bytes": request(length=0),
}


@pytest.mark.parametrize("reason", MALFORMED_REQUESTS)
def test_request_whose_numbers_are_wrong_is_refused_and_its_connection_closed(served, reason):
    with served.connect() as client:
        client.sendall(MALFORMED_REQUESTS[reason])
        status, _, text = answer(client)
        assert (status, text.decode()[: len(reason)]) == (MALFORMED, reason)
        assert client.recv(1) == b""
    assert served.ask()[0] == DONE


def test_refusal_comes_before_the_data_that_was_announced(served):
    with served.connect() as client:
        client.sendall(request(length=1 << 40)[:16])
        assert answer(client)[0] == MALFORMED


def test_clients_that_go_away_or_wait_keep_nobody_from_an_answer(served):
    whole = request()
    waiting = [served.connect() for _ in range(10)]
    for place, client in enumerate(waiting):
        client.sendall(whole[: 1 + 400 * place])
    for end in (0, 3, 16, 100, len(whole)):
        with served.connect() as client:
            client.sendall(whole[:end])
    assert served.ask()[0] == DONE
    with served.connect() as half:
        half.sendall(whole)
        half.shutdown(socket.SHUT_WR)
        assert answer(half)[0] == DONE
        assert half.recv(1) == b""
    for place, client in enumerate(waiting):
        client.sendall(whole[1 + 400 * place :])
        assert answer(client)[0] == DONE
        client.close()


def test_requests_of_one_connection_and_of_more_than_there_are_places_for_are_all_answered(served):
    with served.connect() as client:
        client.sendall(3 * request())
        assert {answer(client)[2] for _ in range(3)} == {served.ask()[2]}
    clients = [served.connect() for _ in range(40)]
    for client in clients:
        client.sendall(request())
    for client in clients:  # who is in a place keeps it until it closes its connection
        assert answer(client)[0] == DONE
        client.close()


def test_random_bytes_end_in_refusals_or_closed_connections(served):
    draw = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(request())
        for place in draw.integers(0, 16, int(draw.integers(1, 4))):
            data[place] = draw.integers(256)
        with served.connect() as client:
            client.sendall(data[: int(draw.integers(1, len(data)))])
            client.shutdown(socket.SHUT_WR)
            got = client.recv(1 << 16)
            assert got == b"" or struct.unpack_from("<4sI", got) in ((MAGIC, DONE), (MAGIC, LATE), (MAGIC, MALFORMED))
    assert served.ask()[0] == DONE


def test_killed_build_costs_no_request_and_comes_back(here, tmp_path):
    with serving(here.command, tmp_path, *here.rungs) as server:
        server.wait_until_answered_by(0)
        accurate = server.rungs()[1]
        accurate.kill()
        assert server.ask()[0] == DONE
        server.wait_for("accurate is unloaded: its process ended")
        server.wait_until_answered_by(0)
        accurate = server.rungs()[1]
        accurate.suspend()  # the request is with it when it is killed
        with server.connect() as client:
            client.sendall(request())
            time.sleep(0.1)
            accurate.kill()
            assert answer(client)[:2] == (DONE, 1)


def test_only_build_is_started_again(here, tmp_path):
    with serving(here.command, tmp_path) as server:
        server.rungs()[0].kill()
        server.wait_for("unloaded")
        assert server.ask()[0] == DONE


@needs_aarch64
@pytest.mark.needs_emulator
def test_cheap_build_answers_while_deadlines_are_short_and_the_accurate_one_afterwards(arm, tmp_path):
    with timed_apart(arm, tmp_path) as server:
        between_us = int(1e3 * run_ms(server, "accurate") / 2)
        assert server.ask(within_us=between_us)[:2] == (DONE, 1)
        server.wait_for("cheap answers instead of .*accurate: load")
        server.wait_until_answered_by(0)
        server.wait_for("accurate answers instead of .*cheap: recovered")
        status, _, reason = server.ask(within_us=1)
        assert status == LATE
        assert b"it would be late" in reason


@contextmanager
def timed_apart(pair: Pair, place: Path, tries: int = 5) -> Iterator[Serving]:
    """A ladder that has timed its builds as they are; it is started again where other work delayed the cheap one."""
    for attempt in range(tries):
        (own := place / str(attempt)).mkdir()
        with serving(pair.command, own, *pair.rungs, "--deadline-ms", "600000") as server:
            server.wait_until_answered_by(0)
            if run_ms(server, "accurate") > 20 * run_ms(server, "cheap"):
                yield server
                return
    pytest.fail(f"the accurate build never took 20 times as long as the cheap one: {server.log.read_text()}")


def run_ms(server: Serving, name: str) -> float:
    found = re.search(rf"{name} is loaded: a run takes ([\d.]+) ms", server.log.read_text())
    assert found
    return float(found[1])


@needs_aarch64
@pytest.mark.needs_emulator
def test_accurate_build_is_unloaded_when_the_limit_of_memory_falls_and_nothing_is_killed(arm, tmp_path):
    """In a control group, as a container has one; memory is lowered while requests are answered."""
    with memory_group(1 << 30) as group, serving(enter(group, arm.command), tmp_path, *arm.rungs) as server:
        server.wait_until_answered_by(0)
        used = int(next(path.read_text() for name in USED if (path := group / name).exists()))
        next(path for name in LIMIT if (path := group / name).exists()).write_text(str(used + (8 << 20)))
        statuses = set()
        while "accurate is unloaded: memory" not in server.log.read_text():
            statuses.add(server.ask()[0])
        statuses |= {server.ask()[0] for _ in range(10)}
        assert statuses == {DONE}
        assert server.ask()[:2] == (DONE, 1)
        assert "process ended" not in server.log.read_text()


USED, LIMIT = ("memory.current", "memory.usage_in_bytes"), ("memory.max", "memory.limit_in_bytes")


def enter(group: Path, command: Sequence[str]) -> list[str]:
    return ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *command]


def test_build_for_which_a_process_may_not_have_the_memory_leaves_the_others(here, tmp_path):
    (tmp_path / "alone").mkdir()
    with serving([str(here.cheap.root / "run")], tmp_path / "alone") as alone:
        pids = [alone.process.pid, *map_pids(alone)]
        needed = max(int(re.findall(r"VmPeak:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) for pid in pids)
    with serving(here.command, tmp_path, *here.rungs, limit_bytes=(needed << 10) + WIDE_BYTES // 2) as server:
        server.wait_for("accurate is unloaded")
        assert "Cannot allocate memory" in server.log.read_text()
        assert [server.ask()[:2] for _ in range(5)] == [(DONE, 1)] * 5
        assert server.process.poll() is None


def test_build_that_takes_more_than_the_stated_memory_is_unloaded(here, tmp_path):
    with serving(here.command, tmp_path, *here.rungs) as server:
        server.wait_until_answered_by(0)
        taken = sum(psutil.Process(pid).memory_full_info().pss for pid in [server.process.pid, *map_pids(server)])
    limit_mib = (taken - WIDE_BYTES // 2) >> 20
    (tmp_path / "limited").mkdir()
    with serving(here.command, tmp_path / "limited", *here.rungs, "--memory-mib", str(limit_mib)) as server:
        ends = time.monotonic() + 2.0
        while time.monotonic() < ends:
            assert server.ask()[0] == DONE
        assert server.ask()[:2] == (DONE, 1)
        assert len(server.rungs()) == 1
        assert re.search("accurate is (not loaded|unloaded)", server.log.read_text())


def map_pids(server: Serving) -> list[int]:
    return [child.pid for child in server.rungs()]


def test_broken_build_leaves_the_others_and_alone_ends_the_program(here, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(here.accurate.root, broken)
    os.truncate(broken / "payload" / "model.so", 100)
    with serving(here.command, tmp_path, "--rungs", f"{broken},{here.cheap.root}") as server:
        server.wait_for("broken is unloaded")
        assert server.ask()[:2] == (DONE, 1)
    ended = refused([str(broken / "run"), "--serve", str(tmp_path / "socket")])
    assert ended.returncode == 1
    assert "model.so" in ended.stderr
    assert "no build can be loaded" in ended.stderr
    assert not (tmp_path / "socket").exists()
    with pytest.raises(ToolchainFailed, match=r"model\.so"):
        TARGET.load(Artifact(**{**vars(here.accurate), "root": broken})).stay_loaded()


def refused(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env={}, capture_output=True, text=True, timeout=30, check=False)


def test_command_line_that_cannot_be_served_ends_with_2(here, tmp_path):
    run, place = str(here.accurate.root / "run"), tmp_path / "place"
    shutil.copytree(here.cheap.root, tmp_path / "other")
    signature = tmp_path / "other" / "payload" / "io.txt"
    signature.write_text(signature.read_text().replace("1,8 y", "1,7 y"))
    (tmp_path / "file").write_text("")
    cases = {
        "belongs to --serve": ["--rungs", str(here.cheap.root)],
        "neither files nor --repeat": ["--repeat", "3", "--serve", str(place)],
        "has 1 to 107 characters": ["--serve", "x" * 108],
        "is there and no socket": ["--serve", str(tmp_path / "file")],
        "cannot listen": ["--serve", str(tmp_path / "none" / "s")],
        "--deadline-ms takes a number": ["--serve", str(place), "--deadline-ms", "0"],
        "--memory-mib takes a number": ["--serve", str(place), "--memory-mib", "1e3"],
        "--rungs takes 8 folders": ["--serve", str(place), "--rungs", ",".join(["x"] * 9)],
        "names no folder": ["--serve", str(place), "--rungs", ","],
        "takes or gives other tensors": ["--serve", str(place), "--rungs", f"{here.cheap.root},{tmp_path / 'other'}"],
    }
    for message, options in cases.items():
        ended = refused([run, *options])
        assert (ended.returncode, ended.stderr[:5]) == (2, "run: ")
        assert message in ended.stderr
    assert (tmp_path / "file").exists()


def test_socket_of_a_killed_program_is_taken_over_and_that_of_one_that_answers_is_not(here, tmp_path):
    with serving(here.command, tmp_path) as server:
        ended = refused([*here.command, "--serve", str(server.path)])
        assert ended.returncode == 2
        assert "another program answers" in ended.stderr
        assert server.ask()[0] == DONE
    assert (tmp_path / "s").exists()
    with serving(here.command, tmp_path) as server:
        assert server.ask()[0] == DONE
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


@needs_aarch64
@pytest.mark.needs_emulator
def test_front_serves_an_arm_artifact_and_notices_when_its_program_is_gone(arm):
    """The process in which `fleetc serve` loads a build keeps the bundle's program, and ends with it."""
    shapes = [("x", "float32", [1, 1024])]
    expected = TARGET.load(arm.cheap).run({"x": X})["y"]

    async def serve() -> None:
        build = BuildProcess(arm.cheap)
        await build.start({1: shapes}, timed_runs=1)
        for _ in range(3):
            ran = await build.run([{"x": X}], shapes, timeout_s=30)
            np.testing.assert_array_equal(ran.outputs["y"], expected)
        programs = psutil.Process(build.pid).children(recursive=True)
        assert len(programs) == 2
        await build.close()
        assert not psutil.wait_procs(programs, timeout=5)[1]

    asyncio.run(serve())


def test_example_of_the_documentation_gets_an_answer(served, tmp_path, cache_dir):
    page = Path(__file__).parents[4] / "docs" / "boards.md"
    found = re.search(r"```c\n(.*?)```", page.read_text(), re.DOTALL)
    assert found
    (tmp_path / "ask.c").write_text(found[1])
    target = f"{host_arch()}-linux-gnu.2.28"
    run_zig(
        "cc", "-target", target, "-Wall", "-Werror", tmp_path / "ask.c", "-o", tmp_path / "ask", cache_dir=cache_dir
    )
    ended = subprocess.run([tmp_path / "ask", served.path], capture_output=True, text=True, timeout=30, check=False)
    assert re.fullmatch(r"-?[\d.e-]+ by build 0 in \d+ us\n", ended.stdout), ended.stderr
