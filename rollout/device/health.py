"""Whether a build computes here what it computed where it was made: stored samples are run and compared.

`health/health.json` names the program, the samples and how near the results must be. Arrays are read without NumPy.
"""

from __future__ import annotations

import io
import math
import shlex
import struct
import subprocess
import tempfile
import zipfile
from pathlib import Path

from .files import read_json
from .refusal import Refused

TIMEOUT_S = 120.0
"""Seconds that the samples may take."""

FORMATS = {"<f4": "f", "<f8": "d", "<f2": "e", "<i8": "q", "<i4": "i", "|i1": "b", "|u1": "B", "|b1": "?"}
"""NumPy's types → those of `struct`."""

LEAST_SQNR_DB = 30.0
"""Least ratio of signal to difference, in dB, where health.json names none: 3 % of the values' size."""


def check_health(folder: Path, command: str | None) -> None:
    """Runs a build's samples.

    Args:
        folder: `versions/<digest>`.
        command: In place of the program that the build names: `{artifact}`, `{inputs}` and `{outputs}` are filled in.

    Raises:
        Refused: It fails, takes too long, or computes something else.
    """
    facts = read_json(folder / "health" / "health.json")
    if not facts and command is None:
        return  # nobody stored samples: the watch is all there is
    with tempfile.TemporaryDirectory(prefix="fleetc-health-") as scratch:
        outputs = [str(Path(scratch) / Path(name).name) for name in facts.get("outputs", ())]
        _run(_words(folder, facts.get("command", ()), command, facts.get("inputs", ()), outputs), folder)
        for name, result in zip(facts.get("outputs", ()), outputs):  # noqa: B905  Python 3.9
            _compare(folder / "health" / name, Path(result), float(facts.get("least_sqnr_db", LEAST_SQNR_DB)))


def _words(folder: Path, stored: list[str], command: str | None, inputs: list[str], outputs: list[str]) -> list[str]:
    """The command line, its places filled in; a list of files takes as many words."""
    lists = {"{inputs}": [str(folder / "health" / name) for name in inputs], "{outputs}": outputs}
    words = shlex.split(command) if command is not None else list(stored)
    filled = [part for word in words for part in lists.get(word, [word])]
    return [word.replace("{artifact}", str(folder / "artifact")) for word in filled]


def _run(words: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(words, capture_output=True, timeout=TIMEOUT_S, check=False, cwd=folder / "artifact")
    except subprocess.TimeoutExpired as error:
        raise Refused(f"the health run took longer than {TIMEOUT_S:g} s") from error
    except OSError as error:
        raise Refused(f"the health run cannot be started: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise Refused(f"the health run ended with {done.returncode}: {' '.join(said)[:200]}")


def _compare(expected: Path, result: Path, least_db: float) -> None:
    try:
        mine, theirs = read_arrays(result), read_arrays(expected)
    except (OSError, ValueError, KeyError, struct.error, zipfile.BadZipFile) as error:
        raise Refused(f"the health run's results cannot be read: {error}") from error
    for name, reference in theirs.items():
        ratio_db = sqnr_db(reference, mine.get(name, []))
        if not ratio_db >= least_db:
            raise Refused(f"the health run gives other numbers: {ratio_db:.1f} dB, at least {least_db:g} are asked for")


def sqnr_db(reference: list[float], values: list[float]) -> float:
    """Ratio of the reference's power to that of the difference; NaN where they cannot be compared."""
    if len(reference) != len(values):
        return math.nan
    power = sum(value * value for value in reference)
    noise = sum((value - other) ** 2 for value, other in zip(reference, values))  # noqa: B905  Python 3.9
    if noise == 0:
        return math.inf
    return 10 * math.log10(power / noise) if power > 0 and math.isfinite(noise) else math.nan


def read_arrays(path: Path) -> dict[str, list[float]]:
    """Name → values of a .npz; of a .npy under the empty name."""
    raw = path.read_bytes()
    if not zipfile.is_zipfile(io.BytesIO(raw)):
        return {"": _values(raw)}
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return {name: _values(archive.read(name)) for name in archive.namelist()}


def _values(raw: bytes) -> list[float]:
    """The numbers of a .npy: its magic, the length of a header in Python's notation, and the values."""
    if raw[:6] != b"\x93NUMPY":
        raise ValueError("no .npy")
    size, start = (struct.unpack("<H", raw[8:10])[0], 10) if raw[6] == 1 else (struct.unpack("<I", raw[8:12])[0], 12)
    header = raw[start : start + size].decode("latin-1")
    kind = header.split("'descr':")[1].split(",")[0].strip(" '\"")
    data = raw[start + size :]
    code = FORMATS[kind]
    return [float(value) for value in struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data)]
