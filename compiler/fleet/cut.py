"""The part of the model that is built, where it is not the whole: between values that the fleet file names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from compiler.errors import UsageError

_EXAMPLE = "For example --cut embeddings,logits; leave one side empty for the model's own: --cut embeddings,"


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where the part begins and where it ends; an empty side is the model's own."""

    inputs: Annotated[
        tuple[str, ...],
        Field(description="Values that become the inputs of the part; the model's inputs when absent."),
    ] = ()
    outputs: Annotated[
        tuple[str, ...],
        Field(description="Values that become the outputs of the part; the model's outputs when absent."),
    ] = ()

    def __post_init__(self) -> None:
        if not self.inputs and not self.outputs:
            raise ValueError("must name inputs or outputs")


def parse_cuts(texts: Sequence[str]) -> Cut | None:
    """`INPUT,OUTPUT` of the command line, each given once for each value that there is on the longer side.

    Raises:
        UsageError: A text is no pair of names.
    """
    if not texts:
        return None
    pairs = [text.split(",") for text in texts]
    if any(len(pair) != 2 or not any(pair) for pair in pairs):
        raise UsageError("expected INPUT,OUTPUT", where="--cut", remedy=_EXAMPLE)
    inputs, outputs = (tuple(dict.fromkeys(pair[side] for pair in pairs if pair[side])) for side in (0, 1))
    return Cut(inputs=inputs, outputs=outputs)
