"""What `fleetc build --to` says of the models it hands out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.cli.text import table

if TYPE_CHECKING:
    from compiler.driver.reports import FleetReport


def borders_text(report: FleetReport, last: str) -> str:
    """A line per device, and what can be done with its model."""
    made = [device for device in report.devices if not device.error]
    rows = [
        (
            device.device,
            str(device.row["precision"]),
            f"{device.row['nodes_before']} → {device.row['nodes_after']}",
            ", ".join(device.row["stages"]),
            str(device.row["border"]),
        )
        for device in made
    ]
    lines = [table(rows, ("device", "precision", "nodes", "stages", "model"))] if rows else []
    lines += [f"{device.device}: failed" for device in report.devices if device.error]
    if made and last == "specialize":
        row = made[0].row
        lines += [
            "These are the border models, and no artifacts: no target was asked to build them. To build one:",
            f"  fleetc build {row['border']} --profile {row['profile']} --precision {row['precision']} --from compile",
        ]
    elif made:
        lines.append(f"These are models after `{last}`, and no artifacts: the build ended there.")
    return "\n".join(lines)
