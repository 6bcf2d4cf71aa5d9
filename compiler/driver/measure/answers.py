"""A delivered language model as its user sees it: prompts that it answers, beside the given model's answers; memory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from compiler.artifact import Evidence
from compiler.artifact.adapter import parse, to_json
from compiler.artifact.schema import GenerationFacts, ProcessMemory, PromptAnswers, WeightFacts
from compiler.compress.threads import in_parallel
from compiler.driver.measure.child import measure_in_child
from compiler.driver.measure.memory import RUNS
from compiler.driver.stages.candidate import BuiltCandidate
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.weights import read_weights
from compiler.errors import TargetUnavailable, ToolchainFailed
from compiler.evaluate.answers import Answered, Asked, FedBack, Prompts, answer
from compiler.evaluate.text import empty_cache, token_inputs
from compiler.model.decoder import Decoder, find_decoder
from compiler.model.frontend import describe_inputs
from compiler.model.numerics import Arrays
from compiler.model.reference import Unoptimized
from compiler.store import StageName, read_result, write_result
from compiler.target.request import FootprintAnswer, FootprintTask, GenerateAnswer, GenerateTask

_ANSWERS = "answers.json"
_AT_ONCE = 4
"""Prompts that the given model answers side by side; nobody times it."""


def describe_generation(context: BuildContext, made: BuiltCandidate) -> GenerationFacts | None:
    """What is seen of a language model; None of another model."""
    used, prompts = context.job.device.generation, context.data.prompts
    if used is None:
        return None
    decoder, asked = find_decoder(context.ready.model), prompts.asked if prompts else ()
    replies, evidence = _by_build(context, made, decoder, asked)
    originals = _by_original(context, decoder, asked) if replies else ()
    return GenerationFacts(
        context=used.context,
        prefill=used.prefill,
        decoder=decoder,
        memory=_memory(context, made, decoder),
        tokens_per_s=_rate([ms for reply in replies for ms in reply.token_ms]),
        prompt_tokens_per_s=_prompt_rate(asked, replies),
        evidence=evidence,
        answers=_side_by_side(prompts, originals, replies) if prompts and replies else (),
        weights=tuple(
            WeightFacts(row.name, str(row.format), row.format.bits, row.format.block, row.bytes, row.kl, row.reason)
            for row in read_weights(made.border.entries)
        ),
    )


def _by_build(
    context: BuildContext, made: BuiltCandidate, decoder: Decoder, asked: tuple[Asked, ...]
) -> tuple[tuple[Answered, ...], Evidence]:
    """The build's answers, timed while nothing else runs; none where it does not run on this machine itself."""
    if not asked or made.verdict.evidence != Evidence.HOST:
        return (), Evidence.NONE
    artifact = made.built.artifact
    (reply,) = measure_in_child(
        context,
        StageName.ANSWERS,
        GenerateAnswer,
        [(made.built, {})],
        lambda _: GenerateTask(artifact, decoder, asked),
        asked=[asdict(one) for one in asked],
    )
    return reply.answers, reply.evidence


def _by_original(context: BuildContext, decoder: Decoder, asked: tuple[Asked, ...]) -> tuple[Answered, ...]:
    """The given model's answers, by the reference."""
    model, digest = context.ready.model, context.ready.digest

    def make(folder: Path) -> None:
        run, inputs = Unoptimized(model).run, describe_inputs(model)
        # a few at a time: each step makes the head's weights anew where they are a table turned round
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
    if made.verdict.evidence != Evidence.HOST:
        return ProcessMemory(None, None, None, Evidence.NONE, made.verdict.reason or "it was not executed here")
    full = made.points[-1].inputs
    specs = made.built.artifact.inputs
    ids = full[decoder.ids].astype(np.int64)
    first = {**token_inputs(ids, 0, specs, decoder), **empty_cache(specs, decoder)}
    try:
        load, prefill, last = (_peak(context, made, inputs) for inputs in ({}, first, full))
    except (TargetUnavailable, ToolchainFailed) as error:
        return ProcessMemory(None, None, None, Evidence.NONE, error.what.splitlines()[0])
    return ProcessMemory(load, prefill, last, Evidence.HOST)


def _peak(context: BuildContext, made: BuiltCandidate, inputs: Arrays) -> int:
    """The least of some runs, as the gate on memory takes it."""
    artifact = made.built.artifact
    answers = measure_in_child(
        context,
        StageName.MEMORY,
        FootprintAnswer,
        [(made.built, inputs)],
        lambda paths: FootprintTask(artifact, paths[0]),
        times=RUNS,
    )
    return min(answer.peak_bytes for answer in answers)
