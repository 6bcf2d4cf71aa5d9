"""What a fleet file says of data: what to calibrate with, how accuracy is judged, how pictures become inputs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

Rule: TypeAlias = Literal["auto", "point", "bound"]
CacheFormat: TypeAlias = Literal["float32", "int8"]
Color: TypeAlias = Literal["rgb", "bgr", "gray"]
Fit: TypeAlias = Literal["stretch", "crop", "pad"]
Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_Side: TypeAlias = Annotated[int, Field(ge=1, le=16384)]
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_function(text: str) -> bool:
    """Whether text is `module:function`, a function of the user's own."""
    return bool(_FUNCTION.fullmatch(text))


GENERATION = "generation"
"""The task of decoder language models: text, judged by its perplexity."""

TASKS = ("verification", "classification", "embedding", GENERATION)


def _known_task(name: str) -> str:
    if name not in TASKS and not is_function(name):
        raise ValueError(f"must be {', '.join(TASKS)}, or module:function")
    return name


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Sample inputs: arrays, a folder of arrays or pictures, or a function that gives them."""

    path: Annotated[
        Path,
        Field(
            description="A .npz or .npy file, a folder of them or of pictures, or `module:function`; of a language "
            "model a text, or a .npy of token ids; relative."
        ),
    ]
    samples: Annotated[int | None, Field(ge=1, description="Number of samples to use; all when absent.")] = None
    tokenizer: Annotated[
        Path | None,
        Field(description="A language model's `tokenizer.json` for a text; the evaluation's own when absent."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The task a build's accuracy is judged by, and its data."""

    task: Annotated[
        str,
        AfterValidator(_known_task),
        Field(
            description="`verification`, `classification`, `embedding`, `generation`, or a metric of your own as "
            "`module:function`."
        ),
    ]
    path: Annotated[
        Path,
        Field(
            description="Labelled data: a folder of pictures per class or person, a file of pairs, a .npz with "
            "`labels`, or `module:function`; for generation a text, or a .npy of token ids; relative."
        ),
    ]
    images: Annotated[
        Path | None, Field(description="The folder that a file of pairs names pictures in; the file's own when absent.")
    ] = None
    samples: Annotated[int | None, Field(ge=1, description="Number of samples to use; all when absent.")] = None
    output: Annotated[
        str | None, Field(description="The model's output that is judged; needed where it has several.")
    ] = None
    far: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...],
        Field(
            min_length=1,
            description="verification: shares of false accepts; limits hold for the first (default 0.001).",
        ),
    ] = (1e-3,)
    classes: Annotated[
        Path | None,
        Field(
            description="classification: a text file of class names in the order of the model's outputs, one a line."
        ),
    ] = None
    tokenizer: Annotated[
        Path | None, Field(description="generation: the `tokenizer.json` of a text; token ids need none.")
    ] = None
    other: Annotated[
        Path | None,
        Field(
            description="generation: a text of another domain, or a .npy of token ids, that chooses nothing: what is "
            "delivered holds the limit on it, too."
        ),
    ] = None
    prompts: Annotated[
        Path | None,
        Field(
            description="generation: a JSON list of prompts; the report shows the given model's answers beside the "
            "build's."
        ),
    ] = None
    rule: Annotated[
        Rule,
        Field(
            description="What the accuracy limit judges: the measured drop (`point`), or the upper end of its 95 % "
            "interval (`bound`); `auto` takes the bound where one decision weighs more than half of the limit."
        ),
    ] = "auto"
    pictures: Annotated[
        bool,
        Field(
            description="Whether manifest and report keep three shrunk pictures of the data beside saliency figures "
            "(default true)."
        ),
    ] = True

    def __post_init__(self) -> None:
        if self.task != GENERATION and (self.other is not None or self.prompts is not None):
            raise ValueError("other and prompts are of task: generation")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How a decoder language model is used: the sizes of its cache and of a prompt's parts."""

    context: Annotated[int, Field(ge=2, description="Tokens of prompt and answer together.")]
    prefill: Annotated[
        int, Field(ge=2, description="Tokens of a prompt that are computed at once; also of a window that is judged.")
    ] = 256
    cache: Annotated[
        CacheFormat,
        Field(
            description="How keys and values are kept: `float32`, or `int8` with a factor for each head and token, in "
            "about a quarter of the memory, by targets that write the cache themselves."
        ),
    ] = "float32"

    def __post_init__(self) -> None:
        if self.prefill > self.context:
            raise ValueError(f"prefill is {self.prefill}, and must not be above context, {self.context}")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a picture becomes an input: margin, resize, colour, then (value / scale − mean) / std."""

    size: Annotated[tuple[_Side, _Side] | None, Field(description="Height and width; the model's own when absent.")] = (
        None
    )
    margin_pct: Annotated[
        float,
        Field(gt=-50, le=100, description="Black margin on each side, in percent of it; below 0 cuts that much off."),
    ] = 0.0
    fit: Annotated[
        Fit,
        Field(
            description="Pictures of other proportions are stretched, or scaled and cut (`crop`) or filled up with "
            "black (`pad`)."
        ),
    ] = "stretch"
    interpolation: Annotated[Interpolation, Field(description="How pictures are resized.")] = "bilinear"
    color: Annotated[Color, Field(description="Order of the channels.")] = "rgb"
    scale: Annotated[float, Field(gt=0, description="Values, 0 to 255, are divided by this.")] = 1.0
    mean: Annotated[
        tuple[float, ...], Field(max_length=3, description="Subtracted after dividing: one number, or one per channel.")
    ] = ()
    std: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...],
        Field(max_length=3, description="Divided by at last: one number, or one per channel."),
    ] = ()

    def __post_init__(self) -> None:
        channels = 1 if self.color == "gray" else 3
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 1, channels):
                raise ValueError(f"{name} must hold one number, or {channels} for {self.color}")
