"""Runs passes in order: each is numbered and measured, the model is checked, and what became of removed nodes noted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

from compiler.errors import InternalError, OutputError, UnsupportedModel
from compiler.model.graph import Pass, check_model, skeleton
from compiler.model.save import save_model
from compiler.passes.instrument import PassRecord, measure, run_measured
from compiler.passes.judge import Judge
from compiler.passes.probe import Probe
from compiler.passes.removed_nodes import RemovedNode, add_removed, find_removed, look

log = logging.getLogger("fleetc.build")


def run_passes(
    model: ir.Model,
    passes: Sequence[Pass],
    *,
    probe: Probe | None = None,
    first: int = 1,
    stop_after: int | None = None,
    dump_dir: Path | None = None,
    check_each: bool = False,
    undo: bool = False,
    strict: bool = False,
) -> tuple[PassRecord, ...]:
    """Runs the passes in order on the model, in place.

    Args:
        model: Changed in place.
        passes: The stage's passes.
        probe: What the model's outputs are compared with after each pass that changed it; None measures nothing.
        first: Number of the first pass, so that a build of several stages counts through.
        stop_after: Number of the last pass to run; those behind it are left out.
        dump_dir: Folder that gets the model as `NN-name.onnx`, and as text without weights, before the first pass
            and after each one that changed it.
        check_each: Whether the model is checked after each pass instead of at the end of the stage only.
        undo: Whether a pass that changes the outputs beyond its tolerance is undone; its record and a warning say so.
        strict: Whether a pass is undone too after which the reference no longer runs the model.

    Raises:
        InternalError: A pass raised, or left an invalid model.
        UnsupportedModel: The same, of a model that the reference did not run before the first pass either.
        OutputError: The dump cannot be written.
    """
    chosen = passes if stop_after is None else passes[: max(0, stop_after - first + 1)]
    _dump(model, dump_dir, first - 1, "input")
    records: list[PassRecord] = []
    removed: dict[str, RemovedNode] = {}
    stats, seen, judge = measure(model), look(model), Judge(probe, model, undo=undo, strict=strict)
    for number, step in enumerate(chosen, start=first):
        with _blamed(probe):
            record = run_measured(number, step, model, before=stats, judge=judge)
        stats = record.after
        records.append(record)
        if record.left_out:
            log.warning("%s; please report it with the model", record.left_out)
        if record.modified:
            before, seen = seen, look(model)
            removed |= find_removed(before, seen, by=f"{number} {step.name}")
            _dump(model, dump_dir, number, step.name)
        if check_each or number == first + len(chosen) - 1:
            with _blamed(probe):
                _check(model, records)
    add_removed(model, removed)
    return tuple(records)


@contextmanager
def _blamed(probe: Probe | None) -> Iterator[None]:
    """A model that the reference did not run before the first pass is not valid itself: no pass is to blame."""
    try:
        yield
    except InternalError as error:
        if probe is None or not probe.is_refused:
            raise
        raise UnsupportedModel(
            f"the model cannot be run with these sizes: {probe.why}",
            remedy="Give sizes that the model takes, or sample inputs if random ones cannot be run: `calibration`. "
            f"(Once sizes were put in: {error.what})",
        ) from error


def _check(model: ir.Model, records: Sequence[PassRecord]) -> None:
    try:
        check_model(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        last = next((record for record in reversed(records) if record.modified), records[-1])
        raise InternalError(
            f"the model is not valid any more after pass {last.number} ({last.name}): {error}",
            where=f"pass {last.number} {last.name}",
            remedy=f"Find the pass with `--stop-after N`, N from 1 to {last.number}; please report it with the model.",
        ) from error


def _dump(model: ir.Model, folder: Path | None, number: int, name: str) -> None:
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_model(model, folder / f"{number:02d}-{name}.onnx")
        (folder / f"{number:02d}-{name}.txt").write_text(onnx.printer.to_text(skeleton(model)), encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"the passes cannot be dumped: {error.strerror or error}",
            where=str(folder),
            remedy="Give `--dump-passes` a folder that can be written and has room for the model after every pass.",
        ) from error
