"""What was decided for each weight, why, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.target.scheme import BlockFormat


@dataclass(frozen=True)
class WeightChoice:
    """The format of one weight.

    Args:
        name: The initializer's.
        node: Name of the first node that reads it.
        op: That node's operator.
        format: Bits and blocks.
        bytes: Weights, scales and zero points.
        kl: Divergence of the model's answers that it is expected to cause, in nats a token.
        reason: Why this format.
    """

    name: str
    node: str
    op: str
    format: BlockFormat
    bytes: int
    kl: float
    reason: str


@dataclass(frozen=True)
class WeightPlan:
    """All choices.

    Args:
        scheme: Name of the scheme.
        budget_bytes: What all weights of the model may take; None where nothing limits them.
        other_bytes: Of weights that stay in float.
        choices: In the order of the graph.
        kl: Expected divergence of all of them together, in nats a token.
        least_bytes: What all weights of the model take in their smallest formats.
        time: Of all products, against that of all weights in the fastest format; 0 where nothing is known of it.
    """

    scheme: str
    budget_bytes: int | None
    other_bytes: int
    choices: tuple[WeightChoice, ...]
    kl: float
    least_bytes: int
    time: float = 0.0

    @property
    def bytes(self) -> int:
        """Of all weights."""
        return self.other_bytes + sum(choice.bytes for choice in self.choices)

    @property
    def formats(self) -> dict[str, BlockFormat]:
        """Weight → its format."""
        return {choice.name: choice.format for choice in self.choices}

    def __str__(self) -> str:
        limit = f" of {self.budget_bytes / 1e6:.1f}" if self.budget_bytes else ""
        lines = [f"{self.scheme}: {self.bytes / 1e6:.1f}{limit} MB, expected divergence {self.kl:.3g} nats a token"]
        lines += [f"  {c.name}: {c.format}, {c.bytes} bytes, {c.kl:.2g}: {c.reason}" for c in self.choices]
        return "\n".join(lines)
