"""The portable half: an imported model, rewritten by numbered passes, ends as the border model, a plain ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler.artifact.manifest import BORDER
from compiler.driver.stages.files import border_digest, read_records, save_stage
from compiler.driver.stages.rewrite import portable_names, rewritten_entry
from compiler.driver.stages.run import Stages
from compiler.driver.stages.specialize import decomposition, own_steps, specialized_entry
from compiler.errors import UsageError
from compiler.model.graph import Pass
from compiler.model.numerics import Arrays
from compiler.passes.pipelines import load_passes
from compiler.passes.quantized import is_quantized
from compiler.passes.run import run_passes
from compiler.plan import Plan
from compiler.store import Entry, StageName
from compiler.target.capability import Capability

_HALF = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}
"""Precision that a graph is converted to → the type its values have then."""


@dataclass(frozen=True)
class Border:
    """The border model in the store.

    Args:
        path: `border.onnx`; its weights may lie beside it.
        digest: SHA-256 of that file, and of the weights beside it if there are.
        records: What each pass did, in order, as JSON-ready values (`PassRecord.to_dict`).
        entries: The store's entries it came from.
    """

    path: Path
    digest: str
    records: tuple[dict[str, Any], ...]
    entries: tuple[Entry, ...]

    def load(self) -> ir.Model:
        """The model, its weights mapped from the file."""
        return ir.load(self.path)


def make_border(
    model: ir.Model,
    digest: str,
    plan: Plan,
    target_passes: Sequence[Pass],
    *,
    inputs: Arrays,
    stages: Stages,
    capability: Capability | None = None,
    prune: Callable[[Entry], tuple[Entry, ...]] | None = None,
    quantize: Callable[[Entry], Entry] | None = None,
    specializes: bool = True,
) -> Border:
    """Runs the portable half of a plan, or takes it from the store.

    Args:
        model: The imported model, dimensions bound; left as it is.
        digest: Its graph digest.
        plan: Which passes run, and the precision of the graph.
        target_passes: The target's own passes.
        inputs: What the probe is run on, one array per graph input.
        stages: Where the stages are run.
        capability: What the target takes: operators that it lacks are written out in others; None writes out nothing.
        prune: Rewritten model → the same without some of its channels, all as entries of the store, the last one what
            counts; None where it keeps them all.
        quantize: Float model → its quantized form, both as entries of the store; None where it stays float.
        specializes: Whether the graph's precision and the target's own passes follow; without them it is no border
            model yet.

    Raises:
        InternalError: A pass failed, or left an invalid model.
    """
    rewritten = rewritten_entry(model, digest, plan, inputs, stages)
    floats = (rewritten, *(prune(rewritten) if prune else ()))
    middle = quantize(floats[-1]) if quantize else floats[-1]
    last = middle
    if specializes:
        last = specialized_entry(middle, plan, target_passes, capability, inputs=inputs, stages=stages)
    return border_of_entries((*floats, middle, last), plan)


def given_border(model: ir.Model, digest: str, plan: Plan, stages: Stages, *, is_asked: bool) -> Border:
    """A model that is a border model already: it is passed on as it is.

    Args:
        model: The border model, dimensions bound.
        digest: Its graph digest.
        plan: The precision that it is in.
        stages: Where the stage is run.
        is_asked: Whether somebody named that precision; the target's first is no answer for a model that is converted.

    Raises:
        UsageError: It is not in the precision of the plan, or may be in another.
    """
    refuse_other_precision(model, plan, is_asked=is_asked)

    def make(folder: Path) -> None:
        save_stage(model, folder)

    return border_of_entries((stages.run(StageName.SPECIALIZE, make, given=digest),), plan)


def refuse_other_precision(model: ir.Model, plan: Plan, *, is_asked: bool) -> None:
    """Raises UsageError where a border model can be no result of a plan's precision, or nobody says what it is in."""
    rule = plan.rule
    types = {value.dtype.name for node in model.graph for value in node.outputs if value.dtype is not None}
    halves = sorted(types & set(_HALF.values()))
    if rule.scheme is not None and not is_quantized(model):
        what = f"{rule.name} is asked for, and nothing is quantized in the border model"
    elif plan.converts_graph and _HALF[plan.converts_graph] not in types:
        what = f"{rule.name} is asked for, and nothing in the border model is in that type"
    elif not is_asked and rule.scheme is None and is_quantized(model):
        what = f"the border model is quantized, and {rule.name} would be built of it"
    elif not is_asked and not plan.converts_graph and halves:
        what = f"the border model is in {', '.join(halves)}, and {rule.name} would be built of it"
    else:
        return
    raise UsageError(what, where=plan.device, remedy="Name the precision that it was made in with --precision.")


def border_of_entries(entries: Sequence[Entry], plan: Plan) -> Border:
    """The model that the last of some stages left, with the records of all of them."""
    distinct = tuple(dict.fromkeys(entries))
    last = distinct[-1]
    return Border(last.files / BORDER, border_digest(last), tuple(_records(distinct, plan)), distinct)


def dump_passes(
    model: ir.Model, plan: Plan, target_passes: Sequence[Pass], folder: Path, *, capability: Capability
) -> None:
    """Runs the portable half outside the store and writes the model after every pass that changed it.

    Raises:
        OutputError: The folder cannot be written.
    """
    copy = model.clone()
    steps = [
        *load_passes(portable_names(plan)),
        *own_steps(plan, target_passes, decomposition(model, plan, capability)),
    ]
    run_passes(copy, steps, dump_dir=folder)


def _records(entries: Sequence[Entry], plan: Plan) -> Iterator[dict[str, Any]]:
    """The records of all stages, under the numbers the plan gives the passes."""
    numbers = [step.number for step in plan.passes if step.runs]
    records = [record for entry in entries for record in read_records(entry)]
    for number, record in zip_longest(numbers, records, fillvalue=None):
        if record is not None:
            yield record if number is None else record | {"number": number}
