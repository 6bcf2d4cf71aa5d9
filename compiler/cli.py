"""The command line: parses, calls, prints. Results go to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from platformdirs import user_cache_path

from compiler import show
from compiler.errors import CompilerError, InternalError, UsageError
from compiler.isolate import ChildLimits
from compiler.plan import BuildOptions
from compiler.store import Store, output_errors
from compiler.target import find_target, list_targets

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path)
EXIT_CODES = """\b
Exit codes: 0 done · 1 a bug of fleetc · 2 usage, profile, fleet or data file · 3 model invalid or not
supported · 4 toolchain, device or disk space missing · 5 a gate failed · 6 some devices failed, the
others were delivered · 130 interrupted, run again to resume"""


def cache_option(function: F) -> F:
    """`--cache`, the store's root."""
    option = click.option(
        "--cache",
        type=FOLDER,
        envvar="FLEETC_CACHE",
        default=lambda: user_cache_path("fleetc"),
        help="Folder of finished stages and downloads (FLEETC_CACHE; default: the user's cache folder).",
    )
    return option(function)


def child_options(function: F) -> F:
    """Limits of a target's child process."""
    timeout = click.option(
        "--build-timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=1800.0,
        show_default=True,
        metavar="SECONDS",
        help="Wall time one device's toolchain may take per step.",
    )
    memory = click.option(
        "--build-memory",
        type=click.IntRange(min=0),
        default=0,
        metavar="MIB",
        help="Memory it may use; nine tenths of this machine's by default.",
    )
    return timeout(memory(function))


def build_options(function: F) -> F:
    """What `build` and `plan` share."""
    for option in (
        click.option(
            "--device", "-d", "devices", multiple=True, metavar="NAME", help="Only this device; may be repeated."
        ),
        click.option(
            "--precision",
            default="",
            metavar="NAME",
            help="Precision of every device, over the fleet file's: auto, fp32, fp16, bf16, fp16-weights.",
        ),
        click.option(
            "--skip-pass", "skip_passes", multiple=True, metavar="PASS", help="Leave a pass out; may be repeated."
        ),
        click.option("--stop-after", type=int, metavar="N", help="Run passes 1 to N only, to find the one at fault."),
    ):
        function = option(function)
    return function


def json_option(function: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(function)


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fleetc")
@click.option("--quiet", "-q", is_flag=True, help="Only warnings and errors on stderr.")
@click.option("--verbose", "-v", is_flag=True, help="Cache keys part by part, and what the store does.")
def cli(quiet: bool, verbose: bool) -> None:
    """One ONNX model in; for every device class of a fleet, one build, verified, with its reasons."""
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(relativeSeconds)8.1f s  %(message)s"))
    handler.addFilter(_stamp)
    logger = logging.getLogger("fleetc")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level)


@cli.command()
@click.argument("fleet", type=FILE)
@click.option(
    "--out", "-o", type=FOLDER, default=Path("dist"), show_default=True, help="Folder that gets one folder per device."
)
@click.option("--dump-passes", type=FOLDER, metavar="DIR", help="Write the model after every pass that changed it.")
@click.option(
    "--repeat",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Timed runs per batch size where it runs here.",
)
@click.option("--check-reproducible", is_flag=True, help="Build a second time from nothing and compare every file.")
@build_options
@child_options
@cache_option
@json_option
def build(fleet: Path, as_json: bool, check_reproducible: bool, **options: Any) -> None:
    """Build, verify and deliver every device class of a FLEET file."""
    from compiler.driver import build_fleet
    from compiler.reproduce import check_reproducible as check

    chosen = _options(options)
    report = build_fleet(fleet, chosen)
    devices = [_device_json(one) for one in report.devices]
    value: dict[str, Any] = {"out": str(report.out), "notes": report.notes, "devices": devices}
    _RESULT.update(value) if as_json else click.echo(show.fleet_text(report))
    report.raise_failures()
    if check_reproducible:
        check(fleet, chosen)
        value["reproducible"] = True
        click.echo("reproducible: a second build from nothing gave the same bytes", err=as_json)
    if as_json:
        _print_json(value)


@cli.command()
@click.argument("fleet", type=FILE)
@build_options
@json_option
def plan(fleet: Path, as_json: bool, **options: Any) -> None:
    """Print what would be done for each device of a FLEET file, and why, without touching a toolchain."""
    from compiler.errors import combine
    from compiler.jobs import plan_fleet

    _, jobs, missing = plan_fleet(fleet, BuildOptions(**options))
    value = {"plans": [job.plan.to_dict() for job in jobs], "missing": {k: e.to_dict() for k, e in missing.items()}}
    if as_json:
        _RESULT.update(value)
    elif jobs:
        click.echo("\n\n".join(show.plan_text(job.plan) for job in jobs))
    if missing:
        raise combine(list(missing.values()))
    if as_json:
        _print_json(value)


@cli.command()
@click.argument("artifact", type=FOLDER)
@click.option("--model", type=FILE, help="The original model to compare with; the artifact's border model by default.")
@click.option("--samples", type=FILE, help="Inputs: .npz, .npy or a folder of them; random ones by default.")
@child_options
@json_option
def verify(artifact: Path, as_json: bool, model: Path | None, samples: Path | None, **limits: Any) -> None:
    """Check an ARTIFACT's files against their digests, run it, and compare it with the reference again."""
    from compiler.delivered import verify_delivered
    from compiler.verify import verdict_to_dict

    delivered, verdict = verify_delivered(artifact, model=model, samples=samples, limits=_limits(limits))
    if as_json:
        _print_json({"device": delivered.manifest["device"], **verdict_to_dict(verdict)})
    else:
        click.echo(
            f"{delivered.manifest['device']}: {verdict.status}, {verdict.evidence}, tolerance {verdict.tolerance}"
        )


@cli.command()
@click.argument("artifact", type=FOLDER)
@click.argument("inputs", type=FILE)
@click.argument("outputs", type=FILE)
@child_options
@json_option
def run(artifact: Path, inputs: Path, outputs: Path, as_json: bool, **limits: Any) -> None:
    """Run an ARTIFACT once on INPUTS (.npz, or .npy for one input) and write OUTPUTS."""
    from compiler.delivered import run_delivered

    specs = run_delivered(artifact, inputs, outputs, limits=_limits(limits))
    if as_json:
        _print_json({"outputs": [asdict(spec) for spec in specs], "file": str(outputs)})
    else:
        click.echo(f"{outputs}: {', '.join(spec.name for spec in specs)}")


@cli.command()
@click.argument("artifact", type=FOLDER)
@click.option("--samples", type=FILE, help="Inputs: .npz, .npy or a folder of them; random ones by default.")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="NAME=N",
    help="Size of a free dimension, e.g. batch=8; the plan's opt by default.",
)
@click.option("--repeat", type=click.IntRange(min=1), default=100, show_default=True, help="Timed runs.")
@child_options
@json_option
def bench(
    artifact: Path, as_json: bool, samples: Path | None, sizes: tuple[str, ...], repeat: int, **limits: Any
) -> None:
    """Time an ARTIFACT on this machine, or count its instructions under the emulator."""
    from compiler.delivered import bench_delivered

    result = bench_delivered(artifact, samples=samples, sizes=_sizes(sizes), repeat=repeat, limits=_limits(limits))
    if as_json:
        _print_json(result)
        return
    figures = [show.latency_text(result["latency"])] if result["latency"] else []
    figures += (
        [show.instructions_text(result["instructions_per_inference"])] if result["instructions_per_inference"] else []
    )
    click.echo(
        f"{result['device']} {result['precision']}: {'; '.join(figures) or 'nothing measured'} ({result['evidence']})"
    )


@cli.command()
@click.argument("artifact", type=FOLDER)
@click.option("--node", metavar="NAME", help="What became of this node of the source model.")
@json_option
def inspect(artifact: Path, as_json: bool, node: str | None) -> None:
    """Show what an ARTIFACT is: its plan, passes, files and verdict; or what became of one node."""
    from compiler.manifest import read_artifact
    from compiler.trace import find_node

    found = read_artifact(artifact)
    if node is not None:
        matches = find_node(artifact, node)
        _print_json(matches) if as_json else click.echo(show.node_text(found.manifest, matches))
    elif as_json:
        _print_json({"manifest": found.manifest, "measurements": found.measurements})
    else:
        click.echo(show.manifest_text(found.manifest, found.measurements))


@cli.command()
@click.argument("first", type=FOLDER)
@click.argument("second", type=FOLDER)
@json_option
def diff(first: Path, second: Path, as_json: bool) -> None:
    """Compare two dist folders, or two devices' folders: inputs, plan, passes, files, verdicts."""
    from compiler.compare import compare_builds

    changes = compare_builds(first, second)
    _print_json([asdict(change) for change in changes]) if as_json else click.echo(show.changes_text(changes))


@cli.command()
@click.argument("artifact", type=FOLDER)
@child_options
@cache_option
@json_option
def finish(artifact: Path, as_json: bool, cache: Path, **limits: Any) -> None:
    """Complete a deferred ARTIFACT on the device it is for."""
    from compiler.delivered import finish_delivered
    from compiler.verify import verdict_to_dict

    verdict = finish_delivered(artifact, cache=cache, limits=_limits(limits))
    _print_json(verdict_to_dict(verdict)) if as_json else click.echo(
        f"{artifact}: finished, parity {verdict.status} ({verdict.evidence})"
    )


@cli.command()
@json_option
def targets(as_json: bool) -> None:
    """List the installed targets and whether their toolchains are there."""
    rows = [_target_row(name, point.dist.name if point.dist else "") for name, point in list_targets().items()]
    if as_json:
        _print_json(rows)
    else:
        click.echo(show.targets_text(rows))


@cli.group()
def profiles() -> None:
    """Hardware profiles: list, show, detect, check."""


@profiles.command("list")
@json_option
def profiles_list(as_json: bool) -> None:
    """List the built-in profiles."""
    from compiler.profile import list_profiles, load_profile

    found = [load_profile(name) for name in list_profiles()]
    if as_json:
        _print_json([{"name": one.name, "target": one.target, "description": one.description} for one in found])
    else:
        click.echo(
            show.table([(one.name, one.target, one.description) for one in found], ("profile", "target", "description"))
        )


@profiles.command("show")
@click.argument("profile")
@json_option
def profiles_show(profile: str, as_json: bool) -> None:
    """Print a PROFILE (a name or a file) with the provenance of its facts."""
    from compiler.profile import load_profile, to_dict, to_yaml

    found = load_profile(profile)
    _print_json(to_dict(found)) if as_json else click.echo(to_yaml(found), nl=False)


@profiles.command("detect")
@click.option("--out", "-o", type=FILE, help="Write the profile here instead of stdout.")
@click.option("--gpu", is_flag=True, help="The NVIDIA GPUs of this machine instead of its processor.")
@json_option
def profiles_detect(as_json: bool, out: Path | None, gpu: bool) -> None:
    """Print a profile of this machine, to use or to edit."""
    from compiler.detect import detect_gpu_profiles, detect_profile
    from compiler.errors import TargetUnavailable
    from compiler.profile import to_dict, to_yaml

    found = detect_gpu_profiles() if gpu else [detect_profile()]
    if not found:
        raise TargetUnavailable("no NVIDIA GPU was found", remedy="nvidia-smi must be there and list the GPU.")
    text = "---\n".join(to_yaml(one) for one in found)
    if out is not None:
        with output_errors(out):
            out.write_text(text, encoding="utf-8")
    if as_json:
        _print_json([to_dict(one) for one in found])
    else:
        click.echo(str(out) if out else text, nl=out is not None)


@profiles.command("check")
@click.argument("files", nargs=-1, required=True)
@json_option
def profiles_check(files: tuple[str, ...], as_json: bool) -> None:
    """Check profile FILES (or names): every key, unit, provenance and target option."""
    from compiler.errors import combine
    from compiler.profile import load_profile, validate_options

    problems: list[CompilerError] = []
    for file in files:
        try:
            profile = load_profile(file)
            validate_options(find_target(profile.target, where=file).Options, profile)
        except CompilerError as error:
            problems.append(error)
    if problems:
        raise combine(problems)
    _print_json({"valid": list(files)}) if as_json else click.echo(f"{len(files)} valid")


@cli.group()
def cache() -> None:
    """The store of finished stages: info, gc, export, import."""


@cache.command("info")
@cache_option
@json_option
def cache_info(cache: Path, as_json: bool) -> None:
    """Show where the store is and what it holds."""
    info = Store(cache).info()
    if as_json:
        _print_json({"root": str(info.root), "entries": info.entries, "bytes": info.bytes, "stages": info.stages})
        return
    rows = [(name, str(count), f"{size / show.MIB:.1f}") for name, (count, size) in info.stages.items()]
    click.echo(f"{info.root}: {info.entries} entries, {info.bytes / show.MIB:.1f} MiB")
    click.echo(show.table(rows, ("stage", "entries", "MiB")))


@cache.command("gc")
@click.option("--max-mib", type=click.IntRange(min=0), help="Keep at most this much, the most recently used.")
@click.option("--max-age-days", type=click.FloatRange(min=0), help="Remove what was not used for longer.")
@cache_option
@json_option
def cache_gc(cache: Path, as_json: bool, max_mib: int | None, max_age_days: float | None) -> None:
    """Remove what killed builds left, and what is old or too much."""
    freed = Store(cache).gc(
        max_bytes=None if max_mib is None else max_mib * show.MIB,
        max_age_s=None if max_age_days is None else max_age_days * 86400,
    )
    _print_json({"freed_bytes": freed}) if as_json else click.echo(f"freed {freed / show.MIB:.1f} MiB")


@cache.command("export")
@click.argument("file", type=FILE)
@cache_option
@json_option
def cache_export(file: Path, cache: Path, as_json: bool) -> None:
    """Write the store's entries into one tar FILE."""
    count = Store(cache).export(file)
    _print_json({"entries": count, "file": str(file)}) if as_json else click.echo(f"{file}: {count} entries")


@cache.command("import")
@click.argument("file", type=FILE)
@cache_option
@json_option
def cache_import(file: Path, cache: Path, as_json: bool) -> None:
    """Take the entries of an exported tar FILE, each checked against its digests."""
    count = Store(cache).import_(file)
    _print_json({"entries": count}) if as_json else click.echo(f"{count} new entries")


def main() -> NoReturn:
    """The console script: runs the command and turns every outcome into an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(_exit_code())


def _exit_code() -> int:
    _RESULT.clear()
    try:
        cli.main(standalone_mode=False)
        return 0
    except click.exceptions.Exit as stop:
        return int(stop.exit_code)
    except click.ClickException as error:
        return _failed(_usage(error))
    except CompilerError as error:
        return _failed(error)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: what was finished is in the cache; run the same command again to resume", err=True)
        return 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  the reader left; nothing more can be said
        return 0
    except Exception as error:
        return _failed(_bug(error))


def _failed(error: CompilerError) -> int:
    """Says what went wrong on stderr and, where JSON was asked for, in the one document on stdout."""
    click.echo(f"error: {error}", err=True)
    if "--json" in sys.argv[1:]:
        _print_json({**_RESULT, **error.to_dict()})
    return error.exit_code


def _usage(error: click.ClickException) -> UsageError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "fleetc"
    return UsageError(error.format_message(), where=command, remedy=f"`{command} --help` tells how it is called.")


def _bug(error: Exception) -> InternalError:
    with tempfile.NamedTemporaryFile(
        "w", prefix="fleetc-bug-", suffix=".txt", delete=False, encoding="utf-8"
    ) as report:
        report.write("".join(traceback.format_exception(error)))
    remedy = f"This is a bug of fleetc. Please report it with {report.name}."
    return InternalError(f"{type(error).__name__}: {error}", remedy=remedy)


_RESULT: dict[str, Any] = {}
"""What a command found before it failed: it goes into the same document as the failure."""

_STARTED = time.monotonic()


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _target_row(name: str, package: str) -> dict[str, Any]:
    try:
        tools = dict(find_target(name).toolchain())
    except CompilerError as error:
        return {"target": name, "package": package, "toolchain": {}, "problem": error.what}
    absent = [tool for tool, found in tools.items() if found == "absent"]
    return {
        "target": name,
        "package": package,
        "toolchain": tools,
        "problem": f"absent: {', '.join(absent)}" if absent else "",
    }


def _device_json(device: Any) -> dict[str, Any]:
    return {
        "device": device.device,
        "status": device.status,
        "folder": str(device.folder),
        **device.row,
        "error": device.error.to_dict() if device.error else None,
        "seconds": device.seconds,
    }


def _options(options: dict[str, Any]) -> BuildOptions:
    limits = {key: options.pop(key) for key in ("build_timeout", "build_memory")}
    return BuildOptions(**options, child=_limits(limits))


def _limits(limits: dict[str, Any]) -> ChildLimits:
    return ChildLimits(timeout_s=limits["build_timeout"], memory_mib=limits["build_memory"])


def _sizes(texts: tuple[str, ...]) -> dict[str, int]:
    sizes = {}
    for text in texts:
        name, _, size = text.partition("=")
        if not name or not size.isdigit() or int(size) < 1:
            raise UsageError(f"'{text}' is no NAME=N with N ≥ 1", where="--size", remedy="For example --size batch=8.")
        sizes[name] = int(size)
    return sizes


def _stamp(record: logging.LogRecord) -> bool:
    record.relativeSeconds = time.monotonic() - _STARTED
    return True
