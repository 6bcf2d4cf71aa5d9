"""What the windows of a convolution read of an image, as runs of bytes that follow each other in memory."""

from __future__ import annotations

from dataclasses import dataclass

from targets.arm_tvm.kernels.integer.specs import ConvSpec

CHUNK_WORDS = 16
"""Words of four inputs that AMX multiplies at a time: one row of a tile."""


@dataclass(frozen=True)
class Runs:
    """For each pixel blocks × rows × taps runs of `words` times four inputs.

    Args:
        blocks: Blocks of channels that are apart.
        rows: Rows of the window.
        taps: Taps of a row that are apart.
        words: Fours of inputs of a run.
    """

    blocks: int
    rows: int
    taps: int
    words: int

    @property
    def total_words(self) -> int:
        """Fours of inputs of a pixel."""
        return self.blocks * self.rows * self.taps * self.words


def runs_of(spec: ConvSpec) -> Runs:
    """The runs of a convolution or matrix product."""
    height, width = spec.kernel
    if spec.source.layout == "pixels":
        # A row's last word is filled up with weights of zero.
        return Runs(1, height, 1, -(-width * spec.source.channels // 4))
    if spec.source.layout == "rows":
        return Runs(1, 1, 1, 4 * spec.source.blocks)
    return Runs(spec.source.blocks, height, *((width, 4) if spec.dilations[1] != 1 else (1, 4 * width)))


def chunk_words(runs: Runs) -> int:
    """The parts of a run that AMX multiplies, all of the same size: as many words as a row has, or fewer."""
    return next(words for words in range(min(CHUNK_WORDS, runs.words), 0, -1) if runs.words % words == 0)
