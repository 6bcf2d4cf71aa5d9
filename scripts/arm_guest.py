"""An aarch64 Python with the wheels of ncnn, MNN and ONNX Runtime in a folder, to be run under QEMU without root.

Debian's packages are fetched with an apt state of their own, so the machine's lists and architectures stay as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from targets.arm_tvm.run.emulate import count_instructions, emulator

DEBIAN = "python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libstdc++6 libgcc-s1 zlib1g libexpat1"
PEERS = {
    "ncnn": "ncnn==1.0.20261020",
    "mnn": "MNN==3.6.1",
    "onnxruntime": "onnxruntime==1.26.0",  # 1.29 and later end with SIGSEGV when QEMU 7.2 loads them
    "numpy": "numpy==2.4.6",
}
CONVERTER = "pnnx==20261020"
WHEEL_PLATFORMS = (
    "manylinux2014_aarch64",
    "manylinux_2_24_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux_2_28_aarch64",
)
TIMEOUT_S = 3600


class PeerUnavailable(Exception):
    """A peer could not be set up or run; the message says why and enters the figures."""


@dataclass(frozen=True)
class Guest:
    """A folder with an aarch64 Python.

    Args:
        root: A Debian root, unpacked.
        site: Where its packages are.
        pnnx: The converter from ONNX to ncnn; it runs on the host.
    """

    root: Path
    site: Path
    pnnx: Path

    def command(self, *arguments: str | Path) -> tuple[str, ...]:
        """The command line of this Python, as an emulator takes it."""
        return (str(self.root / "usr/bin/python3.11"), "-S", *map(str, arguments))

    @property
    def environment(self) -> dict[str, str]:
        """One thread, a fixed hash seed, and nothing of the caller's."""
        home = {"PYTHONHOME": str(self.root / "usr"), "PYTHONPATH": str(self.site), "PYTHONHASHSEED": "0"}
        return home | {"OMP_NUM_THREADS": "1", "HOME": str(self.root)}

    def run(self, *arguments: str | Path, cpu: str) -> str:
        """What Python printed.

        Raises:
            PeerUnavailable: It failed or hung.
        """
        return _run([*emulator(cpu, root=self.root), *self.command(*arguments)], self.environment)

    def count(self, *arguments: str | Path, cpu: str) -> int:
        """Guest instructions of one whole run."""
        program = self.command(*arguments)
        return count_instructions(program, cpu=cpu, environment=self.environment, timeout_s=TIMEOUT_S, root=self.root)


def prepare_guest(cache: Path) -> Guest:
    """Fetches and unpacks what is not there yet.

    Raises:
        PeerUnavailable: No apt-get on this machine, or no network.
    """
    guest = Guest(cache / "root", cache / "site", cache / "host" / "pnnx" / "pnnx")
    cache.mkdir(parents=True, exist_ok=True)
    steps = ((guest.root, _unpack_debian), (guest.site, _unpack_wheels), (cache / "host", _unpack_converter))
    for folder, unpack in steps:
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache) as place:
                unpack(Path(place))
                (Path(place) / "unpacked").rename(folder)
    return guest


def _unpack_debian(place: Path) -> None:
    for folder in ("state/lists/partial", "cache/archives/partial", "debs", "unpacked"):
        (place / folder).mkdir(parents=True)
    (place / "status").touch()
    folders = {"Dir::State": "state", "Dir::State::status": "status", "Dir::Cache": "cache", "Dir::Log": "."}
    options = [f"-o{key}={place / value}" for key, value in folders.items()]
    options += ["-oAPT::Architecture=arm64", "-oAPT::Architectures::=arm64", "-oAPT::Sandbox::User=", "-q"]
    _run(["apt-get", *options, "update"])
    _run(["apt-get", *options, "download", *DEBIAN.split()], cwd=place / "debs")
    for package in sorted((place / "debs").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(place / "unpacked")])


def _unpack_wheels(place: Path) -> None:
    platforms = [word for name in WHEEL_PLATFORMS for word in ("--platform", name)]
    options = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", *platforms]
    _download(place, [*options, *PEERS.values()])


def _unpack_converter(place: Path) -> None:
    _download(place, ["--only-binary=:all:", CONVERTER])
    (place / "unpacked" / "pnnx" / "pnnx").chmod(0o755)


def _download(place: Path, arguments: Sequence[str]) -> None:
    wheels = place / "wheels"
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), *arguments])
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as opened:
            opened.extractall(place / "unpacked")


def _run(command: Sequence[str], environment: dict[str, str] | None = None, *, cwd: Path | None = None) -> str:
    try:
        ended = subprocess.run(
            command,
            env=os.environ | {"LC_ALL": "C"} if environment is None else environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise PeerUnavailable(f"{command[0]}: {error}") from error
    if ended.returncode:
        raise PeerUnavailable(f"{command[0]} ended with {ended.returncode}: {ended.stderr.strip()[-500:]}")
    return ended.stdout + ended.stderr
