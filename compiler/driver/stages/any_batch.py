"""What devices that differ in their batch alone have in common is made once, on the model with its batch left open.

Observing, quantizing, ranking layers and the reference's outputs are of the model and the scheme. They may be shared
where the passes leave the same operators, attributes and weights whatever the batch is: that is looked at, not assumed,
since a model whose batch is known has more that can be folded. The device's batch is put in at the end, and left open
again where a quantized border model is run on whole data sets: devices of other batches share what it computes, and
its weights are dequantized once for a batch and not for each sample.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import onnx_ir as ir

from compiler.artifact.manifest import BORDER
from compiler.driver.stages.border import Border, border_of_entries
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.data import with_inputs
from compiler.driver.stages.rewrite import rewritten_entry
from compiler.driver.stages.specialize import specialized_entry
from compiler.errors import CompilerError, StorageError
from compiler.model.frontend import describe_inputs
from compiler.model.graph import graph_digest
from compiler.plan import Plan
from compiler.store import StageName


def may_share(plan: Plan) -> bool:
    """Whether a device has anything to share: a quantized candidate or a gate, and no pruning."""
    needs = plan.constraints.any or any(rule.scheme for rule in plan.candidates)
    return needs and not plan.pruning.ratio and not plan.pruning.is_searched


def share_batch(context: BuildContext) -> BuildContext:
    """The device with its model of any batch where that stands for the bound one; otherwise without it.

    Raises:
        StorageError: The cache's disk is full.
    """
    is_whole = context.options.first is None and context.ready.any_batch is not None
    return context if is_whole and _is_same(context) else without_any_batch(context)


def without_any_batch(context: BuildContext) -> BuildContext:
    """The device with its bound model alone."""
    ready = context.ready
    if ready.any_batch is None:
        return context
    data = with_inputs(context.data, describe_inputs(ready.model))
    return replace(context, ready=replace(ready, any_batch=None), data=data)


def for_data_sets(context: BuildContext, plan: Plan, border: Border) -> Border:
    """The border model with its batch left open where it is quantized and otherwise the same; else as it is.

    Args:
        context: The device.
        plan: The plan it was made by, its precision settled.
        border: The border model.
    """
    free, quantized = context.ready.any_batch, [entry for entry in border.entries if entry.stage == StageName.QUANTIZE]
    if free is None or not quantized or plan.pruning.ratio:
        return border
    job = context.job
    passes, capability = job.target.passes(job.profile), job.target.capability(job.profile)
    entry = specialized_entry(quantized[0], plan, passes, capability, inputs=free.probe, stages=context.stages)
    is_same = _digest_at(entry.files / BORDER) == _digest_at(border.path)
    return (
        border_of_entries((*border.entries[: border.entries.index(quantized[0]) + 1], entry), plan)
        if is_same
        else border
    )


def _is_same(context: BuildContext) -> bool:
    """Whether the passes leave the same graph of the bound model and of the one of any batch."""
    ready, plan = context.ready, context.job.plan
    free = ready.any_batch
    if free is None:
        return False
    bound = rewritten_entry(ready.model, ready.digest, plan, ready.inputs.probe, context.stages)
    try:
        other = rewritten_entry(free.model, free.digest, plan, free.probe, context.stages)
    except StorageError:
        raise
    except CompilerError as error:
        context.clock.note(f"nothing is shared with devices of another batch: {error.brief}")
        return False
    return _digest_at(bound.files / BORDER) == _digest_at(other.files / BORDER)


@lru_cache(maxsize=64)
def _digest_at(path: Path) -> str:
    """Of an entry of the store, which never changes."""
    return batchless_digest(ir.load(path))


def batchless_digest(model: ir.Model) -> str:
    """The graph digest without the shapes of values: operators, attributes, names and weights remain."""
    bare = model.clone()
    for graph in (bare.graph, *bare.graph.subgraphs()):
        for value in (*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)):
            if value.const_value is None:
                value.shape = None
    return graph_digest(bare)
