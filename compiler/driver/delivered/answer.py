"""A delivered language model answers a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.artifact import Evidence
from compiler.artifact.manifest import BORDER, read_artifact
from compiler.driver.delivered.operate import complete
from compiler.errors import DataError
from compiler.evaluate.answers import Answered, Asked
from compiler.evaluate.text import encode, open_tokenizer, special_tokens
from compiler.model.decoder import find_decoder
from compiler.store.scratch import scratch_folder
from compiler.target.isolate import ChildLimits
from compiler.target.request import GenerateAnswer, GenerateTask, ask


@dataclass(frozen=True)
class Reply:
    """An answer, and what it took.

    Args:
        text: The answer.
        answer: Its tokens and times.
        evidence: Where it was computed.
    """

    text: str
    answer: Answered
    evidence: Evidence

    @property
    def tokens_per_s(self) -> float:
        """Of the tokens behind the first, by the median time; 0 where there are none."""
        times = self.answer.token_ms
        return 1e3 / float(np.median(times)) if times else 0.0


def answer_prompt(
    folder: Path, prompt: str, *, tokenizer: Path | None, tokens: int, child_limits: ChildLimits
) -> Reply:
    """Has an artifact answer a prompt, each time with the most probable token, up to a special one.

    Args:
        folder: The artifact's folder.
        prompt: The text; token ids where there is no tokenizer.
        tokenizer: The model's `tokenizer.json`; None reads and writes token ids.
        tokens: Most tokens of the answer.
        child_limits: What the child process may use.

    Raises:
        ArtifactError: The folder is not whole, or the artifact is deferred.
        UnsupportedModel: It is no decoder language model.
        DataError: The prompt is empty, or longer than the context.
        TargetUnavailable: It cannot run here, or the tokenizers package is not installed.
    """
    delivered = read_artifact(folder)
    artifact = complete(delivered)
    decoder = find_decoder(ir.load(delivered.folder / BORDER))
    codec = open_tokenizer(tokenizer)
    ids = encode(codec, prompt)
    if decoder.vocabulary and ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < decoder.vocabulary:
        raise DataError(
            f"the prompt has ids from {ids.min()} to {ids.max()}, and the model has {decoder.vocabulary} tokens",
            where="--prompt",
            remedy="Take the tokenizer that the model was trained with.",
        )
    sizes = delivered.manifest.plan.dims
    context = sizes[decoder.past].max + 1 if decoder.past in sizes else len(ids) + tokens
    if not 0 < len(ids) < context:
        raise DataError(
            f"the prompt has {len(ids)} tokens, and may have 1 to {context - 1}",
            where="--prompt",
            remedy="The context is `generation: {context: …}` of the fleet file.",
        )
    asked = Asked(
        prompt=tuple(map(int, ids)),
        tokens=tokens,
        prefill=sizes[decoder.sequence].max if decoder.sequence in sizes else 1,
        context=context,
        stop=special_tokens(codec),
    )
    task = GenerateTask(artifact, decoder, (asked,))
    with scratch_folder() as scratch:
        answer = ask(task, GenerateAnswer, folder=scratch, child_limits=child_limits, where=str(folder))
    (reply,) = answer.answers
    return Reply(codec.decode(list(reply.tokens)), reply, answer.evidence)
