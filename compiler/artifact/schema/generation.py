"""What was seen of a delivered language model: its memory, its speed, its weights, and prompts that it answered."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import FiniteFloat

from compiler.artifact.adapter import Number
from compiler.artifact.artifact import Evidence
from compiler.model.decoder import Decoder


@dataclass(frozen=True)
class WeightFacts:
    """The format of one weight.

    Args:
        name: The initializer's.
        format: Bits and blocks in words.
        bits: Of one number.
        block: Inputs that share a scale; 0 where all of a row do.
        bytes: Numbers, scales and zero points.
        kl: Divergence of the answers that it is expected to cause, in nats a token.
        reason: Why this format.
    """

    name: str
    format: str
    bits: int
    block: int
    bytes: int
    kl: FiniteFloat
    reason: str


@dataclass(frozen=True)
class PromptAnswers:
    """One prompt, answered by the given model and by the build, each time with the most probable token.

    Args:
        prompt: The prompt.
        original: The given model's answer.
        build: The build's.
        tokens: Tokens of the given model's answer.
        same_tokens: Tokens before the two first differ.
    """

    prompt: str
    original: str
    build: str
    tokens: int
    same_tokens: int


@dataclass(frozen=True)
class ProcessMemory:
    """Peak memory of the running process in bytes; None where nobody could measure it.

    Args:
        load: With the model opened.
        prefill: With a prompt of `prefill` tokens behind an empty cache.
        full: With the last `prefill` tokens behind a full cache.
        evidence: Where it ran.
        why: Why there is no such figure.
    """

    load: int | None
    prefill: int | None
    full: int | None
    evidence: Evidence
    why: str = ""


@dataclass(frozen=True)
class GenerationFacts:
    """What was seen of a delivered language model.

    Args:
        context: Tokens of prompt and answer together.
        prefill: Tokens of a prompt that are read at once.
        decoder: What the model's inputs and outputs mean.
        memory: Of the running process.
        tokens_per_s: Answered tokens behind the first of each answer, by the median time; None where nothing ran.
        prompt_tokens_per_s: Tokens of prompts, all together; None where nothing ran.
        evidence: Where the prompts were answered.
        answers: Of each prompt; none where the fleet file names no prompts.
        weights: The format of each weight; none where they are not in few bits.
        note: What answered, and why, where that is not the build's own program on this machine.
        speed_evidence: Where the speed is from; None: from the answers.
        speed_note: How it was reckoned, where it is no time that was measured.
    """

    context: int
    prefill: int
    decoder: Decoder
    memory: ProcessMemory
    tokens_per_s: Number
    prompt_tokens_per_s: Number
    evidence: Evidence
    answers: tuple[PromptAnswers, ...] = ()
    weights: tuple[WeightFacts, ...] = ()
    note: str = ""
    speed_evidence: Evidence | None = None
    speed_note: str = ""

    @property
    def same_tokens_pct(self) -> float | None:
        """Of the given model's tokens, those before an answer first differs; None where no prompt was answered."""
        total = sum(answer.tokens for answer in self.answers)
        return 100.0 * sum(answer.same_tokens for answer in self.answers) / total if total else None
