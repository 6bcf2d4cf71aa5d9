"""Checkpoints of a recovery: written atomically, read without executing anything in the file."""

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
    """The state of a recovery between two steps.

    Args:
        step: Steps that were done.
        elapsed_s: Seconds that were used.
        busy_s: Part of these spent in steps, without checks and checkpoints.
        execution: dtype, memory layout, parts and threads of the steps, as `ExecutionConfig` has them.
        weights: Initializer → tensor.
        optimizer: The optimizer's own state.
        best: The weights of the best check.
        checks: Step, seconds and metric of every check.
    """

    step: int
    elapsed_s: float
    busy_s: float
    execution: tuple[str, bool, int, int]
    weights: dict[str, Tensor]
    optimizer: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    checks: list[tuple[int, float, float]] = field(default_factory=list)


def save_state(state: State, folder: Path, *, key: str) -> None:
    """Writes the state; a kill at any moment leaves the previous checkpoint.

    Raises:
        OutputError: The folder cannot be written.
        StorageError: The disk is full.
    """
    place = folder / FILE
    with output_errors(place):
        write_atomic(place, lambda file: torch.save({"key": key, **vars(state)}, file))


def load_state(folder: Path, *, key: str) -> State | None:
    """The state that was written under this key; None where there is no checkpoint, or one of another recovery.

    Raises:
        StorageError: It cannot be read.
    """
    place = folder / FILE
    if not place.exists():
        return None
    try:
        state = torch.load(place, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise StorageError(
            f"the checkpoint cannot be read: {error}", where=str(place), remedy="Remove it; recovery begins anew."
        ) from error
    if state["key"] != key:
        return None
    return State(**{name: value for name, value in state.items() if name != "key"})
