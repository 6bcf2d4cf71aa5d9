"""Memory of an artifact: what its weights take on the device, and what the model itself takes when it runs.

weights   bytes of `payload/`; of the border models where nothing was built
run       peak resident memory of a process that loads the artifact and runs it, less that of the same runtime with a
          model of one node, the heaviest operator. Of mapped files only the artifact's own are counted: which pages of
          a runtime's libraries are resident is no property of the model. The least of up to three runs on this
          machine, since what else a process touches only adds; under an emulator, whose program is looked at from
          outside, the largest of the looks at one run, the last of them when its inference is done: the run that
          parity judges
process   that peak as it is, at the largest sizes (`memory_mib`). A language model whose runner keeps the cache inside
          answers a prompt there, as on the device: read in parts, until one more token fills the context
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeGuard

import numpy as np
import onnx_ir as ir

from compiler.artifact import Evidence
from compiler.artifact.manifest import BORDER
from compiler.artifact.schema import Footprint, GateName
from compiler.driver.measure.child import measure_in_child
from compiler.driver.stages.border import Border
from compiler.driver.stages.candidate import UnverifiedCandidate, is_foreign
from compiler.driver.stages.compile import Built, build_artifact
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.execute import emulated_run
from compiler.driver.stages.verify import why_not_executed
from compiler.driver.work import list_work
from compiler.errors import TargetUnavailable, ToolchainFailed, UnsupportedModel
from compiler.evaluate.answers import Asked
from compiler.evaluate.gates import Figure
from compiler.fleet.detect import host_fingerprint
from compiler.model.decoder import find_decoder
from compiler.model.numerics import Arrays, arrays_digest
from compiler.model.save import save_model
from compiler.passes.instrument import measure
from compiler.plan import settle
from compiler.plan.candidates import BASELINE
from compiler.store import StageName, file_digest, read_result, write_result
from compiler.store.scratch import scratch_folder
from compiler.target.request import FootprintAnswer, FootprintTask

# a process varies by pages it happens to touch, always upwards
RUNS = 3
RULE = f"minimum of up to {RUNS} runs"

AGREE_BYTES = 64 << 10
"""Two runs that differ by no more end it: chance adds to both, so that it added next to nothing."""

LARGE_BYTES = 256 << 20
"""From here on one run tells: what a process touches by chance is below a hundredth of it."""
RULE_EMULATED = "maximum of looks at one run and at its end"

MIB = 1 << 20

NO_ORIGINAL = "the target has no float32 build of this model to compare with"

SMALLEST_BYTES = 4 << 20
"""A float model that takes less than this when it runs cannot be told from a process's own variation."""

_PEAK = "peak.json"

_WEAKEST = [Evidence.HOST, Evidence.ESTIMATED]

_HEAD = '<ir_version: 8, opset_import: ["" : 13]> one_node '
_ONE_NODE = {
    "Conv": "(float[1, 16, 8, 8] x, float[16, 16, 3, 3] w) => (float[1, 16, 6, 6] y) { y = Conv(x, w) }",
    "MatMul": "(float[1, 16] x, float[16, 16] w) => (float[1, 16] y) { y = MatMul(x, w) }",
    "Relu": "(float[1, 16] x) => (float[1, 16] y) { y = Relu(x) }",
}
"""The model's heaviest operator alone: a runtime that has never run it has read less of its own code."""

_INPUTS = {"Conv": (1, 16, 8, 8), "MatMul": (1, 16), "Relu": (1, 16)}


def measure_footprint(context: BuildContext, made: UnverifiedCandidate, original: Footprint | None) -> Footprint:
    """Measures an artifact's memory, or takes it from the store.

    Args:
        context: The device.
        made: The artifact.
        original: The float original's memory; None where the artifact is the original, or there is none.

    Raises:
        CompilerError: A full disk, or a bug: a gate that is not judged holds, and neither may make it hold.
    """
    weights, evidence = _weights(made)
    is_emulated, emulate_s = is_foreign(context.job.profile.cpu), context.options.emulate_s
    if reason := why_not_executed(made.built.artifact, is_emulated=is_emulated, emulate_s=emulate_s):
        return Footprint(weights, evidence, None, Evidence.NONE, reason)
    noise = _too_small(original.run_bytes) if original and _is_noise(original.run_bytes) else ""
    process, its_evidence = None, Evidence.NONE
    if not made.points:
        return Footprint(weights, evidence, None, Evidence.NONE, made.unexecuted)
    unexecuted, is_judged = "", made.plan.rule in context.job.plan.candidates
    try:
        if context.job.plan.constraints.limits.memory_mib is not None and is_judged:
            unexecuted = made.unexecuted  # the largest sizes are what the limit is on
            if not unexecuted:
                inputs = made.points[-1].inputs
                process, its_evidence = _least_peak(context, made.built, inputs, full_prompt(context, inputs))
        run, where = (None, Evidence.NONE) if noise else _run_bytes(context, made)
    except (TargetUnavailable, ToolchainFailed) as error:  # no such counter here, or a runtime that fails at it
        return Footprint(weights, evidence, None, Evidence.NONE, error.what.splitlines()[0])
    # two processes differ by chance: a tiny model may come out below the empty one
    least, why = None if run is None else max(0, run), "; ".join(filter(None, (noise, unexecuted)))
    return Footprint(weights, evidence, least, where, why, process_bytes=process, process_evidence=its_evidence)


def unbuilt_footprint(made: UnverifiedCandidate) -> Footprint:
    """Memory of the float original where the target has no build of it: the weights of the rewritten model."""
    float_model = ir.load(made.border.entries[0].files / BORDER)
    return Footprint(measure(float_model).bytes, Evidence.ESTIMATED, None, Evidence.NONE, NO_ORIGINAL)


def as_given(original: Footprint, made: UnverifiedCandidate) -> Footprint:
    """The float original's memory, its weights counted as the model has them where its build made clearly more of them.

    A target may spend memory on speed (transformed weights); that is no memory a lower precision saves.
    """
    model_bytes = unbuilt_footprint(made).weights_bytes
    extra = original.weights_bytes - model_bytes
    # less is headers, alignment and folded constants; transformed weights (Winograd) are a multiple
    if extra <= model_bytes * 0.25 + MIB:
        return original
    run = original.run_bytes and max(0, original.run_bytes - extra)
    return replace(original, weights_bytes=model_bytes, run_bytes=run)


def reference_footprint(made: UnverifiedCandidate, original: Footprint | None) -> Footprint:
    """What the limit on memory of an artifact counts from.

    Args:
        made: The artifact.
        original: Memory of the float original's build; None where the target has none.
    """
    return unbuilt_footprint(made) if original is None else as_given(original, made)


def compare_footprints(original: Footprint, candidate: Footprint) -> dict[GateName, Figure]:
    """The two figures that the memory gates judge: percent less than the float original, negative where it is more."""
    return {
        GateName.MEMORY_WEIGHTS: _weights_saved(original, candidate),
        GateName.MEMORY_RUN: _run_saved(original, candidate),
    }


def process_figure(footprint: Footprint) -> Figure:
    """What the gate on the memory of the whole process judges, in MiB."""
    if footprint.process_bytes is None:
        return Figure(None, Evidence.NONE, RULE, footprint.why)
    rule = RULE_EMULATED if footprint.process_evidence == Evidence.EMULATOR else RULE
    why = "at the largest sizes, the runtime's own memory in it, its mapped libraries not"
    return Figure(footprint.process_bytes / MIB, footprint.process_evidence, rule, why)


def _weights_saved(original: Footprint, candidate: Footprint) -> Figure:
    evidence = max(original.weights_evidence, candidate.weights_evidence, key=_WEAKEST.index)
    value = 100.0 * (1.0 - candidate.weights_bytes / max(1, original.weights_bytes))
    why = "weights of border models stand in for what was not built" if evidence == Evidence.ESTIMATED else ""
    return Figure(value, evidence, "payload bytes", why)


def _run_saved(original: Footprint, candidate: Footprint) -> Figure:
    if _is_noise(original.run_bytes):
        return Figure(None, Evidence.NONE, RULE, _too_small(original.run_bytes))
    if original.run_bytes is None or candidate.run_bytes is None:
        return Figure(None, Evidence.NONE, RULE, original.why or candidate.why)
    rule = RULE_EMULATED if candidate.run_evidence == Evidence.EMULATOR else RULE
    return Figure(100.0 * (1.0 - candidate.run_bytes / original.run_bytes), candidate.run_evidence, rule)


def _is_noise(run_bytes: int | None) -> TypeGuard[int]:
    return run_bytes is not None and run_bytes < SMALLEST_BYTES


def _too_small(run_bytes: int) -> str:
    return f"the float model itself takes {run_bytes / MIB:.1f} MiB, less than can be told from noise"


def _weights(made: UnverifiedCandidate) -> tuple[int, Evidence]:
    artifact = made.built.artifact
    if artifact.deferred:
        return measure(made.border.load()).bytes, Evidence.ESTIMATED
    files = [artifact.root / name for name in artifact.files if name.startswith("payload/")]
    return sum(file.stat().st_size for file in files), Evidence.HOST


def _heaviest(made: UnverifiedCandidate) -> str:
    """The operator of the model that computes most, of those there is a model of one node for; Relu if none does."""
    macs = dict.fromkeys(_ONE_NODE, 0.0)
    for work in list_work(made.border.load()):
        if work.op in macs:
            macs[work.op] += work.macs
    heaviest = max(macs, key=lambda op: macs[op])
    return heaviest if macs[heaviest] else "Relu"


def _one_node(context: BuildContext, op: str) -> Built:
    """The same runtime with next to nothing to run.

    Raises:
        TargetUnavailable: The target does not take the one operator.
    """
    plan = context.job.plan
    rule = next((rule for rule in plan.candidates if rule.name == BASELINE), plan.rule)
    model = _with_weights(ir.from_onnx_text(_HEAD + _ONE_NODE[op]))
    try:
        with scratch_folder() as folder:
            save_model(model, folder / BORDER)
            return build_artifact(
                Border(folder / BORDER, file_digest(folder / BORDER), (), ()),
                settle(plan, rule, "the runtime's own memory is measured with it"),
                context.job.profile,
                context.job.target,
                stages=context.stages,
                child_limits=context.options.child_limits,
            )
    except UnsupportedModel as error:  # of our model of one node, not of the user's model
        what = f"the runtime's own memory cannot be measured: the target takes no model of one {op}"
        raise TargetUnavailable(what) from error


def _with_weights(model: ir.Model) -> ir.Model:
    """The model with its second input, if it has one, as weights."""
    for value in model.graph.inputs[1:]:
        shape = tuple(size for size in value.shape or () if isinstance(size, int))
        value.const_value = ir.tensor(np.ones(shape, np.float32), name=value.name)
        model.graph.register_initializer(value)
        model.graph.inputs.remove(value)
    return model


def _run_bytes(context: BuildContext, made: UnverifiedCandidate) -> tuple[int, Evidence]:
    """What a run takes beyond the runtime itself, in bytes, and where it ran."""
    op = _heaviest(made)
    # what the runtime takes by itself is no merit or fault of a precision
    empty = _one_node(context, op), {"x": np.zeros(_INPUTS[op], np.float32)}
    first, where = peak_bytes(context, made.built, made.typical.inputs)
    least, _ = peak_bytes(context, *empty)
    # an emulated program takes the same each time; nor do more runs tell noise apart
    if where == Evidence.EMULATOR or first - least < SMALLEST_BYTES // 2:
        return first - least, where
    return _least_peak(context, made.built, made.typical.inputs)[0] - _least_peak(context, *empty)[0], where


def full_prompt(context: BuildContext, inputs: Arrays) -> Asked | None:
    """A prompt behind which one token fills a language model's context; None of another model.

    Args:
        context: The device.
        inputs: Of the model, whose tokens it is made of.
    """
    used = context.job.device.generation
    if used is None:
        return None
    tokens = np.resize(inputs[find_decoder(context.ready.model).ids], used.context - 1)
    return Asked(tuple(map(int, tokens)), 2, used.prefill, used.context, ())


def _least_peak(
    context: BuildContext, built: Built, inputs: Arrays, asked: Asked | None = None
) -> tuple[int, Evidence]:
    """Peak bytes of a process that runs an artifact, the least of as many as are needed to tell, and where it ran."""
    least, where = peak_bytes(context, built, inputs, asked=asked)
    if where == Evidence.EMULATOR or least >= LARGE_BYTES:
        return least, where
    for nth in range(2, RUNS + 1):
        peak, _ = peak_bytes(context, built, inputs, nth=nth, asked=asked)
        is_told = abs(peak - least) <= AGREE_BYTES
        least = min(least, peak)
        if is_told:
            break
    return least, where


def peak_bytes(
    context: BuildContext, built: Built, inputs: Arrays, *, nth: int = 1, asked: Asked | None = None
) -> tuple[int, Evidence]:
    """Peak bytes of one process that runs an artifact, the first or another one, and where it ran.

    Args:
        context: The device.
        built: The artifact.
        inputs: What it runs; nothing: it is loaded only.
        nth: Which process of several.
        asked: What a language model answers in place of the run, where its runner keeps the cache inside.
    """
    if is_foreign(context.job.profile.cpu) and (peak := _emulated_peak(context, built, inputs)) is not None:
        return peak, Evidence.EMULATOR
    decoder = find_decoder(context.ready.model) if asked else None
    (answer,) = measure_in_child(
        context,
        StageName.MEMORY,
        FootprintAnswer,
        [(built, inputs)],
        lambda paths: FootprintTask(built.artifact, paths[0], decoder, asked),
        run=nth,
        asked=asdict(asked) if asked else None,
    )
    return answer.peak_bytes, answer.evidence


def _emulated_peak(context: BuildContext, built: Built, inputs: Arrays) -> int | None:
    """Peak bytes of the run that is kept for parity too; None where it is not emulated, or nobody weighs it."""
    stages, options, where = context.stages, context.options, f"{context.name}: {StageName.MEMORY}"
    limits = replace(options.child_limits, timeout_s=min(options.child_limits.timeout_s, options.emulate_s))
    run = emulated_run(built.artifact, built.entry.digest, inputs, where=where, stages=stages, child_limits=limits)
    if not run.peak_bytes:
        return None

    def make(folder: Path) -> None:
        write_result(folder, _PEAK, run.peak_bytes[0])

    # an observation: who builds a second time is given this entry, and not the run's
    entry = stages.run(
        StageName.MEMORY,
        make,
        builds=[built.entry.digest],
        inputs=[arrays_digest(inputs)],
        host=host_fingerprint(),
    )
    return int(read_result(entry, _PEAK))
