"""Commands on what this machine has: targets, profiles, the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compiler.cli import text
from compiler.cli.options import FILE, cache_option, json_option, token_option
from compiler.cli.output import print_json
from compiler.errors import CompilerError
from compiler.fleet.validate import json_schema
from compiler.store import Store
from compiler.store.atomic import write_atomic
from compiler.store.disk import output_errors
from compiler.target import find_target, list_targets
from compiler.target.target import missing_packages


@click.command()
@json_option
def targets(as_json: bool) -> None:
    """List the installed targets and whether their toolchains are there."""
    rows = [_target_row(name, point.dist.name if point.dist else "") for name, point in list_targets().items()]
    if as_json:
        print_json(rows)
    else:
        click.echo(text.targets_text(rows))


@click.group()
def profiles() -> None:
    """Hardware profiles: list, show, detect, check."""


@profiles.command("list")
@json_option
def profiles_list(as_json: bool) -> None:
    """List the built-in profiles."""
    from compiler.fleet.profile import list_profiles, load_profile

    loaded = [load_profile(name) for name in list_profiles()]
    if as_json:
        print_json(
            [{"name": profile.name, "target": profile.target, "description": profile.description} for profile in loaded]
        )
    else:
        click.echo(
            text.table(
                [(profile.name, profile.target, profile.description) for profile in loaded],
                ("profile", "target", "description"),
            )
        )


@profiles.command("show")
@click.argument("profile")
@json_option
def profiles_show(profile: str, as_json: bool) -> None:
    """Print a PROFILE (a name or a file) with the provenance of its facts."""
    from compiler.fleet.profile import load_profile, to_dict, to_yaml

    loaded = load_profile(profile)
    print_json(to_dict(loaded)) if as_json else click.echo(to_yaml(loaded), nl=False)


@profiles.command("detect")
@click.option("--out", "-o", type=FILE, help="Write the profile here instead of stdout.")
@click.option("--gpu", is_flag=True, help="The NVIDIA GPUs of this machine instead of its processor.")
@json_option
def profiles_detect(as_json: bool, out: Path | None, gpu: bool) -> None:
    """Print a profile of this machine, to use or to edit."""
    from compiler.errors import TargetUnavailable
    from compiler.fleet.detect import detect_gpu_profiles, detect_profile
    from compiler.fleet.profile import to_dict, to_yaml

    loaded = detect_gpu_profiles() if gpu else [detect_profile()]
    if not loaded:
        raise TargetUnavailable("no NVIDIA GPU was found", remedy="nvidia-smi must be there and list the GPU.")
    document = "---\n".join(to_yaml(profile) for profile in loaded)
    if out is not None:
        with output_errors(out):
            write_atomic(out, document.encode())
    if as_json:
        print_json([to_dict(profile) for profile in loaded])
    else:
        click.echo(str(out) if out else document, nl=out is not None)


@profiles.command("check")
@click.argument("files", nargs=-1, required=True)
@json_option
def profiles_check(files: tuple[str, ...], as_json: bool) -> None:
    """Check profile FILES (or names): every key, unit, provenance and target option."""
    from compiler.errors import combine
    from compiler.fleet.profile import load_profile, profile_for, validate_options

    problems: list[CompilerError] = []
    for file in files:
        try:
            profile = load_profile(file)
            for target in profile.targets:
                validate_options(find_target(target, where=file).Options, profile_for(profile, target))
        except CompilerError as error:
            problems.append(error)
    if problems:
        raise combine(problems)
    print_json({"valid": list(files)}) if as_json else click.echo(f"{len(files)} valid")


@click.group()
def cache() -> None:
    """The store of finished stages: info, gc, export, import, push."""


@cache.command("info")
@cache_option
@json_option
def cache_info(cache: Path, as_json: bool) -> None:
    """Show where the store is and what it holds."""
    info = Store(cache).info()
    if as_json:
        print_json({"root": str(info.root), "entries": info.entries, "bytes": info.bytes, "stages": info.stages})
        return
    rows = [(name, str(count), f"{size / text.MIB:.1f}") for name, (count, size) in info.stages.items()]
    click.echo(f"{info.root}: {info.entries} entries, {info.bytes / text.MIB:.1f} MiB")
    click.echo(text.table(rows, ("stage", "entries", "MiB")))


@cache.command("gc")
@click.option("--max-mib", type=click.IntRange(min=0), help="Keep at most this much, the most recently used.")
@click.option("--max-age-days", type=click.FloatRange(min=0), help="Remove what was not used for longer.")
@cache_option
@json_option
def cache_gc(cache: Path, as_json: bool, max_mib: int | None, max_age_days: float | None) -> None:
    """Remove what killed builds left, and what is old or too much."""
    freed = Store(cache).gc(
        max_bytes=None if max_mib is None else max_mib * text.MIB,
        max_age_s=None if max_age_days is None else max_age_days * 86400,
    )
    print_json({"freed_bytes": freed}) if as_json else click.echo(f"freed {freed / text.MIB:.1f} MiB")


@cache.command("export")
@click.argument("file", type=FILE)
@cache_option
@json_option
def cache_export(file: Path, cache: Path, as_json: bool) -> None:
    """Write the store's entries into one tar FILE."""
    count = Store(cache).export(file)
    print_json({"entries": count, "file": str(file)}) if as_json else click.echo(f"{file}: {count} entries")


@cache.command("import")
@click.argument("file", type=FILE)
@cache_option
@json_option
def cache_import(file: Path, cache: Path, as_json: bool) -> None:
    """Take the entries of an exported tar FILE, each checked against its digests."""
    count = Store(cache).import_(file)
    print_json({"entries": count}) if as_json else click.echo(f"{count} new entries")


@cache.command("push")
@click.argument("url")
@click.option("--key", required=True, type=FILE, help="The private key to sign with; `fleetc keygen` makes one.")
@token_option
@cache_option
@json_option
def cache_push(url: str, key: Path, remote_cache_token: str, cache: Path, as_json: bool) -> None:
    """Put the store's entries into the shared cache at URL, each compared with its digests and signed."""
    from compiler.store.keys import read_private_key
    from compiler.store.remote import open_signing

    remote = open_signing(url, read_private_key(key), token=remote_cache_token)
    entries = Store(cache).entries()
    count = sum(remote.upload(folder) for folder in entries)
    if as_json:
        print_json({"entries": len(entries), "pushed": count, "bytes": remote.counts.pushed_bytes})
    else:
        click.echo(f"{url}: {count} new entries of {len(entries)}, {remote.counts.pushed_bytes / text.MIB:.1f} MiB")


def _target_row(name: str, package: str) -> dict[str, Any]:
    try:
        target = find_target(name)
        tools, options, absent = dict(target.toolchain()), json_schema(target.Options), missing_packages(target)
    except CompilerError as error:
        return {"target": name, "package": package, "toolchain": {}, "options": {}, "problem": error.what}
    return {
        "target": name,
        "package": package,
        "toolchain": tools,
        "options": options,
        "problem": f"absent: {', '.join(absent)}" if absent else "",
    }
