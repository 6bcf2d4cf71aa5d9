"""The child's side of a decoder that answers prompts."""

from __future__ import annotations

from compiler.evaluate.answers import answer
from compiler.target.request import GenerateAnswer, GenerateTask
from compiler.target.target import find_target


def generate(task: GenerateTask) -> GenerateAnswer:
    """Answers prompts, one after another, each from an empty cache."""
    runner = find_target(task.artifact.target).load(task.artifact)
    try:
        replies = [answer(runner.run, task.artifact.inputs, task.decoder, asked=asked) for asked in task.asked]
        return GenerateAnswer(runner.evidence, tuple(replies))
    finally:
        runner.close()
