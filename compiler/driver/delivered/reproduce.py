"""Is a build reproducible? It is done once more from nothing, in another folder, and every file is compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compiler.artifact.diff import compare_files
from compiler.driver.build import build_fleet
from compiler.errors import GateFailed, UsageError
from compiler.plan import BuildOptions
from compiler.plan.jobs import plan_fleet
from compiler.store import MEASURED_STAGES, Store
from compiler.store.scratch import scratch_folder


def refuse_non_reproducible(fleet: Path, options: BuildOptions) -> None:
    """Raises UsageError where a build cannot give the same bytes twice: recovery ends by the clock."""
    _, jobs, _ = plan_fleet(fleet, options)
    names = [job.device.name for job in jobs if job.plan.pruning.recovers]
    if names:
        raise UsageError(
            f"{', '.join(names)}: recovery trains for a time, and two runs do other numbers of steps in it",
            where="--check-reproducible",
            remedy="Build without `--recover` and `recover_minutes`, or without the check.",
        )


def check_reproducible(fleet: Path, options: BuildOptions) -> None:
    """Builds a fleet once more with an empty store, and no remote one, and compares the result with what was delivered.

    Toolchain downloads are shared with the first build, and so is what the search observed (times, memory): the same
    observations must lead to the same decision and the same bytes. `measurements.json`, and the files whose bytes a
    toolchain makes differently each time, are left out of the comparison; the manifest names the latter.

    Args:
        fleet: The fleet file.
        options: The options of the build in `options.out`.

    Raises:
        GateFailed: A file differs; all of them are named.
    """
    with scratch_folder() as scratch:
        cache, out = scratch / "cache", scratch / "dist"
        (options.cache / "toolchains").mkdir(parents=True, exist_ok=True)
        cache.mkdir()
        (cache / "toolchains").symlink_to((options.cache / "toolchains").absolute())
        Store(options.cache).lend(MEASURED_STAGES, Store(cache))
        again = build_fleet(fleet, replace(options, cache=cache, out=out, dump_passes=None, remote=None))
        again.raise_failures()
        different = [
            f"{device.device}/{file}"
            for device in again.devices
            for file in compare_files(options.out / device.device, device.folder)
        ]
    if different:
        raise GateFailed(
            f"a second build gave other bytes in: {', '.join(different)}",
            where=str(options.out),
            remedy="Compare the two with `fleetc diff`; report it if the inputs were the same.",
        )
