"""The page: a build's rows, words and figures through the templates; no script, nothing from the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from compiler.artifact.report import plots, saliency, words
from compiler.artifact.report.production import Comparison
from compiler.artifact.report.read import Build
from compiler.artifact.report.rows import Row, rows_of
from compiler.artifact.report.texts import TextRow, text_rows
from compiler.artifact.schema import ModelFile, PassFacts, gate_text

MIB = 1 << 20


@dataclass(frozen=True)
class Section:
    """One device's part of the page: its row, its words, its figures as SVG text (empty where there is nothing), and
    what is measured in production beside it (none where nobody gave metrics)."""

    row: Row
    anchor: str
    decision: str
    others: tuple[str, ...]
    proofs: tuple[words.Proof, ...]
    speed_plot: str
    size_plot: str
    memory_plot: str
    layers_plot: str
    tuning_plot: str
    production: tuple[Comparison, ...]
    texts: tuple[TextRow, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Of a language model's weights in few bits."""
        manifest = self.row.device.manifest
        spoken = manifest.generation if manifest else None
        return sum(weight.bytes for weight in spoken.weights) if spoken else 0


def render_page(
    build: Build, previous: Build | None = None, production: Mapping[str, tuple[Comparison, ...]] | None = None
) -> str:
    """A build as one HTML page; `production` has what a server counted, for each device that there are metrics of."""
    rows, compared = rows_of(build, previous), production or {}
    sections = [
        _section(row, f"device-{number}", compared.get(row.device.name, ())) for number, row in enumerate(rows, 1)
    ]
    page = _templates().get_template("report.html")
    seen = words.evidence_texts([section.row for section in sections])
    return page.render(
        build=build, previous=previous, sections=sections, seen=seen, evidence=words.EVIDENCE, model=_model(sections)
    )


def _section(row: Row, anchor: str, production: tuple[Comparison, ...]) -> Section:
    device, searched = row.device, row.device.searched
    return Section(
        row=row,
        anchor=anchor,
        decision=words.decision_text(row),
        others=words.others_text(device),
        proofs=words.proofs(device),
        speed_plot=plots.speed_plot(searched, device.name) if searched else "",
        size_plot=plots.size_plot(searched, device.name) if searched else "",
        memory_plot=plots.memory_plot(searched, device.name) if searched else "",
        layers_plot=plots.layers_plot(searched.layers, device.name) if searched else "",
        tuning_plot=plots.tuning_plot(device.measurements.tuning, device.name),
        production=production,
        texts=text_rows(device),
    )


def _model(sections: Sequence[Section]) -> ModelFile | None:
    """What a manifest says of the model that was read; None where no device was delivered."""
    manifests = (section.row.device.manifest for section in sections)
    return next((manifest.inputs.model for manifest in manifests if manifest), None)


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("compiler.artifact.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "mib": lambda size: "–" if size is None else f"{size / MIB:.1f}",
        "count": lambda number: "unknown" if number is None else f"{number:,}".replace(",", "\u202f"),
        "gate": gate_text,
        "difference": _difference,
        "strips": saliency.strips,
    }
    environment.filters |= filters
    return environment


def _difference(record: PassFacts) -> str:
    if record.largest_difference is None:
        return record.not_measured if record.modified else "unchanged"
    return f"{float(record.largest_difference):.3g}"
