"""Values as text for a terminal: no logic, no colour, at most 100 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line imports this file for every command, and these import all of the compiler
    from compiler.driver.reports import DeviceReport, FleetReport
    from compiler.plan import Plan

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
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"report: {report.page}"] if report.page else []
    return "\n".join(lines)


def plan_text(plan: Plan) -> str:
    """A plan with its reasons."""
    lines = [f"{plan.device}: {plan.profile} through target '{plan.target}'"]
    lines += [f"  {name:<17} {sizes}" for name, sizes in plan.dims.items()]
    lines += [f"  {name:<17} {choice.value}: {choice.reason}" for name, choice in plan.choices.items()]
    lines += [f"  {'toolchain':<17} " + ", ".join(f"{name} {version}" for name, version in plan.toolchain.items())]
    lines += ["  passes"]
    lines += [
        f"    {step.number:>3} {step.name}" + ("" if step.runs else f" (left out: {step.reason})")
        for step in plan.passes
    ]
    lines += [f"        {name} (the target's own)" for name in plan.target_passes]
    return "\n".join(lines)


def manifest_text(manifest: Mapping[str, Any], measurements: Mapping[str, Any]) -> str:
    """An artifact's manifest for a person."""
    artifact, plan, parity = manifest["artifact"], manifest["plan"], manifest["verdict"]["parity"]
    lines = [f"{manifest['device']}: {plan['profile']} through target '{artifact['target']}', {artifact['precision']}"]
    if artifact["deferred"]:
        lines += [f"  deferred: {artifact['deferred']}"]
    lines += [
        f"  {kind}: {spec['name']} {spec['dtype']}{spec['shape']}"
        for kind in ("inputs", "outputs")
        for spec in artifact[kind]
    ]
    lines += [f"  {name}: {choice['value']}: {choice['reason']}" for name, choice in plan["choices"].items()]
    lines += [f"  source {_size(manifest['source'])}", f"  border {_size(manifest['border'])}"]
    lines += _parity_lines("parity", parity)
    if border := manifest["verdict"].get("border"):
        lines += _parity_lines("border model against the imported model", border)
    lines += [f"  {sentence}" for sentence in manifest["verdict"].get("weak_proofs", ())]
    lines += [
        f"  latency {row['sizes']}: {latency_text(row)} ({measurements['evidence']})"
        for row in measurements.get("latency", [])
    ]
    if measurements.get("instructions"):
        lines += [f"  {instructions_text(measurements['instructions'])} ({measurements['evidence']})"]
    lines += ["  files"] + [
        f"    {name}  {row['bytes']} bytes  {row['sha256'][:12]}" for name, row in sorted(manifest["files"].items())
    ]
    lines += [
        f"    {name}  {row['bytes']} bytes  not repeatable"
        for name, row in measurements.get("non_reproducible_files", {}).items()
    ]
    pruned = [pruning_text(manifest["pruning"])] if manifest["pruning"] else []
    sections = [search_text(manifest), *pruned, layers_text(manifest["layers"]), passes_text(manifest["passes"])]
    return "\n\n".join(["\n".join(lines), *sections])


def search_text(manifest: Mapping[str, Any]) -> str:
    """What was tried, how each trial was judged, and the gates of what was delivered."""
    head = ("trial", "precision", "status", "speed", "MiB", "run MiB", "points lost")
    lines = [table([_trial_row(one) for one in manifest["trials"]], head)]
    lines += [f"  {one['number']}: {one['why']}" for one in manifest["trials"] if one["why"]]
    lines += [f"  {gate_text(gate)}" for gate in manifest["gates"]]
    found = manifest.get("saliency")
    return "\n".join([*lines, *([f"  {saliency_text(found)}"] if found else [])])


def saliency_text(found: Mapping[str, Any]) -> str:
    """How alike the saliency maps are, or why nobody knows."""
    if found["correlation"] is None:
        return f"saliency maps: not compared: {found['note']}"
    return (
        f"saliency maps of {found['images']} images: rank correlation {found['correlation']:.3f}, "
        f"at least {found['lowest_correlation']:.3f} ({found['evidence']}; {found['note']})"
    )


def pruning_text(pruning: Mapping[str, Any]) -> str:
    """What was cut, group by group, and what is left of each error behind the cuts after the repair."""
    rows = [(one["name"], f"{one['channels']} -> {one['kept']}", one["reason"]) for one in pruning["groups"]]
    repairs = [
        (one["layer"], f"{100 * one['before']:.2f} %", f"{100 * one['after']:.2f} %") for one in pruning["repaired"]
    ]
    macs, parameters = (
        f"{pruning[f'{key}_before'] / 1e6:.2f} M -> {pruning[f'{key}_after'] / 1e6:.2f} M"
        for key in ("macs", "parameters")
    )
    return "\n".join(
        [
            f"pruned by {pruning['ratio']:.0%}: MACs {macs}, parameters {parameters}",
            *recovered_lines(pruning.get("recovered")),
            table(rows, ("group", "channels", "why")),
            table(repairs, ("repaired layer", "error", "after")),
            *(f"  kept {layer}: {reason}" for layer, reason in pruning["kept"].items()),
            *(f"  warning: {warning}" for warning in pruning["warnings"]),
        ]
    )


def recovered_lines(recovered: Mapping[str, Any] | None) -> list[str]:
    """How the pruned model was trained, in one line; none where it was not."""
    from compiler.artifact.schema import parse
    from compiler.artifact.schema.pruning import Recovered

    return [parse(Recovered, recovered).words] if recovered else []


def layers_text(layers: Sequence[Mapping[str, Any]]) -> str:
    """Every layer: what it computes in, how much that errs, what share of the time it takes; then why."""
    head = ("layer", "operator", "precision", "SQNR", "share", "kernel")
    rows = [
        (
            one["node"],
            one["op"],
            one["precision"],
            "-" if one["sqnr_db"] is None else f"{one['sqnr_db']:.1f} dB",
            f"{100 * one['share']:.1f} %",
            one["kernel"],
        )
        for one in layers
    ]
    reasons: dict[str, list[str]] = {}
    for one in layers:
        reasons.setdefault(f"{one['precision']}: {one['why']}", []).append(one["node"])
    evidence = layers[0]["evidence"] if layers else "none"
    why = [f"  {reason} ({_some(nodes)})" for reason, nodes in reasons.items()]
    return "\n".join([table(rows, head), f"  shares: {evidence}", *why])


def gate_text(gate: Mapping[str, Any]) -> str:
    """One verdict."""
    if gate["passed"] is None:
        return f"{gate['name']}: not judged: {gate['why']}"
    verdict = "passed" if gate["passed"] else "failed"
    found = f"{round(gate['value'], 2):g} {gate['unit']}, limit {gate['limit']:g}"
    return f"{gate['name']} {verdict}: {found} ({gate['rule']}; {gate['evidence']})"


def passes_text(records: Iterable[Mapping[str, Any]]) -> str:
    """The pass table: what each pass did to the graph, and how far the outputs moved on the probe."""
    head = ("pass", "", "nodes", "parameters", "MACs", "largest difference")
    rows = [
        (
            str(one["number"]),
            one["name"],
            _arrow(one, "nodes"),
            _arrow(one, "parameters"),
            _arrow(one, "macs"),
            _difference(one),
        )
        for one in records
    ]
    notes = [f"  {one['number']} {one['name']}: {note}"[:NOTE_COLUMNS] for one in records for note in one["notes"]]
    return "\n".join([table(rows, head), *(["notes", *notes] if notes else [])])


def node_text(trace: Mapping[str, Any]) -> str:
    """What became of a source node: what happened to it, and the operators of the artifact that it is in now."""
    lines = list(trace["steps"])
    for one in trace["operators"]:
        lines += [f"{one['op']} '{one['node']}' in {one['precision']}, made of {one['origin']}"]
        lines += [f"  why: {one['why']}"] if one["why"] else []
        lines += [f"  kernel: {one['kernel']}"] if one["kernel"] else []
    return "\n".join(lines)


def targets_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Installed targets, the package each is from, and its toolchain's versions or what is wrong with it."""
    tools = [", ".join(f"{name} {found}" for name, found in row["toolchain"].items()) for row in rows]
    cells = [(row["target"], row["package"], row["problem"] or text) for row, text in zip(rows, tools, strict=True)]
    return table(cells, ("target", "package", "toolchain"))


def latency_text(row: Mapping[str, Any]) -> str:
    """p50, p90, p99 and throughput."""
    return (
        f"p50 {row['p50_ms']:.2f} ms, p90 {row['p90_ms']:.2f} ms, p99 {row['p99_ms']:.2f} ms, "
        f"{row['items_per_s']:.0f} items/s ({row['runs']} runs)"
    )


def instructions_text(count: int) -> str:
    """Guest instructions; they are no time."""
    return f"{count / 1e6:.1f} M instructions per inference"


def _trial_row(trial: Mapping[str, Any]) -> tuple[str, ...]:
    speed, memory, accuracy = trial["speed"] or {}, trial["footprint"] or {}, trial["accuracy"] or {}
    speedup, run, drop = speed.get("speedup"), memory.get("run_bytes"), accuracy.get("drop_pct")
    kept = f" ({len(trial['kept_float'])} float)" if trial["kept_float"] else ""
    pruned = f" -{trial['pruned']:.0%}" if trial["pruned"] else ""
    return (
        str(trial["number"]),
        trial["precision"] + kept + pruned,
        trial["status"],
        "-" if speedup is None else f"{speedup:.2f} x ({speed['evidence']})",
        f"{memory['weights_bytes'] / MIB:.1f}" if memory else "-",
        "-" if run is None else f"{run / MIB:.1f}",
        "-" if drop is None else f"{drop:.2f}",
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
    size = "deferred" if device.status == "deferred" else f"{row['bytes'] / MIB:.1f}"
    nodes = f"{row['nodes_before']} -> {row['nodes_after']}"
    return (device.device, row["target"], row["precision"], size, nodes, parity, work, row["evidence"])


def _unexecuted(device: DeviceReport) -> bool:
    return not device.error and device.row["parity"] == "not executed"


def _noted(device: DeviceReport) -> bool:
    return not device.error and device.row["parity"] != "not executed" and bool(device.row["reason"])


def _size(stats: Mapping[str, Any]) -> str:
    macs = "unknown" if stats["macs"] is None else f"{stats['macs'] / 1e6:.1f} M"
    return f"{stats['nodes']} nodes, {stats['parameters']} parameters, {stats['bytes'] / MIB:.1f} MiB, {macs} MACs"


def _parity_lines(title: str, parity: Mapping[str, Any]) -> Iterator[str]:
    judged = f"{parity['status']} ({parity['evidence']}, tolerance {parity['tolerance']})"
    yield f"  {title}: {judged} {parity['reason']}".rstrip()
    for point in parity["points"]:
        for name, stats in point["outputs"].items():
            yield f"    {point['sizes']}: {name}: {_stats(stats)}"


def _stats(stats: Mapping[str, Any]) -> str:
    if stats.get("exact"):
        return "equal to the bit"
    return (
        f"SQNR {stats['sqnr_db']:.1f} dB, cosine {stats['cosine']:.6f}, worst element off by {stats['worst_abs']:.3g}"
    )


def _arrow(record: Mapping[str, Any], key: str) -> str:
    before, after = record["before"][key], record["after"][key]
    return f"{before} -> {after}" if before != after else str(after)


def _difference(record: Mapping[str, Any]) -> str:
    if record["largest_difference"] is None:
        return record["not_measured"] if record["modified"] else "unchanged"
    return f"{float(record['largest_difference']):.3g}"
