"""The stages of a build by name, and how a stage's key and its result are spelled: once, for all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from types import FunctionType
from typing import Any

from compiler.errors import InternalError
from compiler.store.digests import closure_digest, closure_packages
from compiler.store.store import Entry, Stage, canonical_json


class StageName(StrEnum):
    """Every stage of a build, in the order of the line; each is a file of `compiler.driver` by the same name.

    It names the stage's entries in the store, its seconds in the measurements, its events, and what `--from` and `--to`
    take.
    """

    REWRITE = "rewrite"
    IMPORTANCE = "importance"
    PRUNE = "prune"
    RECOVER = "recover"
    CALIBRATE = "calibrate"
    SENSITIVITY = "sensitivity"
    QUANTIZE = "quantize"
    SPECIALIZE = "specialize"
    KERNELS = "kernels"
    COMPILE = "compile"
    REFERENCE = "reference"
    VERIFY = "verify"
    BISECT = "bisect"
    OUTPUTS = "outputs"
    ACCURACY = "accuracy"
    SALIENCY = "saliency"
    SPEED = "speed"
    MEMORY = "memory"
    SERVICE = "service"
    ANSWERS = "answers"
    DRIFT = "drift"
    LAYERS = "layers"
    DELIVER = "deliver"


BORDER_STAGES = (
    StageName.REWRITE,
    StageName.PRUNE,
    StageName.RECOVER,
    StageName.QUANTIZE,
    StageName.SPECIALIZE,
)
"""The portable half: those that leave a model, in order. What the last one leaves is the border model."""

MEASURED_STAGES = frozenset({StageName.MEMORY, StageName.SPEED, StageName.SERVICE, StageName.ANSWERS, StageName.LAYERS})
"""Stages whose results are observations of this machine at one time: no second observation is the same."""


def stage_key(name: StageName, make: Callable[[Path], None], inputs: Mapping[str, object]) -> Stage:
    """The stage by all that can change its result.

    Args:
        name: Which stage.
        make: What makes the result: a function of the module that computes it. The key has the digest of every source
            file that this module can reach, and the version of every package those import.
        inputs: Named parts of the key: digests as they are, other values as JSON.

    Raises:
        InternalError: The code that computes cannot be told from `make`.
    """
    if not isinstance(make, FunctionType):
        raise InternalError(f"stage '{name}' is made by {make!r}, and a cache key needs the module of a plain function")
    parts = {key: value if isinstance(value, str) else canonical_json(value) for key, value in inputs.items()}
    code = {"code": closure_digest(make.__module__), "packages": canonical_json(closure_packages(make.__module__))}
    return Stage(name, tuple({**parts, **code}.items()))


def read_result(entry: Entry, file: str) -> Any:
    """The JSON value that a stage wrote into a file of its entry."""
    return json.loads((entry.files / file).read_text(encoding="utf-8"))


def write_result(folder: Path, file: str, value: object) -> None:
    """Writes a JSON value into a file of the entry that a stage is making."""
    (folder / file).write_text(json.dumps(value), encoding="utf-8")
