"""A language model's figures on each text that judged it, as the report's table shows them."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.artifact.report.read import Device
from compiler.artifact.report.rows import chosen_trial
from compiler.artifact.schema import AccuracyDrop, TextScore

_DIVERGENCE, _AGREEMENT, _PERPLEXITY = "KL in nats a token", "same top token in %", "perplexity"


@dataclass(frozen=True)
class TextRow:
    """One text; figures as text, with their intervals."""

    origin: str
    sha256: str
    before: str
    after: str
    more: str
    divergence: str
    agreement: str


def text_rows(device: Device) -> tuple[TextRow, ...]:
    """A row for each text that chose nothing; none of other models."""
    trial = chosen_trial(device)
    certified = trial.certified if trial else None
    return tuple(map(_row, certified.texts)) if certified else ()


def _row(text: TextScore) -> TextRow:
    drop = text.drop
    return TextRow(
        origin=text.origin,
        sha256=text.sha256,
        before=_figure(drop.reference.details.get(_PERPLEXITY), places=2),
        after=_figure(drop.candidate.details.get(_PERPLEXITY), places=2),
        more=_with_ends((drop.drop_pct, drop.low_pct, drop.high_pct), places=2),
        divergence=_detail(drop, _DIVERGENCE, places=4),
        agreement=_detail(drop, _AGREEMENT, places=1),
    )


def _detail(drop: AccuracyDrop, name: str, *, places: int) -> str:
    details = drop.candidate.details
    return _with_ends((details.get(name), details.get(f"{name}, low"), details.get(f"{name}, high")), places=places)


def _with_ends(figures: tuple[float | None, float | None, float | None], *, places: int) -> str:
    value, low, high = figures
    ends = "" if low is None or high is None else f" ({low:.{places}f} to {high:.{places}f})"
    return _figure(value, places=places) + ends


def _figure(value: float | None, *, places: int) -> str:
    return "–" if value is None else f"{value:.{places}f}"
