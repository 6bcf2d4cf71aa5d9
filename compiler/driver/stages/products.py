"""Parity of a model that rounds activations while it runs: product by product, and of the whole.

A value that lies between two integers may be rounded either way by kernels that add in another order, and what comes
behind is rounded otherwise, too: after a few layers two right computations differ by as much as the roundings make.
So the model is cut at its roundings:

    … → x → rounding → product → …      becomes      … → x, an output;   x_given, an input → rounding → product → …

and every product is given what the border model gives it. There the computations must agree; the whole is held to what
is a model at all, and accuracy judges it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from compiler.artifact.adapter import parse, to_json
from compiler.artifact.schema import Parity, ParityStatus
from compiler.driver.stages.border import Border
from compiler.driver.stages.compile import build_loose, target_inputs
from compiler.driver.stages.reference import ParityCase
from compiler.driver.stages.run import Stages
from compiler.driver.stages.verify import check_parity
from compiler.errors import GateFailed
from compiler.fleet.detect import host_fingerprint
from compiler.fleet.profile import HardwareProfile
from compiler.model.numerics import Arrays, arrays_digest
from compiler.model.save import save_model
from compiler.passes.probe import run_unoptimized
from compiler.passes.quantized import rounded_value
from compiler.plan import Plan
from compiler.store import StageName, read_result, write_result
from compiler.store.scratch import scratch_folder
from compiler.target import Target
from compiler.target.isolate import ChildLimits

PRODUCTS_TOLERANCE = "int8"
"""Of one product: some values round to the next step, and nothing comes behind them."""

_GIVEN = "_given"
_VERDICT = "products.json"


def verify_products(
    parity: Parity,
    border: Border,
    point: ParityCase,
    plan: Plan,
    profile: HardwareProfile,
    target: Target,
    *,
    where: str,
    stages: Stages,
    child_limits: ChildLimits,
) -> Parity:
    """The parity of an artifact with that of its products, where the border model rounds activations while it runs.

    Args:
        parity: Of the whole artifact.
        border: The border model that it was built of.
        point: Inputs of the border model.
        plan: The plan that it was built by.
        profile: The device's profile.
        target: The target.
        where: Device, for messages.
        stages: Where it is run.
        child_limits: What each child process may use.

    Raises:
        GateFailed: A product differs from the border model's by more than the tolerance; the message names it.
    """
    if parity.status != ParityStatus.PASSED or not _roundings(border.load()):
        return parity

    def make(folder: Path) -> None:
        case, cut = given_case(border.load(), point)
        with scratch_folder() as scratch:
            save_model(cut, scratch / "border.onnx", external_above_bytes=0)
            (scratch / "artifact").mkdir()
            artifact = build_loose(
                scratch / "border.onnx", plan, profile, folder=scratch / "artifact", child_limits=child_limits
            )
            try:
                verification = check_parity(
                    artifact,
                    [case],
                    reference=cut,
                    tolerance=PRODUCTS_TOLERANCE,
                    repeat=0,
                    where=where,
                    child_limits=child_limits,
                    instructions=False,
                )
            except GateFailed as error:
                error.what = f"each product was given what the border model gives it: {error.what}"
                raise
        write_result(folder, _VERDICT, to_json(verification.parity))

    entry = stages.run(
        StageName.VERIFY,
        make,
        **target_inputs(border, plan, target),
        products=PRODUCTS_TOLERANCE,
        inputs=arrays_digest(point.inputs),
        host=host_fingerprint(),
    )
    worst = parse(Parity, read_result(entry, _VERDICT)).worst_sqnr_db
    within = "equal to the bit" if worst is None else f"within {worst:.1f} dB"
    words = (
        "activations are rounded while the model runs, and one that rounds the other way changes all behind it; each "
        f"product, given what the border model gives it, is {within}"
    )
    return replace(parity, products_sqnr_db=worst, reason="; ".join(filter(None, (parity.reason, words))))


def cut_at_roundings(model: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
    """The model with every value that is rounded as an output, and another input in its place before the rounding.

    Args:
        model: The border model; left as it is.

    Returns:
        The cut model, and the names of the values.
    """
    copy = model.clone()
    values = _roundings(copy)
    for value, readers in values.items():
        given = ir.Value(name=f"{value.name}{_GIVEN}", type=value.type, shape=value.shape)
        copy.graph.inputs.append(given)
        for node in readers:
            for index, read in enumerate(node.inputs):
                if read is value:
                    node.replace_input_with(index, given)
        if not value.is_graph_output() and not value.is_graph_input():
            copy.graph.outputs.append(value)
    return copy, tuple(str(value.name) for value in values)


def _roundings(model: ir.Model) -> dict[ir.Value, list[ir.Node]]:
    """Every value that is rounded, with the nodes that read it to round it or to work out the scales."""
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        value = rounded_value(node)
        if value is not None and not _is_cache(value):
            readers.setdefault(value, []).extend(_readers(node, value))
    return readers


def _is_cache(value: ir.Value) -> bool:
    """Whether it is a cache that new rows were joined to: that is given as an input of the model already."""
    joined = value.producer()
    return (
        joined is not None
        and joined.op_type == "Concat"
        and any(read is not None and read.is_graph_input() for read in joined.inputs)
    )


def _readers(node: ir.Node, value: ir.Value) -> Iterator[ir.Node]:
    """The nodes between a value and what gives it back rounded that read it."""
    front, seen = [node], set[ir.Node]()
    while front:
        node = front.pop()
        seen.add(node)
        if any(read is value for read in node.inputs):
            yield node
        producers = [read.producer() for read in node.inputs if read is not None and read is not value]
        front += [producer for producer in producers if producer is not None and producer not in seen]


def given_case(model: ir.Model, point: ParityCase) -> tuple[ParityCase, ir.Model]:
    """What the whole border model gives each part of the cut one and expects of it; and the cut model."""
    cut, names = cut_at_roundings(model)
    tapped = model.clone()
    values = {str(value.name): value for node in tapped.graph for value in node.outputs}
    for name in names:
        if name in values and not values[name].is_graph_output():
            tapped.graph.outputs.append(values[name])
    outputs: Arrays = run_unoptimized(tapped, point.inputs)
    known = {**point.inputs, **outputs}
    given = {f"{name}{_GIVEN}": known[name] for name in names}
    return ParityCase(point.label, {**point.inputs, **given}, outputs), cut
