"""Values as text for a terminal: no logic, no colour, at most 100 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line imports this file for every command, and these import all of the compiler
    from compiler.artifact.schema import (
        ExactOutput,
        GraphStats,
        LadderFacts,
        Latency,
        Layer,
        Manifest,
        Measurements,
        OutputDifference,
        Parity,
        PassFacts,
        Pruning,
        Saliency,
        Searched,
        Threshold,
        TrialFacts,
    )
    from compiler.driver.forecast import Forecast
    from compiler.driver.reports import DeviceReport, FleetReport
    from compiler.plan import Plan, SearchEffort

MIB = 1 << 20
COLUMNS = 100
NOTE_COLUMNS = 96
LEAST_WIDTH = 12
"""Cells are not cut to less: better a line too long than one that says nothing."""


def table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """Left-aligned columns, two spaces apart; the widest are cut in the middle until a line fits."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    while sum(widths) + 2 * (len(widths) - 1) > COLUMNS and max(widths) > LEAST_WIDTH:
        widths[widths.index(max(widths))] -= 1
    lines = (
        "  ".join(_fit(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    )
    return "\n".join(lines)


def _fit(text: str, width: int) -> str:
    """The text, or its beginning and its end: names differ in either."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def fleet_text(report: FleetReport) -> str:
    """One line per device, then why figures are missing, then what went wrong."""
    head = ("device", "target", "precision", "MiB", "nodes", "parity", "latency or work", "evidence")
    lines = [table([_device_row(device) for device in report.devices], head)]
    lines += [
        f"{device.device}: not executed: {device.row['reason']}" for device in report.devices if _unexecuted(device)
    ]
    lines += [f"{device.device}: {device.row['reason']}" for device in report.devices if _noted(device)]
    lines += [line for device in report.devices for line in _absent_lines(device)]
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"report: {report.page}"] if report.page else []
    return "\n".join(lines)


def _absent_lines(device: DeviceReport) -> list[str]:
    """The targets that were to compete for a device, and could not."""
    targets = device.plan.targets if device.plan else ()
    return [
        f"{device.device}: {target.target} did not compete: {target.left_out}" for target in targets if target.left_out
    ]


def forecast_text(expected: Forecast) -> str:
    """How long a build may take."""
    return f"at most about {_minutes(expected.seconds)} ({expected.basis}); a search may add trials"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def plan_text(plan: Plan, *, search: SearchEffort) -> str:
    """A plan with its reasons, and what the search may leave out."""
    names = [target.target for target in plan.targets if not target.left_out] or [plan.target]
    lines = [f"{plan.device}: {plan.profile} through target {' or '.join(map(repr, names))}"]
    lines += [f"  {name:<17} {sizes}" for name, sizes in plan.dims.items()]
    lines += [f"  {name:<17} {decision.value}: {decision.reason}" for name, decision in plan.decisions.items()]
    if len(plan.candidates) > 1 and search == "quick" and not plan.pruning.ratio:
        expected = ", ".join(f"{rule.name} {rule.gain:g} ×" for rule in plan.candidates)
        why = "not made where another passes and is faster than can be expected of it"
        lines += [f"  {'may be left out':<17} {expected}: {why}"]
    lines += _others_lines(plan)
    lines += [f"  {'toolchain':<17} " + ", ".join(f"{name} {version}" for name, version in plan.toolchain.items())]
    lines += ["  passes"]
    lines += [
        f"    {step.number:>3} {step.name}" + ("" if step.runs else f" (left out: {step.reason})")
        for step in plan.passes
    ]
    lines += [f"        {name} (the target's own)" for name in plan.target_passes]
    return "\n".join(lines)


def _others_lines(plan: Plan) -> list[str]:
    """The candidates and tools of the targets that compete with the plan's own."""
    others = [target for target in plan.targets if target.target != plan.target and not target.left_out]
    return [
        f"  {target.target:<17} {target.reason}; toolchain "
        + ", ".join(f"{name} {version}" for name, version in target.toolchain.items())
        for target in others
    ]


def manifest_text(manifest: Manifest, measurements: Measurements) -> str:
    """An artifact's manifest for a person."""
    artifact, plan, parity = manifest.artifact, manifest.plan, manifest.verdict.parity
    lines = [f"{manifest.device}: {plan.profile} through target '{artifact.target}', {artifact.precision}"]
    lines += [f"  deferred: {artifact.deferred}"] if artifact.deferred else []
    lines += [
        f"  {kind}: {spec.name} {spec.dtype}{list(spec.shape)}"
        for kind, specs in (("inputs", artifact.inputs), ("outputs", artifact.outputs))
        for spec in specs
    ]
    lines += [f"  {name}: {decision.value}: {decision.reason}" for name, decision in plan.decisions.items()]
    lines += [f"  source {_size(manifest.source)}", f"  border {_size(manifest.border)}"]
    lines += _parity_lines("parity", parity)
    if manifest.verdict.border:
        lines += _parity_lines("border model against the imported model", manifest.verdict.border)
    lines += [f"  {sentence}" for sentence in manifest.verdict.weak_proofs]
    lines += [f"  {threshold_text(manifest.threshold)}"] if manifest.threshold else []
    lines += [*_measured_lines(measurements), "  files", *_file_lines(manifest, measurements)]
    pruned = [pruning_text(manifest.pruning)] if manifest.pruning else []
    ladder = [ladder_text(manifest.ladder)] if manifest.ladder else []
    sections = [search_text(manifest), *ladder, *pruned, layers_text(manifest.layers), passes_text(manifest.passes)]
    return "\n\n".join(["\n".join(lines), *sections])


def threshold_text(threshold: Threshold) -> str:
    """The similarity that accepts a pair, and what it was set on."""
    return (
        f"a pair is accepted above a similarity of {threshold.similarity:.4f}: by the imported model, FAR "
        f"{threshold.far:g} of {threshold.impostor_pairs} impostor pairs of {threshold.people} people"
    )


def ladder_text(ladder: LadderFacts) -> str:
    """The builds that serve, the most accurate first, each with its times by batch size."""
    lines = [f"ladder for answers within {ladder.slo_ms:g} ms"]
    for rung in ladder.rungs:
        times = ", ".join(f"{time.items}: {time.p95_ms:.3g} ms" for time in rung.service) or "not timed"
        lost = "" if rung.drop_pct is None else f"; {rung.drop_pct:.2f} points lost"
        lines.append(f"  {rung.name}{' (degraded)' if rung.is_degraded else ''}: {times} ({rung.evidence}){lost}")
    return "\n".join([*lines, *(f"  no rung: {name}: {why}" for name, why in ladder.left_out.items())])


def _measured_lines(measurements: Measurements) -> list[str]:
    evidence = measurements.evidence
    lines = [f"  latency {row.sizes}: {latency_text(row)} ({evidence})" for row in measurements.latency]
    count = measurements.instructions
    return [*lines, *([f"  {instructions_text(count)} ({evidence})"] if count else [])]


def _file_lines(manifest: Manifest, measurements: Measurements) -> list[str]:
    return [
        *(f"    {name}  {file.bytes} bytes  {file.sha256[:12]}" for name, file in sorted(manifest.files.items())),
        *(
            f"    {name}  {file.bytes} bytes  not repeatable"
            for name, file in measurements.non_reproducible_files.items()
        ),
    ]


def search_text(searched: Searched) -> str:
    """What was tried, how each trial was judged, and the gates of what was delivered."""
    head = ("trial", "precision", "status", "speed", "MiB", "run MiB", "points lost")
    lines = [table([_trial_row(trial) for trial in searched.trials], head)]
    lines += [f"  {competitor}" for competitor in searched.contest]
    lines += [f"  {race}" for race in searched.final_races]
    lines += [f"  {trial.number}: {trial.why}" for trial in searched.trials if trial.why]
    lines += [line for trial in searched.trials if (line := _speed_line(trial))]
    lines += [f"  {gate}" for gate in searched.gates]
    lines += [f"  {trial.accuracy_words}" for trial in searched.trials if trial.accuracy_words]
    return "\n".join([*lines, *([f"  {saliency_text(searched.saliency)}"] if searched.saliency else [])])


def saliency_text(saliency: Saliency) -> str:
    """How similar the saliency maps are, or why nobody knows."""
    if saliency.correlation is None:
        return f"saliency maps: not compared: {saliency.note}"
    return (
        f"saliency maps of {saliency.images} images: rank correlation {saliency.correlation:.3f}, "
        f"at least {saliency.lowest_correlation:.3f} ({saliency.evidence}; {saliency.note})"
    )


def pruning_text(pruning: Pruning) -> str:
    """What was cut, group by group, and what is left of each error behind the cuts after the repair."""
    rows = [(group.name, f"{group.channels} -> {group.kept}", group.reason) for group in pruning.groups]
    repairs = [(layer.layer, f"{100 * layer.before:.2f} %", f"{100 * layer.after:.2f} %") for layer in pruning.repaired]
    macs, parameters = (
        f"{before / 1e6:.2f} M -> {after / 1e6:.2f} M"
        for before, after in (
            (pruning.macs_before, pruning.macs_after),
            (pruning.parameters_before, pruning.parameters_after),
        )
    )
    return "\n".join(
        [
            f"pruned by {pruning.ratio:.0%}: MACs {macs}, parameters {parameters}",
            *([pruning.recovered.text] if pruning.recovered else []),
            table(rows, ("group", "channels", "why")),
            table(repairs, ("repaired layer", "error", "after")),
            *(f"  kept {layer}: {reason}" for layer, reason in pruning.kept.items()),
            *(f"  warning: {warning}" for warning in pruning.warnings),
        ]
    )


def layers_text(layers: Sequence[Layer]) -> str:
    """Every layer: what it computes in, how much that errs, what share of the time it takes; then why."""
    head = ("layer", "operator", "precision", "SQNR", "share", "kernel")
    rows = [
        (
            layer.node,
            layer.op,
            layer.precision,
            "-" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f} dB",
            f"{100 * layer.share:.1f} %",
            layer.kernel,
        )
        for layer in layers
    ]
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        reasons.setdefault(f"{layer.precision}: {layer.why}", []).append(layer.node)
    evidence = layers[0].evidence if layers else "none"
    why = [f"  {reason} ({_some(nodes)})" for reason, nodes in reasons.items()]
    return "\n".join([table(rows, head), f"  shares: {evidence}", *why])


def passes_text(passes: Sequence[PassFacts]) -> str:
    """The pass table: what each pass did to the graph, and how far the outputs moved on the probe."""
    head = ("pass", "", "nodes", "parameters", "MACs", "largest difference")
    rows = [
        (
            str(step.number),
            step.name,
            _arrow(step.before.nodes, step.after.nodes),
            _arrow(step.before.parameters, step.after.parameters),
            _arrow(step.before.macs, step.after.macs),
            _largest_difference(step),
        )
        for step in passes
    ]
    notes = [f"  {step.number} {step.name}: {note}"[:NOTE_COLUMNS] for step in passes for note in step.notes]
    return "\n".join([table(rows, head), *(["notes", *notes] if notes else [])])


def node_text(trace: Mapping[str, Any]) -> str:
    """What became of a source node: what happened to it, and the operators of the artifact that it is in now."""
    lines = list(trace["steps"])
    for operator in trace["operators"]:
        lines += [f"{operator['op']} '{operator['node']}' in {operator['precision']}, made of {operator['origin']}"]
        lines += [f"  why: {operator['why']}"] if operator["why"] else []
        lines += [f"  kernel: {operator['kernel']}"] if operator["kernel"] else []
    return "\n".join(lines)


def targets_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Installed targets, the package each is from, and its toolchain's versions or what is wrong with it."""
    tools = [", ".join(f"{name} {version}" for name, version in row["toolchain"].items()) for row in rows]
    cells = [(row["target"], row["package"], row["problem"] or text) for row, text in zip(rows, tools, strict=True)]
    return table(cells, ("target", "package", "toolchain"))


def latency_text(latency: Latency) -> str:
    """p50, p90, p99 and throughput."""
    return (
        f"p50 {latency.p50_ms:.2f} ms, p90 {latency.p90_ms:.2f} ms, p99 {latency.p99_ms:.2f} ms, "
        f"{latency.items_per_s:.0f} items/s ({latency.runs} runs)"
    )


def instructions_text(count: int) -> str:
    """Guest instructions; they are no time."""
    return f"{count / 1e6:.1f} M instructions per inference"


def _speed_line(trial: TrialFacts) -> str:
    """A measured speed-up with its interval, and what disturbed it; empty where it has no interval."""
    speed = trial.speed
    if speed is None or speed.low is None or speed.low == speed.high:
        return ""
    return f"  {trial.number}: {speed.ratio_words}" + (f": {speed.disturbed}" if speed.disturbed else "")


def _trial_row(trial: TrialFacts) -> tuple[str, ...]:
    speed, memory, drop = trial.speed, trial.footprint, trial.accuracy.drop if trial.accuracy else None
    float_layers = f" ({len(trial.kept_float)} float)" if trial.kept_float else ""
    pruned = f" -{trial.pruned:.0%}" if trial.pruned else ""
    return (
        str(trial.number),
        trial.label + float_layers + pruned,
        trial.status,
        (speed.short_words if speed else "") or "-",
        f"{memory.weights_bytes / MIB:.1f}" if memory else "-",
        f"{memory.run_bytes / MIB:.1f}" if memory and memory.run_bytes is not None else "-",
        f"{drop.drop_pct:.2f}" if drop else "-",
    )


def _some(nodes: Sequence[str]) -> str:
    shown = ", ".join(nodes[:3])
    return shown if len(nodes) <= 3 else f"{shown} and {len(nodes) - 3} more"


def _device_row(device: DeviceReport) -> tuple[str, ...]:
    row = device.row
    if device.error:
        target = device.plan.target if device.plan else ""
        return (device.device, target, "", "", "", "failed", f"exit code {device.error.exit_code}", "")
    parity = (
        f"{row['sqnr_db']:.0f} dB"
        if row["sqnr_db"] is not None
        else "exact"
        if row["parity"] == "passed"
        else "not run"
    )
    work = (
        f"{row['p50_ms']:.2f} ms"
        if row["p50_ms"]
        else f"{row['instructions'] / 1e6:.1f} M instr."
        if row["instructions"]
        else "-"
    )
    size = "deferred" if device.is_deferred else f"{row['bytes'] / MIB:.1f}"
    nodes = f"{row['nodes_before']} -> {row['nodes_after']}"
    return (device.device, row["target"], row["precision"], size, nodes, parity, work, row["evidence"])


def _unexecuted(device: DeviceReport) -> bool:
    return not device.error and device.row["parity"] == "not executed"


def _noted(device: DeviceReport) -> bool:
    return not device.error and device.row["parity"] != "not executed" and bool(device.row["reason"])


def _size(stats: GraphStats) -> str:
    macs = "unknown" if stats.macs is None else f"{stats.macs / 1e6:.1f} M"
    return f"{stats.nodes} nodes, {stats.parameters} parameters, {stats.bytes / MIB:.1f} MiB, {macs} MACs"


def _parity_lines(title: str, parity: Parity) -> Iterator[str]:
    judged = f"{parity.status} ({parity.evidence}, tolerance {parity.tolerance})"
    yield f"  {title}: {judged} {parity.reason}".rstrip()
    for point in parity.points:
        for name, output in point.outputs.items():
            yield f"    {point.sizes}: {name}: {_difference(output)}"


def _difference(output: ExactOutput | OutputDifference) -> str:
    from compiler.artifact.schema import ExactOutput

    if isinstance(output, ExactOutput):
        return "equal to the bit"
    return f"SQNR {output.sqnr_db:.1f} dB, cosine {output.cosine:.6f}, worst element off by {output.worst_abs:.3g}"


def _arrow(before: int | None, after: int | None) -> str:
    return f"{before} -> {after}" if before != after else str(after)


def _largest_difference(step: PassFacts) -> str:
    if step.largest_difference is None:
        return step.not_measured if step.modified else "unchanged"
    return f"{float(step.largest_difference):.3g}"
