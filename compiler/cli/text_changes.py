"""Differences between two builds as text for a terminal: cause before effect, each with what explains it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from compiler.cli.text import COLUMNS

if TYPE_CHECKING:
    from compiler.artifact.diff import Change

FAMILIES = ("layer", "kernel")
"""Kinds of facts that there are dozens of: those that changed alike share a line."""

MOST_NAMES = 3


def changes_text(changes: Sequence[Change]) -> str:
    """Every change, by device and section; what changed for every device alike stands once, above them."""
    if not changes:
        return "no difference"
    devices = dict.fromkeys(change.device for change in changes)
    common = _common(changes, len(devices))
    blocks = [_block("every device", [c for c in changes if c.device == next(iter(devices))], common, is_common=True)]
    blocks += [_block(name, [c for c in changes if c.device == name], common, is_common=False) for name in devices]
    return "\n\n".join(filter(None, blocks))


def _common(changes: Iterable[Change], devices: int) -> set[tuple[str, str, str]]:
    """What was given to several devices, and changed for all of them in the same way."""
    if devices < 2:
        return set()
    keys = [_key(change) for change in changes if change.section in ("inputs", "tools")]
    return {key for key in keys if keys.count(key) == devices}


def _key(change: Change) -> tuple[str, str, str]:
    return change.name, change.was, change.now


def _block(title: str, changes: Sequence[Change], common: set[tuple[str, str, str]], *, is_common: bool) -> str:
    words = {change.name: f"{change.name} {' → '.join(change.brief)}" for change in changes}
    shown = [change for change in changes if (_key(change) in common) == is_common and not _is_implied(change, words)]
    lines, section = [], ""
    for group in _grouped(shown):
        if group[0].section != section:
            section = group[0].section
            lines.append(f"  {section}")
        lines += map(_cut, _lines(group, words))
    return "\n".join([title, *lines]) if lines else ""


def _is_implied(change: Change, words: Mapping[str, str]) -> bool:
    """A digest whose causes stand above it, and the parts of what is there in one build only."""
    is_part = None in (change.before, change.after) and change.name.rpartition(".")[0] in words
    return is_part or (change.is_opaque and bool(change.because))


def _grouped(changes: Iterable[Change]) -> list[list[Change]]:
    """Changes in their order; layers and kernels that changed alike are one group."""
    groups: dict[object, list[Change]] = {}
    for change in changes:
        family = change.name.split(".", 1)[0]
        alike = (family, change.was, change.now, change.because) if family in FAMILIES else change.name
        groups.setdefault(alike, []).append(change)
    return list(groups.values())


def _lines(group: Sequence[Change], words: Mapping[str, str]) -> Iterator[str]:
    first = group[0]
    yield f"    {_name(group)}: {first.was} → {first.now}{_percent(first)}"
    if first.because:
        for index, name in enumerate(first.because[:MOST_NAMES]):
            yield f"      {'because' if index == 0 else '    and'} {words[name]}"
        if len(first.because) > MOST_NAMES:
            yield f"          and {len(first.because) - MOST_NAMES} more (--json lists them)"
    elif first.note and first.section not in ("inputs", "tools"):
        yield f"      {first.note}"


def _name(group: Sequence[Change]) -> str:
    if len(group) == 1:
        return group[0].name
    family, names = group[0].name.split(".", 1)[0], [change.name.split(".", 1)[1] for change in group]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{len(group)} {family}s ({', '.join(names[:MOST_NAMES])}{more})"


def _percent(change: Change) -> str:
    """The change against what it was, of figures that have a size."""
    before, after = change.before, change.after
    if change.section not in ("trials", "figures") or not all(type(value) in (int, float) for value in (before, after)):
        return ""
    return f" ({100 * (after / before - 1):+.1f} %)" if before and change.name not in ("accuracy", "SQNR") else ""


def _cut(line: str) -> str:
    flat = line.replace("\n", " ")
    return flat if len(flat) <= COLUMNS else f"{flat[: COLUMNS - 1]}…"
