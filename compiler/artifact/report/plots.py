"""The report's figures: trials by accuracy against speed and size, and layers by time, error and precision."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from compiler.artifact.report.drawing import BAD, GOOD, INK, LINE, MUTED, drawing, precision_color, svg_of
from compiler.artifact.schema import AccuracyDrop, Curve, GateName, Layer, Searched, TrialFacts, TrialStatus

MIB = 1 << 20
MOST_LAYERS = 400
"""Layers that one figure can show: more bars than that are thinner than a pixel."""


def speed_plot(searched: Searched, name: str) -> str:
    """Points of accuracy lost against the speed-up over float32; empty where no trial has both."""
    chosen = searched.chosen
    points = [
        (trial, trial.speed.speedup) for trial in searched.trials if trial.speed and trial.speed.speedup is not None
    ]
    return _trials(
        searched, name, "speed-up over float32 (more is better)", points, _latency_mark(chosen), "latency limit"
    )


def size_plot(searched: Searched, name: str) -> str:
    """Points of accuracy lost against the bytes of the weights; empty where no trial has both."""
    points = [(trial, trial.footprint.weights_bytes / MIB) for trial in searched.trials if trial.footprint]
    return _trials(searched, name, "weights in MiB (less is better)", points, _memory_mark(searched), "memory limit")


def layers_plot(layers: Sequence[Layer], name: str) -> str:
    """Each layer's share of the time, coloured by precision, over its error where that was measured."""
    if not layers or len(layers) > MOST_LAYERS:
        return ""
    errors = [(place, layer.sqnr_db) for place, layer in enumerate(layers, 1) if layer.sqnr_db is not None]
    width = max(4.8, min(20.0, 0.09 * len(layers)))
    with drawing(width, 3.4 if errors else 2.2, salt=f"{name}/layers") as figure:
        rows = figure.subplots(2 if errors else 1, 1, sharex=True, squeeze=False)[:, 0]
        _shares(rows[0], layers)
        if errors:
            rows[1].scatter(*zip(*errors, strict=True), s=10, color=INK)
            rows[1].set_ylabel("error alone,\nSQNR in dB")
            rows[1].grid(axis="y")
        rows[-1].set_xlabel("layer, in the order of execution")
        busiest = max(layers, key=lambda layer: layer.share)
        kinds = ", ".join(f"{count} in {kind}" for kind, count in precision_counts(layers).items())
        label = (
            f"{len(layers)} layers: {kinds}. The busiest, {busiest.node}, takes {100 * busiest.share:.1f} % of time."
        )
        return svg_of(figure, label)


def memory_plot(searched: Searched, name: str) -> str:
    """What each trial takes on disk and when run, with what the limit allows; empty where nothing was run."""
    executed = [
        (trial, trial.footprint)
        for trial in searched.trials
        if trial.footprint and trial.footprint.run_bytes is not None
    ]
    if not executed:
        return ""
    with drawing(4.8, 1.2 + 0.42 * len(executed), salt=f"{name}/memory") as figure:
        axes = figure.subplots()
        for place, (trial, footprint) in enumerate(executed):
            color = precision_color(trial.precision)
            for shift, size, alpha in ((-0.2, footprint.weights_bytes, 1.0), (0.2, footprint.run_bytes, 0.45)):
                mib = (size or 0) / MIB
                axes.barh(place + shift, mib, height=0.36, color=color, alpha=alpha)
                axes.annotate(f" {mib:.1f}", (mib, place + shift), va="center", color=MUTED, fontsize=8)
        _memory_limits(axes, searched, len(executed))
        labels = [f"{trial.number} {trial.label}" for trial, _ in executed]
        axes.set_yticks(range(len(executed)), labels)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel("MiB: weights on disk (full), process when run (pale)")
        axes.grid(axis="x")
        return svg_of(figure, f"Memory of {len(executed)} trials on disk and when run; the table has the figures.")


def _memory_limits(axes: Axes, searched: Searched, rows: int) -> None:
    """Dashes at the most that the limit allows, on disk and when run, of the float original's."""
    limit, original = searched.plan.gates.limits.memory_reduction_pct, searched.original
    for shift, size in ((-0.2, original and original.weights_bytes), (0.2, original and original.run_bytes)):
        if limit is not None and size:
            most = size * (1 - limit / 100) / MIB
            for place in range(rows):
                axes.plot([most, most], [place + shift - 0.18, place + shift + 0.18], color=BAD, linewidth=1.5)


def tuning_plot(curves: Sequence[Curve], name: str) -> str:
    """How the best choice of each kernel improved, trial by trial, and all of them together; empty without tuning."""
    firsts = [next((value for value in curve.values if value is not None), None) for curve in curves]
    drawn = [(curve, first, _best_so_far(curve.values)) for curve, first in zip(curves, firsts, strict=True) if first]
    if not drawn:
        return ""
    most = max(len(best) for _, _, best in drawn)
    with drawing(4.8, 3.0, salt=f"{name}/tuning") as figure:
        axes = figure.subplots()
        for _, first, best in drawn:
            shares = [100 * (value or first) / first for value in best]
            axes.step(range(1, len(best) + 1), shares, where="post", color=MUTED, linewidth=0.7, alpha=0.7)
        whole = sum(curve.count * first for curve, first, _ in drawn)
        sums = [
            100 * sum(curve.count * (best[min(at, len(best) - 1)] or first) for curve, first, best in drawn) / whole
            for at in range(most)
        ]
        axes.step(range(1, most + 1), sums, where="post", color=GOOD, linewidth=2)
        axes.annotate(f"{sums[-1]:.0f} %", (most, sums[-1]), xytext=(4, 0), textcoords="offset points", color=GOOD)
        axes.set_xlabel("trials of each kernel")
        axes.set_ylabel("best so far, % of untuned")
        axes.margins(x=0.08)
        axes.grid()
        label = f"Tuning of {len(drawn)} kernels: together they came to {sums[-1]:.0f} % of what they took untuned."
        return svg_of(figure, label)


def _best_so_far(values: Sequence[float | None]) -> list[float | None]:
    """The smallest value up to each trial; None before the first that gave one."""
    best: list[float | None] = []
    for value in values:
        before = best[-1] if best else None
        best.append(before if value is None or (before is not None and before < value) else value)
    return best


def precision_counts(layers: Sequence[Layer]) -> dict[str, int]:
    """Precision → number of layers that compute in it, most first."""
    kinds = [layer.precision for layer in layers]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds), key=lambda kind: (-kinds.count(kind), kind))}


def _shares(axes: Axes, layers: Sequence[Layer]) -> None:
    for kind in precision_counts(layers):
        places = [place for place, layer in enumerate(layers, 1) if layer.precision == kind]
        shares = [100 * layer.share for layer in layers if layer.precision == kind]
        axes.bar(places, shares, width=0.85, color=precision_color(kind), label=kind)
    axes.set_ylabel("share of time, %")
    axes.grid(axis="y")
    axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0, fontsize=8)


def _trials(
    searched: Searched,
    name: str,
    label: str,
    points: Sequence[tuple[TrialFacts, float]],
    mark: float | None,
    mark_label: str,
) -> str:
    judged = [(trial, x, trial.accuracy.drop) for trial, x in points if trial.accuracy and trial.accuracy.drop]
    if not judged:
        return ""
    metric = judged[0][2].metric
    with drawing(4.8, 3.3, salt=f"{name}/{label}") as figure:
        axes = figure.subplots()
        middle = sum(x for _, x, _ in judged) / len(judged)
        for trial, x, drop in judged:
            is_chosen = trial.number == searched.decision.trial
            _point(axes, trial, x, drop, is_chosen)
            _name(axes, trial, x, drop.drop_pct, is_chosen, to_left=x > middle)
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
            figure, f"{len(judged)} trials by points of {metric} lost and {label}; the table below has the figures."
        )


def _point(axes: Axes, trial: TrialFacts, x: float, drop: AccuracyDrop, is_chosen: bool) -> None:
    if drop.low_pct is not None and drop.high_pct is not None:
        axes.plot([x, x], [drop.low_pct, drop.high_pct], color=MUTED, linewidth=1)
    color = GOOD if is_chosen else MUTED if trial.status == TrialStatus.REFUSED else INK
    marker = "*" if is_chosen else "x" if trial.status == TrialStatus.REFUSED else "o"
    axes.scatter([x], [drop.drop_pct], s=130 if is_chosen else 36, marker=marker, color=color, zorder=3)


def _name(axes: Axes, trial: TrialFacts, x: float, drop: float, is_chosen: bool, *, to_left: bool) -> None:
    axes.annotate(
        f"{trial.number} {trial.label}" if is_chosen else str(trial.number),
        (x, drop),
        xytext=(-6 if to_left else 6, 5),
        textcoords="offset points",
        ha="right" if to_left else "left",
        weight="bold" if is_chosen else "normal",
    )


def _latency_mark(chosen: TrialFacts | None) -> float | None:
    """The speed-up at which the latency limit is met, by what the chosen trial's latency and speed-up say together."""
    gate = next((gate for gate in chosen.gates if gate.name == GateName.LATENCY), None) if chosen else None
    if not (chosen and gate and gate.value and gate.limit and chosen.speed and chosen.speed.speedup):
        return None
    return chosen.speed.speedup * gate.value / gate.limit


def _memory_mark(searched: Searched) -> float | None:
    """The size that the memory limit allows, of the float32 trial's."""
    limit, original = searched.plan.gates.limits.memory_reduction_pct, searched.original
    if limit is None or original is None:
        return None
    return original.weights_bytes * (1 - limit / 100) / MIB
