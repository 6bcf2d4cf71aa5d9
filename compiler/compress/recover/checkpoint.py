"""The state of a recovery on disk: whole or not at all, read without running anything that is in the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from compiler.compress.recover.operators import Tensor
from compiler.errors import StorageError
from compiler.store.atomic import write_atomic
from compiler.store.disk import output_errors

FILE = "recovery.pt"


@dataclass
class State:
    """Where a recovery stands.

    Args:
        step: Steps that were done.
        elapsed_s: Seconds that were used.
        busy_s: Of these in steps, without checks and checkpoints.
        way: dtype, memory layout, parts and threads of the steps, as `ExecutionConfig` has them.
        weights: Initializer → tensor.
        optimizer: The optimizer's own state.
        best: The weights of the best check.
        checks: Step, seconds and metric of every check.
    """

    step: int
    elapsed_s: float
    busy_s: float
    way: tuple[str, bool, int, int]
    weights: dict[str, Tensor]
    optimizer: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    checks: list[tuple[int, float, float]] = field(default_factory=list)


def save_state(state: State, folder: Path, *, key: str) -> None:
    """Writes the state; a kill at any moment leaves the one before.

    Raises:
        OutputError: The folder cannot be written.
        StorageError: The disk is full.
    """
    place = folder / FILE
    with output_errors(place):
        write_atomic(place, lambda file: torch.save({"key": key, **vars(state)}, file))


def load_state(folder: Path, *, key: str) -> State | None:
    """The state that was written under this key; None where there is none, or one of another recovery.

    Raises:
        StorageError: It cannot be read.
    """
    place = folder / FILE
    if not place.exists():
        return None
    try:
        found = torch.load(place, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise StorageError(
            f"the checkpoint cannot be read: {error}", where=str(place), remedy="Remove it; recovery begins anew."
        ) from error
    return State(**{name: value for name, value in found.items() if name != "key"}) if found["key"] == key else None
