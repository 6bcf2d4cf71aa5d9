#!/usr/bin/env python3
"""The portable half alone, for the first device of a fleet file, from an empty store; prints its times as JSON.

scripts/bench_portable.py examples/face/fleet.yaml
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path


def main(fleet_file: Path) -> None:
    """Reads, binds, rewrites, and writes the border model into a store that is removed again."""
    clock = [time.perf_counter()]
    from compiler.driver.stages.border import make_border
    from compiler.driver.stages.inputs import prepare
    from compiler.driver.stages.run import Stages
    from compiler.model.frontend import read_model
    from compiler.plan import BuildOptions
    from compiler.plan.jobs import plan_fleet
    from compiler.store import Store

    with tempfile.TemporaryDirectory(prefix="fleetc-bench-") as folder:
        options = BuildOptions(cache=Path(folder, "cache"), out=Path(folder, "out"))
        fleet, (job, *_), _ = plan_fleet(fleet_file, options)
        clock.append(time.perf_counter())
        source = read_model(fleet.model)
        clock.append(time.perf_counter())
        ready = prepare(fleet, source.model, [job.device])[0][job.device.name]
        clock.append(time.perf_counter())
        passes = job.target.passes(job.profile)
        border = make_border(
            ready.model, ready.digest, job.plan, passes, inputs=ready.inputs.probe, stages=Stages(Store(options.cache))
        )
        clock.append(time.perf_counter())
    names = ("imports_and_plan_s", "read_s", "bind_s", "border_s")
    seconds = {name: round(end - start, 3) for name, start, end in zip(names, clock[:-1], clock[1:], strict=True)}
    passes_ms = {f"{record['number']} {record['name']}": record["milliseconds"] for record in border.records}
    nodes = [border.records[0]["before"]["nodes"], border.records[-1]["after"]["nodes"]]
    print(json.dumps({**seconds, "nodes": nodes, "passes_ms": passes_ms}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
