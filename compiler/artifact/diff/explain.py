"""Which change explains which: a fact that changed, and those of the facts that feed it that changed too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.artifact.diff.facts import Fact
from compiler.store import canonical_json

DELIVERED = "files"
"""The fact that only delivered devices have."""


@dataclass(frozen=True)
class Changed:
    """A fact that differs, as both builds have it; None where one of them has no such thing."""

    before: Fact | None
    after: Fact | None

    @property
    def fact(self) -> Fact:
        """The later one that is there."""
        return next(fact for fact in (self.after, self.before) if fact)

    @property
    def feeds(self) -> tuple[str, ...]:
        """What feeds it in either build."""
        return tuple(dict.fromkeys(feed for fact in (self.before, self.after) if fact for feed in fact.feeds))


@dataclass(frozen=True)
class Change:
    """One thing that differs.

    Args:
        device: Device class it belongs to.
        section: that of the fact, or `build` for a device that one of the builds lacks.
        name: Its name.
        before: Its value in the first build; None if it is not there.
        after: Its value in the second.
        was: `before` in words.
        now: `after` in words.
        brief: Both in words without their reasons, for where the change is named as the cause of another.
        because: Names of the changes of this device that explain it, most telling first.
        note: What it means where no other change explains it; empty where one does.
        is_opaque: Whether it says no more than that bytes differ.
    """

    device: str
    section: str
    name: str
    before: Any
    after: Any
    was: str = "absent"
    now: str = "absent"
    because: tuple[str, ...] = ()
    note: str = ""
    is_opaque: bool = False
    brief: tuple[str, str] = ("absent", "absent")


def explain(device: str, before: Mapping[str, Fact], after: Mapping[str, Fact]) -> Iterator[Change]:
    """The changes of one device, cause before effect, each with what explains it.

    Args:
        device: Its name.
        before: Its facts in the first build.
        after: Those in the second.
    """
    names = [name for name in dict.fromkeys((*before, *after)) if _value(before, name) != _value(after, name)]
    if not (DELIVERED in before and DELIVERED in after):  # what nobody made is no difference
        names = [name for name in names if name in before and name in after]
    changed = {name: Changed(before.get(name), after.get(name)) for name in names}
    for name in names:
        yield _change(device, name, changed)


def _change(device: str, name: str, changed: Mapping[str, Changed]) -> Change:
    pair = changed[name]
    because = tuple(_causes(name, changed))
    was, now = _text(pair.before), _text(pair.after)
    return Change(
        device,
        pair.fact.section,
        name,
        pair.before.value if pair.before else None,
        pair.after.value if pair.after else None,
        was,
        now,
        because,
        "" if because else pair.fact.alone,
        pair.fact.is_opaque,
        (_brief(pair.before) or was, _brief(pair.after) or now),
    )


def _causes(name: str, changed: Mapping[str, Changed]) -> list[str]:
    """The nearest changes that feed one, without the parts and the causes of a relative of theirs that is named."""
    causes = list(dict.fromkeys(_feeding(name, changed, frozenset())))
    behind = {other: set(_feeding(other, changed, frozenset())) for other in causes}
    named = {cause for other in causes for cause in behind[other] if _family(cause) == _family(other)}
    parts = {cause for cause in causes for other in causes if cause.startswith(f"{other}.")}
    return [cause for cause in causes if cause not in named | parts]


def _feeding(name: str, changed: Mapping[str, Changed], seen: frozenset[str]) -> Iterator[str]:
    """The changes that feed one; a mere digest stands for those that feed it, if there are any."""
    seen |= {name}
    for feed in changed[name].feeds:
        for other in changed:
            if other in seen or not (other == feed.removeprefix("=") or other.startswith(f"{feed}.")):
                continue
            behind = list(_feeding(other, changed, seen)) if changed[other].fact.is_opaque else []
            yield from behind or [other]


def _family(name: str) -> str:
    return name.split(".", 1)[0]


def _value(facts: Mapping[str, Fact], name: str) -> Any:
    return facts[name].value if name in facts else None


def _brief(fact: Fact | None) -> str:
    return fact.brief if fact else ""


def _text(fact: Fact | None) -> str:
    if fact is None:
        return "absent"
    return fact.shown or (fact.value if isinstance(fact.value, str) else canonical_json(fact.value))
