"""The command line: parses, calls, prints. Results go to stdout, progress and errors to stderr."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import tempfile
import traceback
from importlib.metadata import EntryPoint, entry_points
from typing import NoReturn

import click

from compiler.cli.artifact import bench, finish, inspect, run, verify
from compiler.cli.fleet import build, diff, plan
from compiler.cli.machine import cache, profiles, targets
from compiler.cli.output import Session, print_json
from compiler.cli.progress import JsonLines, Terminal
from compiler.cli.report import report
from compiler.cli.trust import keygen, sign
from compiler.cli.tune import tune
from compiler.driver.events import Level
from compiler.errors import CompilerError, InternalError, Interrupted, UsageError
from compiler.store.scratch import remove_abandoned

EXIT_CODES = """\b
Exit codes: 0 done · 1 a bug of fleetc · 2 usage, profile, fleet or data file · 3 model invalid or not
supported · 4 toolchain, device or disk space missing · 5 a gate failed · 6 some devices failed, the
others were delivered · 130 interrupted, run again to resume"""


COMMANDS = "fleetc.commands"
"""The entry points by which other packages add commands; each is loaded when it is called, or listed by --help."""


class Fleetc(click.Group):
    """The command, which knows before it understands all of a call whether its failures are to be JSON."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Our own commands and those of other packages."""
        return sorted({*super().list_commands(ctx), *_added_commands()})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """A command of ours, or one that another package adds."""
        return super().get_command(ctx, name) or _load_command(_added_commands().get(name))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Notes the options that say how to answer; a call that is refused is answered so too."""
        session = ctx.ensure_object(Session)
        # by hand: click may refuse the call before it has understood these options
        session.as_json, session.as_events = "--json" in args, "--json-events" in args
        if session.as_events:
            session.reporter = JsonLines(least=logging.INFO)
        return super().parse_args(ctx, args)


@click.group(
    cls=Fleetc,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="fleetc")
@click.option("--quiet", "-q", is_flag=True, help="Only warnings and errors on stderr.")
@click.option("--verbose", "-v", is_flag=True, help="Every stage, cache keys part by part, and what the store does.")
@click.pass_obj
def cli(session: Session, quiet: bool, verbose: bool) -> None:
    """One ONNX model in; for every device class of a fleet, one build, verified, with its reasons."""
    _report(session, logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    remove_abandoned()  # temporary folders of runs that were killed


ON_ARTIFACTS = (verify, run, bench, inspect, diff, report, finish, sign)
for command in (build, plan, *ON_ARTIFACTS, tune, targets, profiles, cache, keygen):
    cli.add_command(command)


def _added_commands() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=COMMANDS)}


def _load_command(point: EntryPoint | None) -> click.Command | None:
    command = point.load() if point is not None else None
    return command if isinstance(command, click.Command) else None


def main() -> NoReturn:
    """The console script: runs the command and turns every outcome into an exit code."""
    # as Ctrl-C: children are killed, locks and temporary folders are cleared up
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = _exit_code()
    if code == Interrupted.exit_code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # everything is cleared up; unloading the toolchains takes longer than anybody waits
    sys.exit(code)


def _exit_code() -> int:
    session = Session()
    try:
        _invoke(session)
        return 0
    except click.exceptions.Exit as stop:
        return int(stop.exit_code)
    except click.ClickException as error:
        return _failed(session, _usage(error))
    except CompilerError as error:
        return _failed(session, error)
    except (KeyboardInterrupt, click.Abort):
        again = shlex.join(["fleetc", *sys.argv[1:]])
        session.tell(
            f"interrupted: what was finished is in the cache; run the same command again to resume:\n  {again}"
        )
        return Interrupted.exit_code
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  the reader left; nothing more can be said
        return 0
    except Exception as error:
        return _failed(session, _bug(error))


def _report(session: Session, least: int) -> None:
    """Sends events and the log to stderr, in the form that was asked for."""
    session.reporter = JsonLines(least=least) if session.as_events else Terminal(least=least)
    logger = logging.getLogger("fleetc")
    # replaced, not added: tests call the command more than once in one process
    logger.handlers, logger.propagate = [session.reporter], False
    logger.setLevel(least)


def _invoke(session: Session) -> None:
    """Runs the command; whatever comes of it, its last line of progress does not stand in the way of what is said."""
    try:
        cli.main(standalone_mode=False, obj=session)
    finally:
        if session.reporter is not None:
            session.reporter.close()


def _failed(session: Session, error: CompilerError) -> int:
    """Says what went wrong on stderr and, where JSON was asked for, in the one document on stdout."""
    session.tell(f"error: {error}\n  {type(error).__name__}: {error.page}", Level.ERROR)
    if session.as_json:
        print_json({**session.partial, **error.to_dict(), "page": error.page})
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
