"""What a stage's key says about the code that made its result: package versions, and digests of sources."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from compiler.errors import InternalError

PORTABLE_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "onnxsim")
SOURCE_SUFFIXES = frozenset({".py", ".c", ".cc", ".h", ".json"})


@cache
def portable_tools() -> tuple[tuple[str, str], ...]:
    """Name and version of every package the portable half computes with."""
    return tuple((name, version(name)) for name in PORTABLE_PACKAGES)


@cache
def code_digest(module: str) -> str:
    """SHA-256 of the sources of a module, or of every source file of a package.

    Raises:
        InternalError: There is no such module, or nothing of it can be read: a key must not go on without its code.
    """
    files = _sources(module)
    if not files:
        raise InternalError(f"the sources of '{module}' are not there, and a cache key needs their digest")
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _sources(module: str) -> list[Path]:
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # a parent package is missing
        return []
    if spec is None:
        return []
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    files = [file for place in places for file in place.rglob("*") if file.suffix in SOURCE_SUFFIXES]
    own = [Path(spec.origin)] if spec.origin else []
    return files or [file for file in own if file.is_file()]
