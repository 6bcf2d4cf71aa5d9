"""Measurements of built artifacts in a child process, kept in the store."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compiler.artifact import artifact_to_dict
from compiler.driver.stages.compile import Built
from compiler.driver.stages.context import BuildContext
from compiler.fleet.detect import host_fingerprint
from compiler.model.numerics import Arrays, arrays_digest, write_arrays
from compiler.store import StageName, read_result, write_result
from compiler.target.isolate import run_child

_RESULTS = "measured.json"

_WORK = {StageName.MEMORY: "footprint", StageName.SPEED: "race", StageName.LAYERS: "profile"}


def measure_in_child(
    context: BuildContext, stage: StageName, builds: Sequence[tuple[Built, Arrays]], *, times: int = 1, **more: Any
) -> list[dict[str, Any]]:
    """Does one work of `compiler.target.worker_measure` on built artifacts, or takes its results from the store.

    Args:
        context: The device.
        stage: `memory`, `speed` or `layers`.
        builds: The artifacts, each with its inputs.
        times: Child processes to ask, one after another.
        more: Further arguments of the work.

    Returns:
        What each child said.

    Raises:
        CompilerError: Whatever the work raised, or how the child ended.
    """
    work = _WORK[stage]

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="fleetc-") as name:
            request = _request(builds, Path(name)) | more
            where = f"{context.name}: {stage}"
            results = [
                run_child(work, dict(request), folder=Path(name), limits=context.options.child, where=where)
                for _ in range(times)
            ]
        write_result(folder, _RESULTS, results)

    entry = context.stages.run(
        stage,
        make,
        builds=[built.entry.digest for built, _ in builds],
        inputs=[arrays_digest(inputs) for _, inputs in builds],
        arguments={**more, "times": times},
        host=host_fingerprint(),
    )
    values: list[dict[str, Any]] = read_result(entry, _RESULTS)
    return values


def _request(builds: Sequence[tuple[Built, Arrays]], folder: Path) -> dict[str, Any]:
    """One artifact by its own name, several in lists."""
    paths = [folder / f"in{index}.npz" for index in range(len(builds))]
    for path, (_, inputs) in zip(paths, builds, strict=True):
        write_arrays(path, inputs)
    artifacts = [{**artifact_to_dict(built.artifact), "root": str(built.artifact.root)} for built, _ in builds]
    if len(builds) == 1:
        return {"artifact": artifacts[0], "inputs": str(paths[0])}
    return {"artifacts": artifacts, "inputs": [str(path) for path in paths]}
