"""Which precisions a device's build may end in: the one asked for, the target's first, or all that a search tries."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compiler.errors import FleetError
from compiler.evaluate.gates import Constraints
from compiler.fleet import DeviceClass, Fleet
from compiler.target.capability import Capability, PrecisionRule

BASELINE = "fp32"
"""The precision that costs no accuracy: what the others are measured against."""

_FLOAT_CACHE = "its cache is in float32; one in int8 goes with weights in blocks"


@dataclass(frozen=True)
class Candidates:
    """The precisions to try, most promising first.

    Args:
        rules: What the target says of each.
        value: The decision as the plan prints it: `auto`, or a precision's name.
        reason: Why these.
        left_out: Precision → why it is not tried.
    """

    rules: tuple[PrecisionRule, ...]
    value: str
    reason: str
    left_out: dict[str, str]


def choose_candidates(
    asked: str,
    capability: Capability,
    fleet: Fleet,
    device: DeviceClass,
    *,
    constraints: Constraints,
    where: str,
    is_made: bool = False,
) -> Candidates:
    """The candidates of one device.

    Args:
        asked: `auto`, or a precision's name.
        capability: The target's, on the device's profile.
        fleet: Where calibration data are named.
        device: The device class.
        constraints: Its gates.
        where: Who asked: `--precision`, or the place in the fleet file.
        is_made: Whether the model is in its precision already, so that no data are needed to bring it there.

    Raises:
        FleetError: The precision cannot be had, or needs data that the fleet file does not name.
    """
    if asked != "auto":
        forced = _forced(asked, capability, None if is_made else fleet, device, where)
        return forced if is_made or not constraints.any else _with_forms(forced, capability)
    if not constraints.any:
        # targets list them in order of preference
        first = capability.precisions[0]
        reason = (
            f"auto takes what the target puts first: {first.reason}; nothing lower is chosen "
            "unasked as long as no accuracy gate judges it"
        )
        return Candidates((first,), first.name, reason, {})
    # left out with the reason, not dropped: the plan and the manifest name what was not tried
    left_out = {rule.name: why for rule in capability.precisions if (why := _why_not(rule, fleet, device, constraints))}
    rules = tuple(
        sorted((rule for rule in capability.precisions if rule.name not in left_out), key=lambda rule: -rule.gain)
    )
    names = ", ".join(rule.name for rule in rules)
    reason = f"search among {names}, most promising first{_without(left_out)}"
    return Candidates(rules, "auto", reason, left_out)


def with_cache(candidates: Candidates, capability: Capability, device: DeviceClass, target: str) -> Candidates:
    """The candidates with the cache of a language model in the format that the fleet file asks for.

    Args:
        candidates: The precisions to try.
        capability: Of the target.
        device: The device class.
        target: The target's name.

    Raises:
        FleetError: The target, or every candidate, keeps the cache in float32.
    """
    if device.generation is None or device.generation.cache == "float32":
        return candidates
    if not capability.narrow_cache:
        raise FleetError(
            f"target '{target}' has no cache in int8 for {device.profile}",
            where=device.place,
            remedy="Leave `generation: {cache: …}` out, or take target tvm for an ARM profile.",
        )
    rules = tuple(
        replace(rule, scheme=replace(rule.scheme, rounds_cache=True))
        for rule in candidates.rules
        if rule.scheme is not None and rule.scheme.weights is not None
    )
    others = {rule.name: _FLOAT_CACHE for rule in candidates.rules if rule.name not in {own.name for own in rules}}
    if not rules:
        raise FleetError(
            f"precision {candidates.value}: {_FLOAT_CACHE}",
            where=device.place,
            remedy="Take precision int4-weights-int8, or leave `generation: {cache: …}` out.",
        )
    return replace(candidates, rules=rules, left_out={**candidates.left_out, **others})


def _forced(asked: str, capability: Capability, fleet: Fleet | None, device: DeviceClass, where: str) -> Candidates:
    rules = {rule.name: rule for rule in capability.precisions}
    if asked not in rules:
        known = ", ".join(f"{rule.name} ({rule.reason})" for rule in capability.precisions)
        why = capability.precision_refusals.get(asked, f"the target of {device.profile} has no such precision")
        raise FleetError(
            f"precision {asked} cannot be had: {why}",
            where=where,
            remedy=f"{device.profile} can be built in: {known}.",
        )
    # random inputs would do for a build to go through, and for results to be wrong
    if fleet is not None and _lacks_data(rules[asked], fleet):
        raise FleetError(
            f"precision {asked} needs calibration data: ranges observed on random inputs would be those of noise",
            where=where,
            remedy="Add `calibration: {path: …}` with a hundred or more typical inputs.",
        )
    if fleet is not None and _lacks_use(rules[asked], device):
        raise FleetError(
            f"precision {asked} is chosen by the answers of a language model, and the fleet file names no use as one",
            where=where,
            remedy="Add `generation: {context: 1024, prefill: 256}`, or take another precision.",
        )
    return Candidates((rules[asked],), asked, f"asked for; {rules[asked].reason}", {})


def _with_forms(forced: Candidates, capability: Capability) -> Candidates:
    """The precision that is asked for with its other forms, the most promising first: the limits judge all."""
    (rule,) = forced.rules
    forms = [other for other in capability.precisions if other.form_of == rule.name]
    if not forms:
        return forced
    rules = tuple(sorted((rule, *forms), key=lambda rule: -rule.gain))
    names = ", ".join(other.name for other in rules)
    return Candidates(rules, rule.name, f"asked for; search among its forms {names}, most promising first", {})


def _why_not(rule: PrecisionRule, fleet: Fleet, device: DeviceClass, constraints: Constraints) -> str:
    """Why a search does not try a precision; empty where it does."""
    if _lacks_data(rule, fleet):
        return "the fleet file names no calibration data"
    if _lacks_use(rule, device):
        return "its formats are chosen by a language model's answers, and the fleet file has no `generation`"
    if rule.scheme is not None and not constraints.task:
        return "no evaluation and no limit on accuracy: nothing would judge what it costs"
    return ""


def _lacks_use(rule: PrecisionRule, device: DeviceClass) -> bool:
    """Whether formats of weights would be chosen by answers that the model does not give."""
    return rule.scheme is not None and rule.scheme.weights is not None and device.generation is None


def _lacks_data(rule: PrecisionRule, fleet: Fleet) -> bool:
    return rule.scheme is not None and rule.scheme.needs_calibration and fleet.calibration is None


def _without(left_out: dict[str, str]) -> str:
    return "".join(f"; not {name}: {why}" for name, why in left_out.items())
