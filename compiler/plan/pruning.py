"""How much of a device's model is pruned: nothing, a stated share of its work, or what a search finds to pay."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from compiler.errors import FleetError, UsageError
from compiler.evaluate.gates import Constraints
from compiler.fleet import DeviceClass, Fleet, Prune, read_prune


@dataclass(frozen=True)
class Pruning:
    """The decision on pruning.

    Args:
        ratio: Share of the multiply-accumulates to cut, 0 to 1; 0 cuts nothing.
        is_searched: Whether a search may raise it.
        reason: Why.
        recover_s: Seconds that each pruned form may be trained for; 0 trains none.
    """

    ratio: float
    is_searched: bool
    reason: str
    recover_s: float = 0.0

    @property
    def value(self) -> str:
        """The decision as the plan prints it."""
        cut = "auto" if self.is_searched else f"{self.ratio:g}" if self.ratio else "off"
        return f"{cut}, at most {self.recover_s / 60:g} min of recovery" if self.recovers else cut

    @property
    def why(self) -> str:
        """The reason, and what recovery means, as the plan prints it."""
        if not self.recovers:
            return self.reason
        trained = f"each pruned form is trained for at most {self.recover_s / 60:g} min"
        return f"{self.reason}; {trained}, and what that gives differs from run to run, as any work by the clock"

    @property
    def reads_data(self) -> bool:
        """Whether it needs calibration data."""
        return self.is_searched or self.ratio > 0

    @property
    def recovers(self) -> bool:
        """Whether anything is trained."""
        return self.reads_data and self.recover_s > 0


UNPRUNED = Pruning(0.0, False, "the default: the model keeps all of its channels")


def parse_prune(text: str) -> Prune:
    """What `--prune` says.

    Raises:
        UsageError: It is neither off, auto, nor a number between 0 and 1.
    """
    try:
        return read_prune(text if text in ("off", "auto") else float(text))
    except ValueError as error:
        # float() itself says only that it could not convert
        message = str(error) if str(error).startswith("must") else "must be off, auto, or a ratio such as 0.3"
        raise UsageError(f"{message}, got '{text}'", where="--prune", remedy="For example --prune auto.") from error


def choose_pruning(asked: Prune | None, fleet: Fleet, *, constraints: Constraints, where: str) -> Pruning:
    """The decision for one device, before anything is built.

    Args:
        asked: `off`, `auto`, or a ratio; None where nobody asks.
        fleet: Where calibration data are named.
        constraints: The device's gates.
        where: Who asked: `--prune`, or the place in the fleet file.

    Raises:
        FleetError: It needs data that the fleet file does not name.
    """
    if asked is None:
        return UNPRUNED
    if asked == "off":
        return Pruning(0.0, False, "asked for")
    if fleet.calibration is None:
        raise FleetError(
            "pruning needs calibration data: what a channel is worth, and what makes up for it, is read from them",
            where=where,
            remedy="Add `calibration: {path: …}` with a hundred or more typical inputs, or `prune: off`.",
        )
    if asked != "auto":
        judged = (
            "" if constraints.task else "; nothing judges what it costs: there is no evaluation and no accuracy limit"
        )
        return Pruning(float(asked), False, f"asked for: {float(asked):.0%} of the multiply-accumulates{judged}")
    if not constraints.task:
        raise FleetError(
            "prune: auto has nothing to judge by: there is no evaluation and no limit on accuracy",
            where=where,
            remedy="Add `evaluation: {task: …, path: …}` or `limits: {accuracy_drop_pct: …}`, or name a ratio.",
        )
    return Pruning(
        0.0,
        True,
        "once a precision is found, as much is cut as holds the accuracy limit, and kept if this device gets faster",
    )


def asked_of(text: str, device: DeviceClass) -> tuple[Prune | None, str]:
    """What is asked of a device, and by whom: the command line over the fleet file."""
    return (parse_prune(text), "--prune") if text else (device.prune, device.place)


def choose_recovery(minutes: float | None, device: DeviceClass, *, pruning: Pruning, is_overruled: bool) -> Pruning:
    """The decision with the training that the command line or the fleet file asks for.

    Args:
        minutes: What `--recover` says; None where it is not given.
        device: Where the fleet file may ask.
        pruning: The decision without it.
        is_overruled: Whether the command line decided about pruning: the fleet file's recovery goes where that goes.

    Raises:
        UsageError: The device is not pruned, or the time is none.
        TargetUnavailable: PyTorch is not installed.
    """
    asked = device.recover_minutes if minutes is None else minutes
    if asked is None or (minutes is None and is_overruled and not pruning.reads_data):
        return pruning
    # whoever asked is named: the line of the fleet file, or the option
    error, where = (FleetError, device.place) if minutes is None else (UsageError, "--recover")
    if not math.isfinite(asked):
        raise error("must be a number of minutes", where=where, remedy="For example --recover 10.")
    if not pruning.reads_data:
        raise error(
            f"recovery trains a pruned model, and {device.name} is not pruned",
            where=where,
            remedy="Ask for pruning, too (`prune: auto` or a ratio, `--prune`), or for no recovery.",
        )
    # imported here: a plan without recovery needs nothing of it
    from compiler.compress.recover import check_torch

    # now, not after an hour of search: PyTorch is an extra that many do not install
    check_torch()
    return replace(pruning, recover_s=60 * asked)
