"""The portable half: an imported model, rewritten by numbered passes, ends as the border model, a plain ONNX file."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler.artifact.manifest import BORDER, BORDER_DATA
from compiler.model.graph import Pass
from compiler.model.numerics import Arrays, arrays_digest
from compiler.model.save import save_model
from compiler.passes.convert_to_half import refuse_undefined
from compiler.passes.decompose_operators import DecomposeOperators
from compiler.passes.instrument import measure
from compiler.passes.pipelines import load_passes, precision_passes
from compiler.passes.probe import Probe, make_probe
from compiler.passes.run import run_passes
from compiler.plan import Plan
from compiler.store import Entry, Stage, Store, canonical_json, file_digest
from compiler.store.digests import code_digest, portable_tools
from compiler.target.capability import Capability, is_refused

RECORDS = "passes.json"

EMBED_BYTES = 256 << 20
"""Weights of more than this lie in `border.data`, from where they can be mapped instead of read."""

log = logging.getLogger("fleetc.build")


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
    store: Store,
    capability: Capability | None = None,
    prune: Callable[[Entry], tuple[Entry, ...]] | None = None,
    quantize: Callable[[Entry], Entry] | None = None,
) -> Border:
    """Runs the portable half of a plan, or takes it from the store.

    Args:
        model: The imported model, dimensions bound; left as it is.
        digest: Its graph digest.
        plan: Which passes run, and the precision of the graph.
        target_passes: The target's own passes.
        inputs: What the probe is run on, one array per graph input.
        store: Where finished stages are.
        capability: What the target takes: operators that it lacks are written out in others; None writes out nothing.
        prune: Rewritten model → the same without some of its channels, all as entries of the store, the last one what
            counts; None where it keeps them all.
        quantize: Float model → its quantized form, both as entries of the store; None where it stays float.

    Raises:
        InternalError: A pass failed, or left an invalid model.
    """
    rewritten = _rewrite(model, digest, plan, inputs, store)
    floats = (rewritten, *(prune(rewritten) if prune else ()))
    middle = quantize(floats[-1]) if quantize else floats[-1]
    last = _specialize(middle, plan, target_passes, capability, inputs, store)
    entries = tuple(dict.fromkeys((*floats, middle, last)))
    return Border(last.files / BORDER, border_digest(last), tuple(_records(entries, plan)), entries)


def dump_passes(
    model: ir.Model, plan: Plan, target_passes: Sequence[Pass], folder: Path, *, capability: Capability
) -> None:
    """Runs the portable half outside the store and writes the model after every pass that changed it.

    Raises:
        OutputError: The folder cannot be written.
    """
    copy = model.clone()
    own = _own_steps(plan, target_passes, _decomposition(model, plan, capability))
    steps = [*load_passes(_portable_names(plan)), *own]
    run_passes(copy, steps, dump_dir=folder)


def _rewrite(model: ir.Model, digest: str, plan: Plan, inputs: Arrays, store: Store) -> Entry:
    names = _portable_names(plan)
    parts = (("model", digest), *_pass_parts(names, inputs))

    def make(folder: Path) -> None:
        _run(model, load_passes(names), make_probe(model, inputs), folder, first=1, strict=True)

    return store.obtain(Stage("rewrite", parts), make)


def _specialize(
    rewritten: Entry,
    plan: Plan,
    target_passes: Sequence[Pass],
    capability: Capability | None,
    inputs: Arrays,
    store: Store,
) -> Entry:
    """Precision of the graph, operators that the target lacks written out, and the target's own passes.

    The rewritten model itself where there is nothing of all that to do.
    """
    writes_out = None if capability is None else _decomposition(ir.load(rewritten.files / BORDER), plan, capability)
    steps = _own_steps(plan, target_passes, writes_out)
    if not steps:
        return rewritten
    sources = tuple((step.name, code_digest(type(step).__module__)) for step in target_passes)
    takes = (("capability", _capability_digest(capability)),) if capability and writes_out else ()
    parts = (("rewrite", rewritten.digest), *_pass_parts([step.name for step in steps], inputs), *takes, *sources)

    def make(folder: Path) -> None:
        model = ir.load(rewritten.files / BORDER)
        if plan.converts_graph:
            refuse_undefined(model, plan.converts_graph)
        _run(model, steps, make_probe(model, inputs), folder, first=len(plan.passes) + 1)

    return store.obtain(Stage("specialize", parts), make)


def _run(
    model: ir.Model, steps: Sequence[Pass], probe: Probe, folder: Path, *, first: int, strict: bool = False
) -> None:
    copy = model.clone()
    records = [
        record.to_dict() for record in run_passes(copy, steps, probe=probe, first=first, undo=True, strict=strict)
    ]
    save_model(copy, folder / BORDER, external_above_bytes=EMBED_BYTES)
    (folder / RECORDS).write_text(json.dumps(records), encoding="utf-8")
    log.info("%d passes: %d nodes become %d", len(steps), measure(model).nodes, measure(copy).nodes)


def _portable_names(plan: Plan) -> list[str]:
    """By number, not by name: a pass may stand in the pipeline more than once."""
    return [step.name for step in plan.passes if step.runs]


def _decomposition(model: ir.Model, plan: Plan, capability: Capability) -> DecomposeOperators | None:
    """The pass that writes out what a target lacks, for models of this one's opset; None where it lacks nothing."""
    opset = model.graph.opset_imports.get("", 1)
    writes_out = DecomposeOperators(lambda node: is_refused(node, capability, opset))
    # a conversion may make what the target takes in float32 alone, so the pass is needed behind it in any case
    is_needed = bool(plan.converts_graph) or any(writes_out.refuses(node) for node in model.graph.all_nodes())
    return writes_out if is_needed else None


def _own_steps(plan: Plan, target_passes: Sequence[Pass], writes_out: Pass | None) -> list[Pass]:
    """After the precision, since bodies are written for the types there are; before passes made for the target."""
    return [*precision_passes(plan.converts_graph or "fp32"), *([writes_out] if writes_out else []), *target_passes]


def _capability_digest(capability: Capability) -> str:
    """What a capability says of operators, in an order that does not depend on the process."""
    rules = [
        (name, asdict(rule) | {"dtypes": sorted(rule.dtypes), "attributes": sorted(rule.attributes.items())})
        for name, rule in sorted(capability.ops.items())
    ]
    return hashlib.sha256(repr(rules).encode()).hexdigest()


def _pass_parts(names: Sequence[str], inputs: Arrays) -> tuple[tuple[str, str], ...]:
    return (
        ("passes", canonical_json(names)),
        ("probe", arrays_digest(inputs)),
        ("compiler", code_digest("compiler")),
        *portable_tools(),
    )


def _records(entries: Sequence[Entry], plan: Plan) -> Iterator[dict[str, Any]]:
    """The records of all stages, under the numbers the plan gives the passes."""
    numbers = [step.number for step in plan.passes if step.runs]
    found = [record for entry in entries for record in json.loads((entry.files / RECORDS).read_text(encoding="utf-8"))]
    for number, record in zip_longest(numbers, found, fillvalue=None):
        if record is not None:
            yield record if number is None else record | {"number": number}


def border_digest(entry: Entry) -> str:
    """SHA-256 of an entry's model, and of the weights beside it if there are."""
    data = entry.files / BORDER_DATA
    digest = file_digest(entry.files / BORDER)
    return f"{digest}+{file_digest(data)}" if data.exists() else digest
