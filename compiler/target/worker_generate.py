"""The child's side of a decoder that answers prompts."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.evaluate.answers import Answered, Asked, FedBack, Following, answer
from compiler.model.decoder import Decoder
from compiler.model.spec import TensorSpec
from compiler.target.request import GenerateAnswer, GenerateTask
from compiler.target.runner import AnswersPrompts, KeepsCache, Runner
from compiler.target.target import find_target


def generate(task: GenerateTask) -> GenerateAnswer:
    """Answers prompts, one after another, each from an empty cache."""
    runner = find_target(task.artifact.target).load(task.artifact)
    try:
        replies = [_answered(runner, task, asked) for asked in task.asked]
        return GenerateAnswer(runner.evidence, tuple(replies))
    finally:
        runner.close()


def _answered(runner: Runner, task: GenerateTask, asked: Asked) -> Answered:
    if isinstance(runner, AnswersPrompts):
        return runner.answer(asked)
    inputs = task.artifact.inputs
    kept = begin(runner, inputs, task.decoder) if isinstance(runner, KeepsCache) else None
    return answer(kept or FedBack(runner.run, inputs, task.decoder), asked)


def begin(runner: KeepsCache, inputs: Sequence[TensorSpec], decoder: Decoder) -> Following:
    """A conversation with a runner that keeps its cache."""
    runner.forget()
    return Following(runner.follow, inputs, decoder)
