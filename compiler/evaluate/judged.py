"""The part of a model's outputs that is judged, where all of them are too much to keep."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.errors import DataError
from compiler.model.numerics import Array, Arrays


@dataclass(frozen=True)
class OutputPart:
    """One output, and the last rows of it.

    Args:
        name: The only output that is kept.
        last: Rows of its second axis that are kept, from the end.
    """

    name: str
    last: int

    def of(self, outputs: Arrays) -> dict[str, Array]:
        """That part; raises DataError where there is no such output."""
        if self.name not in outputs:
            raise DataError(f"the model has no output '{self.name}'", where="evaluation")
        return {self.name: np.ascontiguousarray(outputs[self.name][:, -self.last :])}
