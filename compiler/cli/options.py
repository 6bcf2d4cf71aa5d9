"""Options that several commands share, and the values they become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from platformdirs import user_cache_path

from compiler.errors import UsageError
from compiler.fleet import Range
from compiler.fleet.cut import parse_cuts
from compiler.fleet.request import ModelRequest
from compiler.plan import BuildOptions, SearchEffort
from compiler.plan.halves import parse_first, parse_last
from compiler.target.isolate import ChildLimits

if TYPE_CHECKING:
    from compiler.store.remote import RemoteCache

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path)


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


def remote_options(function: F) -> F:
    """The shared cache, and whose entries of it are used."""
    for option in (
        click.option(
            "--remote-cache",
            envvar="FLEETC_REMOTE_CACHE",
            default="",
            metavar="URL",
            help="Shared cache of finished stages: http(s)://, s3://, gs://, az:// or file:// (FLEETC_REMOTE_CACHE).",
        ),
        click.option(
            "--trusted-key",
            "trusted_keys",
            type=FILE,
            multiple=True,
            envvar="FLEETC_TRUSTED_KEYS",
            metavar="FILE",
            help="Public key whose entries of it are used; may be repeated (FLEETC_TRUSTED_KEYS, separated by colons).",
        ),
        click.option(
            "--remote-cache-ca",
            type=FILE,
            envvar="FLEETC_REMOTE_CACHE_CA",
            metavar="FILE",
            help="Certificate of the authority that signed its server's (FLEETC_REMOTE_CACHE_CA).",
        ),
        token_option,
    ):
        function = option(function)
    return function


def token_option(function: F) -> F:
    """The token of a shared cache's server."""
    option = click.option(
        "--remote-cache-token",
        envvar="FLEETC_REMOTE_CACHE_TOKEN",
        default="",
        metavar="TOKEN",
        help="Token of its server; with one, what is finished here is offered to it (FLEETC_REMOTE_CACHE_TOKEN).",
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
    stop = click.option("--stop-after", type=int, metavar="N", help="Run passes 1 to N only, to find the one at fault.")
    return stop(request_options(function))


def request_options(function: F) -> F:
    """What may be asked of a build wherever it is made: here, or by the build server."""
    for option in (
        click.option(
            "--device", "-d", "devices", multiple=True, metavar="NAME", help="Only this device; may be repeated."
        ),
        click.option(
            "--target",
            "targets",
            multiple=True,
            metavar="NAME",
            callback=lambda context, option, value: tuple(dict.fromkeys(value)),
            help="Target of every device, over the profile's and the fleet file's; of several the best is delivered.",
        ),
        click.option(
            "--precision",
            default="",
            metavar="NAME",
            help="Precision of every device, over the fleet file's: auto, fp32, fp16, bf16, fp16-weights, int8, fp8, "
            "int8-weights, int4-weights, int4-weights-int8.",
        ),
        click.option(
            "--prune",
            default="",
            metavar="HOW",
            help="Channel pruning of every device, over the fleet file's: off, auto, or a share of the "
            "multiply-accumulates such as 0.3.",
        ),
        click.option(
            "--recover",
            "recover_minutes",
            type=click.FloatRange(min=0, min_open=True),
            metavar="MINUTES",
            help="Train each pruned form for at most so long, over the fleet file's; needs PyTorch.",
        ),
        click.option(
            "--skip-pass", "skip_passes", multiple=True, metavar="PASS", help="Leave a pass out; may be repeated."
        ),
        click.option(
            "--search",
            type=click.Choice([effort.value for effort in SearchEffort]),
            default=SearchEffort.QUICK.value,
            show_default=True,
            callback=lambda context, option, value: SearchEffort(value),
            help="Leave out candidates that cannot be faster than what passes already, or try all of them.",
        ),
        click.option(
            "--search-budget",
            type=click.IntRange(min=1),
            default=24,
            show_default=True,
            metavar="TRIALS",
            help="Most trials the search for a precision may make for one device.",
        ),
        click.option("--strict", is_flag=True, help="Fail a build by every gate that nobody could judge."),
    ):
        function = option(function)
    return function


def model_options(function: F) -> F:
    """What a fleet file says otherwise: for a model that is built without one."""
    for option in (
        click.option(
            "--profile",
            "-p",
            "profiles",
            multiple=True,
            metavar="NAME",
            help="With an ONNX model in place of a fleet file: the hardware to build for; may be repeated.",
        ),
        click.option("--calibration", type=FILE, metavar="PATH", help="With --profile: sample inputs."),
        click.option("--evaluation", type=FILE, metavar="PATH", help="With --profile: labelled data, and --task."),
        click.option("--task", default="", metavar="NAME", help="What accuracy on them is: verification, …"),
        click.option(
            "--limit",
            "limits",
            multiple=True,
            metavar="NAME=NUMBER",
            help="With --profile: a limit by its name in fleet files, such as accuracy_drop_pct=1; may be repeated.",
        ),
        click.option("--batch", default="", metavar="N", help="With --profile: batch size, or MIN:OPT:MAX."),
        click.option(
            "--cut",
            "cuts",
            multiple=True,
            metavar="INPUT,OUTPUT",
            help="With --profile: build only the part from one value to another, so that tokenizers, texts and "
            "post-processing stay outside; may be repeated for more values.",
        ),
    ):
        function = option(function)
    return function


def half_options(function: F) -> F:
    """`--from` and `--to`."""
    first = click.option(
        "--from", "first", default="", metavar="STAGE", help="Start at `compile`: the model is a border model."
    )
    last = click.option(
        "--to",
        "last",
        default="",
        metavar="STAGE",
        help="End with the model after rewrite, prune, recover, quantize or specialize (the border model).",
    )
    return first(last(function))


def json_option(function: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(function)


def events_option(function: F) -> F:
    """`--json-events`; `compiler.cli.Fleetc` obeys it, before anything can go wrong."""
    return click.option(
        "--json-events", is_flag=True, expose_value=False, help="Events on stderr, one JSON document per line."
    )(function)


def options_of(options: dict[str, Any]) -> BuildOptions:
    """The options of `build`, child limits among them, as one value."""
    limits = {key: options.pop(key) for key in ("build_timeout", "build_memory")}
    if options.pop("no_emulate"):
        options["emulate_s"] = 0.0
    first, last = parse_first(options.pop("first")), parse_last(options.pop("last"))
    names = ("remote_cache", "trusted_keys", "remote_cache_token", "remote_cache_ca")
    remote = _remote(*(options.pop(name) for name in names))
    return BuildOptions(**options, first=first, last=last, child_limits=limits_of(limits), remote=remote)


def _remote(url: str, keys: tuple[Path, ...], token: str, ca: Path | None) -> RemoteCache | None:
    """The shared cache that was named; None where none was."""
    if not url:
        return None
    from compiler.store.keys import read_public_keys
    from compiler.store.remote import RemoteCache

    return RemoteCache(url, read_public_keys(keys), token, ca)


def request_of(options: dict[str, Any]) -> ModelRequest:
    """What `model_options` gave, taken out of the options, as one value."""
    return ModelRequest(
        profiles=options.pop("profiles"),
        calibration=options.pop("calibration"),
        evaluation=options.pop("evaluation"),
        task=options.pop("task"),
        limits=_numbers(options.pop("limits")),
        batch=_range(options.pop("batch")),
        cut=parse_cuts(options.pop("cuts")),
    )


def _numbers(texts: tuple[str, ...]) -> dict[str, float]:
    """`NAME=NUMBER` texts as a mapping; which names there are is the fleet's to say."""
    numbers = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            numbers[name] = float(number)
        except ValueError as error:
            remedy = "For example --limit accuracy_drop_pct=1."
            raise UsageError(f"'{text}' is no NAME=NUMBER", where="--limit", remedy=remedy) from error
    return numbers


def _range(text: str) -> Range | None:
    if not text:
        return None
    sizes = [int(size) for size in text.split(":") if size.isdigit() and int(size) > 0]
    try:
        least, opt, most = sizes * 3 if len(sizes) == 1 and text.isdigit() else sizes
        return Range(least, opt, most)
    except ValueError as error:
        remedy = "For example --batch 8, or --batch 1:4:16: the smallest, the one to be fastest at, the largest."
        raise UsageError(f"'{text}' is no batch size and no MIN:OPT:MAX", where="--batch", remedy=remedy) from error


def limits_of(limits: dict[str, Any]) -> ChildLimits:
    """What `child_options` gave, as one value."""
    return ChildLimits(timeout_s=limits["build_timeout"], memory_mib=limits["build_memory"])


def sizes_of(texts: tuple[str, ...]) -> dict[str, int]:
    """`NAME=N` texts as a mapping.

    Raises:
        UsageError: A text is no name with a positive number.
    """
    sizes = {}
    for text in texts:
        name, _, size = text.partition("=")
        if not name or not size.isdigit() or int(size) < 1:
            raise UsageError(f"'{text}' is no NAME=N with N ≥ 1", where="--size", remedy="For example --size batch=8.")
        sizes[name] = int(size)
    return sizes
