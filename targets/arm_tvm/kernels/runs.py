"""What the windows of a convolution read of an image: runs of words that follow each other in memory."""

from __future__ import annotations

from dataclasses import dataclass

CHUNK_WORDS = 16
"""Words of four bytes that AMX multiplies at a time: one row of a tile."""


@dataclass(frozen=True)
class Runs:
    """For each pixel blocks × rows × taps runs of `words` words of four bytes: four inputs of int8, or two of bfloat16.

    Args:
        blocks: Blocks of channels that are apart.
        rows: Rows of the window.
        taps: Taps of a row that are apart.
        words: Words of a run.
    """

    blocks: int
    rows: int
    taps: int
    words: int

    @property
    def total_words(self) -> int:
        """Words of a pixel."""
        return self.blocks * self.rows * self.taps * self.words


def chunk_words(runs: Runs) -> int:
    """The parts of a run that AMX multiplies, all of the same size: as many words as a row has, or fewer."""
    return next(words for words in range(min(CHUNK_WORDS, runs.words), 0, -1) if runs.words % words == 0)
