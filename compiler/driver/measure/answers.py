"""A delivered language model as its user sees it: prompts that it answers, beside the given model's answers; memory."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.artifact import Evidence
from compiler.artifact.adapter import parse, to_json
from compiler.artifact.schema import GenerationFacts, ProcessMemory, PromptAnswers, WeightFacts
from compiler.compress.threads import in_parallel
from compiler.driver.measure.child import measure_in_child
from compiler.driver.measure.memory import RUNS, full_prompt, peak_bytes
from compiler.driver.measure.speed import INSTRUCTIONS_PER_CYCLE
from compiler.driver.stages.candidate import BuiltCandidate, is_foreign
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.emulation import reckon
from compiler.driver.stages.weights import read_weights
from compiler.errors import TargetUnavailable, ToolchainFailed
from compiler.evaluate.answers import Answered, Asked, FedBack, Prompts, answer
from compiler.evaluate.text import empty_cache, token_inputs
from compiler.fleet.profile import HardwareProfile
from compiler.model.decoder import Decoder, find_decoder
from compiler.model.frontend import describe_inputs
from compiler.model.numerics import Arrays
from compiler.model.reference import Unoptimized
from compiler.store import StageName, read_result, write_result
from compiler.target.request import GenerateAnswer, GenerateTask

_ANSWERS = "answers.json"
_AT_ONCE = 4
"""Prompts that the given model answers side by side; nobody times it."""


@dataclass(frozen=True)
class _Replies:
    """Answers of a build.

    Args:
        answers: In the order of the prompts; none where nothing that stands for the build could answer.
        evidence: Where they were made.
        note: What answered, where it is not the build's own program on this machine.
    """

    answers: tuple[Answered, ...] = ()
    evidence: Evidence = Evidence.NONE
    note: str = ""


def describe_generation(context: BuildContext, made: BuiltCandidate) -> GenerationFacts | None:
    """What is seen of a language model; None of another model."""
    used, prompts = context.job.device.generation, context.data.prompts
    if used is None:
        return None
    decoder, asked = find_decoder(context.ready.model), prompts.asked if prompts else ()
    replies = _by_build(context, made, decoder, asked)
    originals = _by_model(context, context.ready.model, context.ready.digest, asked) if replies.answers else ()
    is_timed = replies.evidence == Evidence.HOST and not replies.note
    rate, why = (_rate([ms for reply in replies.answers for ms in reply.token_ms]), "") if is_timed else (None, "")
    if rate is None:
        rate, why = estimated_rate(context.job.profile, made)
    return GenerationFacts(
        context=used.context,
        prefill=used.prefill,
        decoder=decoder,
        memory=_memory(context, made, decoder),
        tokens_per_s=rate,
        prompt_tokens_per_s=_prompt_rate(asked, replies.answers) if is_timed else None,
        evidence=replies.evidence,
        answers=_side_by_side(prompts, originals, replies.answers) if prompts and replies.answers else (),
        weights=tuple(
            WeightFacts(row.name, str(row.format), row.format.bits, row.format.block, row.bytes, row.kl, row.reason)
            for row in read_weights(made.border.entries)
        ),
        note=replies.note,
        speed_evidence=Evidence.ESTIMATED if why else None,
        speed_note=why,
    )


def estimated_rate(profile: HardwareProfile, made: BuiltCandidate) -> tuple[float | None, str]:
    """Tokens per second by the instructions that an emulator counted of one, and how that was reckoned.

    Args:
        profile: The device.
        made: The build.

    Returns:
        None, and nothing, where nothing was counted or the profile says too little.
    """
    count, cpu, bandwidth = made.verdict.instructions, profile.cpu, profile.memory_bandwidth_gbps
    if not count or cpu is None or not cpu.clock_mhz or not bandwidth:
        return None, ""
    artifact = made.built.artifact
    payload = sum((artifact.root / name).stat().st_size for name in artifact.files if name.startswith("payload/"))
    seconds = count / (cpu.clock_mhz * 1e6 * INSTRUCTIONS_PER_CYCLE) + payload / (bandwidth * 1e9)
    words = (
        f"{count / 1e6:.1f} M instructions of one token ({made.typical.label}), {INSTRUCTIONS_PER_CYCLE:g} a cycle of "
        f"one core assumed, and {payload / 1e6:.1f} MB of weights read at {bandwidth:g} GB/s, one after the other"
    )
    return 1 / seconds, words


def _by_build(context: BuildContext, made: BuiltCandidate, decoder: Decoder, asked: tuple[Asked, ...]) -> _Replies:
    """The build's answers; none where neither it nor its border model is asked.

    On this machine itself they are timed while nothing else runs.
    """
    if asked and made.verdict.evidence == Evidence.HOST:
        reply = _ask(context, made, decoder, asked)
        return _Replies(reply.answers, reply.evidence)
    is_emulated = is_foreign(context.job.profile.cpu) and not made.built.artifact.deferred
    return _by_emulator(context, made, decoder, asked) if asked and is_emulated else _Replies()


def _ask(context: BuildContext, made: BuiltCandidate, decoder: Decoder, asked: tuple[Asked, ...]) -> GenerateAnswer:
    artifact = made.built.artifact
    (reply,) = measure_in_child(
        context,
        StageName.ANSWERS,
        GenerateAnswer,
        [(made.built, {})],
        lambda _: GenerateTask(artifact, decoder, asked),
        is_alone=made.verdict.evidence == Evidence.HOST,
        asked=[asdict(one) for one in asked],
    )
    return reply


def _by_emulator(context: BuildContext, made: BuiltCandidate, decoder: Decoder, asked: tuple[Asked, ...]) -> _Replies:
    """Answers of the program in the emulator, as many as end in its time; those of the border model to the others.

    Each is kept by itself: one that takes too long takes nothing from those before it.
    """
    border, answers, left_s = made.border.load(), list[Answered](), context.options.emulate_s
    token_s = reckon(border, made.typical.inputs)[0] if made.points else math.inf
    if made.verdict.evidence == Evidence.EMULATOR:
        for one in asked:
            left_s -= token_s * (len(one.prompt) + one.tokens)
            if left_s < 0:
                break
            try:
                answers += _ask(context, made, decoder, (one,)).answers
            except (TargetUnavailable, ToolchainFailed) as error:
                context.clock.note(f"a prompt is answered by the border model: {error.what.splitlines()[0]}")
                break
    count, rest = len(answers), asked[len(answers) :]
    answers += _by_model(context, border, made.border.digest, rest) if rest else ()
    evidence = Evidence.EMULATOR if count else Evidence.HOST
    parts = [f"{count} answered by its program in the emulator"] if count else []
    parts += [f"{len(rest)} by the border model in ONNX Runtime, since the emulator takes too long"] if rest else []
    return _Replies(tuple(answers), evidence, ", ".join(parts))


def _by_model(context: BuildContext, model: ir.Model, digest: str, asked: tuple[Asked, ...]) -> tuple[Answered, ...]:
    """A model's answers, by the reference."""

    def make(folder: Path) -> None:
        run, inputs, decoder = Unoptimized(model).run, describe_inputs(model), find_decoder(model)
        replies = in_parallel(lambda one: answer(FedBack(run, inputs, decoder), one), asked, most=_AT_ONCE)
        write_result(folder, _ANSWERS, [to_json(reply) for reply in replies])

    entry = context.stages.run(StageName.ANSWERS, make, model=digest, asked=[asdict(one) for one in asked])
    return tuple(parse(Answered, row) for row in read_result(entry, _ANSWERS))


def _side_by_side(
    prompts: Prompts, originals: tuple[Answered, ...], replies: tuple[Answered, ...]
) -> tuple[PromptAnswers, ...]:
    rows = zip(prompts.texts, originals, replies, strict=True)
    decode = prompts.tokenizer.decode
    return tuple(
        PromptAnswers(
            text,
            decode(list(original.tokens)),
            decode(list(build.tokens)),
            len(original.tokens),
            _same_tokens(original.tokens, build.tokens),
        )
        for text, original, build in rows
    )


def _same_tokens(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Tokens before two answers first differ."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


def _rate(times_ms: list[float]) -> float | None:
    return 1e3 / float(np.median(times_ms)) if times_ms else None


def _prompt_rate(asked: tuple[Asked, ...], replies: tuple[Answered, ...]) -> float | None:
    if not replies:
        return None
    return 1e3 * sum(len(one.prompt) for one in asked) / sum(reply.prompt_ms for reply in replies)


def _memory(context: BuildContext, made: BuiltCandidate, decoder: Decoder) -> ProcessMemory:
    """Peak memory with the model opened, behind an empty cache, and behind a full one."""
    is_whole = not made.left_out and len(made.verdict.parity.points) == len(made.points)
    if made.verdict.evidence == Evidence.EMULATOR and is_whole:
        peak, evidence = peak_bytes(context, made.built, made.points[-1].inputs)
        return ProcessMemory(None, None, peak, evidence, "the emulator runs the largest sizes alone")
    if made.verdict.evidence != Evidence.HOST:
        return ProcessMemory(None, None, None, Evidence.NONE, made.verdict.reason or "it was not executed here")
    full = made.points[-1].inputs
    specs, asked = made.built.artifact.inputs, full_prompt(context, full)
    ids = full[decoder.ids].astype(np.int64)
    first = {**token_inputs(ids, 0, specs, decoder), **empty_cache(specs, decoder)}
    part = replace(asked, prompt=asked.prompt[: asked.prefill], tokens=1) if asked else None
    try:
        load, prefill, last = (_peak(context, made, *run) for run in (({}, None), (first, part), (full, asked)))
    except (TargetUnavailable, ToolchainFailed) as error:
        return ProcessMemory(None, None, None, Evidence.NONE, error.what.splitlines()[0])
    return ProcessMemory(load, prefill, last, Evidence.HOST)


def _peak(context: BuildContext, made: BuiltCandidate, inputs: Arrays, asked: Asked | None) -> int:
    """The least of some runs, as the gate on memory takes it."""
    return min(peak_bytes(context, made.built, inputs, nth=nth, asked=asked)[0] for nth in range(1, RUNS + 1))
