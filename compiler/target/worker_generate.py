"""The child's side of a decoder that answers prompts."""

from __future__ import annotations

from compiler.evaluate.answers import Answered, Asked, Conversation, FedBack, Following, answer
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
    return runner.answer(asked) if isinstance(runner, AnswersPrompts) else answer(_begun(runner, task), asked)


def _begun(runner: Runner, task: GenerateTask) -> Conversation:
    if isinstance(runner, KeepsCache):
        runner.forget()
        return Following(runner.follow, task.artifact.inputs, task.decoder)
    return FedBack(runner.run, task.artifact.inputs, task.decoder)
