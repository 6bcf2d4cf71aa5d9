"""The report's figures: trials by accuracy against speed and size, and layers by time, error and precision."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from compiler.manifest_shape import Layer, Searched, Trial
from compiler.report.drawing import BAD, GOOD, INK, LINE, MUTED, drawing, precision_color, svg_of

MIB = 1 << 20
MOST_LAYERS = 400
"""Layers that one figure can show: more bars than that are thinner than a pixel."""


def speed_plot(searched: Searched, name: str) -> str:
    """Points of accuracy lost against the speed-up over float32; empty where no trial has both."""
    chosen = searched.chosen
    points = [(one, one.speed.speedup) for one in searched.trials if one.speed and one.speed.speedup is not None]
    return _trials(
        searched, name, "speed-up over float32 (more is better)", points, _latency_mark(chosen), "latency limit"
    )


def size_plot(searched: Searched, name: str) -> str:
    """Points of accuracy lost against the bytes of the weights; empty where no trial has both."""
    points = [
        (one, one.footprint.weights_bytes / MIB)
        for one in searched.trials
        if one.footprint and one.footprint.weights_bytes is not None
    ]
    return _trials(searched, name, "weights in MiB (less is better)", points, _memory_mark(searched), "memory limit")


def layers_plot(layers: Sequence[Layer], name: str) -> str:
    """Each layer's share of the time, coloured by precision, over its error where that was measured."""
    if not layers or len(layers) > MOST_LAYERS:
        return ""
    errors = [(place, one.sqnr_db) for place, one in enumerate(layers, 1) if one.sqnr_db is not None]
    width = max(4.8, min(20.0, 0.09 * len(layers)))
    with drawing(width, 3.4 if errors else 2.2, salt=f"{name}/layers") as figure:
        rows = figure.subplots(2 if errors else 1, 1, sharex=True, squeeze=False)[:, 0]
        _shares(rows[0], layers)
        if errors:
            rows[1].scatter(*zip(*errors, strict=True), s=10, color=INK)
            rows[1].set_ylabel("error alone,\nSQNR in dB")
            rows[1].grid(axis="y")
        rows[-1].set_xlabel("layer, in the order of execution")
        busiest = max(layers, key=lambda one: one.share)
        kinds = ", ".join(f"{count} in {kind}" for kind, count in precision_counts(layers).items())
        label = (
            f"{len(layers)} layers: {kinds}. The busiest, {busiest.node}, takes {100 * busiest.share:.1f} % of time."
        )
        return svg_of(figure, label)


def precision_counts(layers: Sequence[Layer]) -> dict[str, int]:
    """Precision → number of layers that compute in it, most first."""
    kinds = [one.precision for one in layers]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds), key=lambda kind: (-kinds.count(kind), kind))}


def _shares(axes: Axes, layers: Sequence[Layer]) -> None:
    for kind in precision_counts(layers):
        places = [place for place, one in enumerate(layers, 1) if one.precision == kind]
        shares = [100 * one.share for one in layers if one.precision == kind]
        axes.bar(places, shares, width=0.85, color=precision_color(kind), label=kind)
    axes.set_ylabel("share of time, %")
    axes.grid(axis="y")
    axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0, fontsize=8)


def _trials(
    searched: Searched,
    name: str,
    label: str,
    points: Sequence[tuple[Trial, float]],
    mark: float | None,
    mark_label: str,
) -> str:
    found = [(one, x, one.accuracy.drop_pct) for one, x in points if one.accuracy and one.accuracy.drop_pct is not None]
    if not found:
        return ""
    metric = next(one.accuracy.metric for one, _, _ in found if one.accuracy)
    with drawing(4.8, 3.3, salt=f"{name}/{label}") as figure:
        axes = figure.subplots()
        middle = sum(x for _, x, _ in found) / len(found)
        for one, x, drop in found:
            _point(axes, one, x, drop, one.number == searched.decision.trial)
            _name(axes, one, x, drop, one.number == searched.decision.trial, to_left=x > middle)
        axes.axhline(0, color=LINE, linewidth=0.8)
        limit = searched.plan.gates.limits.accuracy_drop_pct
        if limit is not None:
            axes.axhline(limit, color=BAD, linestyle="--", linewidth=1)
            axes.annotate("accuracy limit", (0.01, limit), xycoords=("axes fraction", "data"), va="bottom", color=BAD)
        if mark is not None:
            axes.axvline(mark, color=BAD, linestyle=":", linewidth=1)
            axes.annotate(
                mark_label,
                (mark, 0.98),
                xycoords=("data", "axes fraction"),
                rotation=90,
                va="top",
                ha="right",
                color=BAD,
            )
        axes.set_xlabel(label)
        axes.set_ylabel(f"points of {metric} lost")
        axes.margins(0.12, 0.15)
        axes.grid()
        return svg_of(
            figure, f"{len(found)} trials by points of {metric} lost and {label}; the table below has the figures."
        )


def _point(axes: Axes, trial: Trial, x: float, drop: float, is_chosen: bool) -> None:
    accuracy = trial.accuracy
    if accuracy and accuracy.low_pct is not None and accuracy.high_pct is not None:
        axes.plot([x, x], [accuracy.low_pct, accuracy.high_pct], color=MUTED, linewidth=1)
    color = GOOD if is_chosen else MUTED if trial.status == "refused" else INK
    marker = "*" if is_chosen else "x" if trial.status == "refused" else "o"
    axes.scatter([x], [drop], s=130 if is_chosen else 36, marker=marker, color=color, zorder=3)


def _name(axes: Axes, trial: Trial, x: float, drop: float, is_chosen: bool, *, to_left: bool) -> None:
    axes.annotate(
        f"{trial.number} {trial.precision}" if is_chosen else str(trial.number),
        (x, drop),
        xytext=(-6 if to_left else 6, 5),
        textcoords="offset points",
        ha="right" if to_left else "left",
        weight="bold" if is_chosen else "normal",
    )


def _latency_mark(chosen: Trial | None) -> float | None:
    """The speed-up at which the latency limit is met, by what the chosen trial's latency and speed-up say together."""
    gate = next((one for one in chosen.gates if one.name == "latency"), None) if chosen else None
    if not (chosen and gate and gate.value and gate.limit and chosen.speed and chosen.speed.speedup):
        return None
    return chosen.speed.speedup * gate.value / gate.limit


def _memory_mark(searched: Searched) -> float | None:
    """The size that the memory limit allows, of the float32 trial's."""
    limit = searched.plan.gates.limits.memory_reduction_pct
    original = next((one.footprint for one in searched.trials if one.precision == "fp32" and one.footprint), None)
    if limit is None or original is None or original.weights_bytes is None:
        return None
    return original.weights_bytes * (1 - limit / 100) / MIB
