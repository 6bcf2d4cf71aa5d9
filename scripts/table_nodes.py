#!/usr/bin/env python3
"""Write docs/onnx-nodes.md: ONNX's node cases by operator and target, as tests/conformance runs them.

scripts/table_nodes.py           write the page if it has changed
scripts/table_nodes.py --check   write nothing; exit with 1 when it is stale

The page is made of what the targets claim (their capabilities) and of tests/conformance/known_gaps.yaml, whose every
line the suite holds against the target: nothing is run, and nothing can be written that the suite would not find out.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "conformance")]

from suites import known_gaps  # noqa: E402

from compiler.fleet.profile import HardwareProfile, load_profile  # noqa: E402
from compiler.passes.decompose_operators import may_decompose  # noqa: E402
from compiler.target import find_target  # noqa: E402
from compiler.target.capability import Capability, find_unsupported  # noqa: E402
from compiler.target.testing.backend import all_cases  # noqa: E402

PAGE = ROOT / "docs" / "onnx-nodes.md"
PROFILES = {
    "reference": "",
    "onnxruntime": "",
    "openvino": "intel-n100",
    "tvm": "raspberry-pi-5",
    "tensorrt": "nvidia-l4",
}
"""Target → the profile that its claims are read for; empty: one that says nothing."""

HEAD = """# ONNX's node cases, target by target

<!-- written by scripts/table_nodes.py; do not edit -->

The onnx package ships cases of single operators, with the expected results. Each number is how many of an
operator's cases the target **claims**: its capability covers the case's operators, types, attributes and inputs, so
`fleetc build` gives it the model. `3/5` claims three of five cases, `-` none. A case that is not claimed is refused
with the node, the operator and the reason, before any toolchain is asked. `*`: an operator that the target lacks is
written out for it in others where that is possible ([how it works](how-it-works.md#the-portable-half)), which is
not counted here.

Claimed cases are run by `tests/conformance`: one of each operator on every target, and with `FLEETC_SLOW=1` all of
them on `reference` and `openvino`; `tensorrt` builds and does not run. What is claimed and yet refused by the
build, or computed otherwise than ONNX expects, is in the second table; each line of it is a test that fails when
the line is no longer true.
"""


@dataclass(frozen=True)
class Row:
    """One operator: its cases, and target → how many of them are claimed; and whether the others may be written out."""

    operator: str
    cases: int
    claimed: Mapping[str, int]
    is_written_out: bool


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when the page is stale")
    check = parser.parse_args().check
    text, reasons = page_text()
    old = PAGE.read_text("utf-8") if PAGE.exists() else ""
    if text == old:
        return 0
    print(f"{'stale' if check else 'written'}: {PAGE.relative_to(ROOT)} ({reasons} reasons)")
    if not check:
        PAGE.write_text(text, "utf-8")
    return 1 if check else 0


def page_text() -> tuple[str, int]:
    """The page, and how many different reasons for refusals stand in it."""
    capabilities = {name: find_target(name).capability(_profile(name)) for name in PROFILES}
    rows, reasons = _rows(capabilities)
    claims, words = "\n".join(_claims(rows)), list(_refusals(reasons))
    gaps = "\n".join(_gaps())
    body = "\n".join(words)
    parts = {"Claimed": claims, "Claimed, and not right": gaps, "Refused, with which words": body}
    return HEAD + "".join(f"\n## {title}\n\n{table}\n" for title, table in parts.items()), len(words) - 2


def _profile(name: str) -> HardwareProfile:
    if PROFILES[name]:
        return load_profile(PROFILES[name])
    return HardwareProfile(schema=1, name="any", target=name)


def _rows(capabilities: Mapping[str, Capability]) -> tuple[list[Row], dict[tuple[str, str], Counter[str]]]:
    """A row per operator; and (target, reason) → operator → how many cases are refused so."""
    cases: Counter[str] = Counter()
    claimed: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    bodies: set[str] = set()
    for operator, case in all_cases():
        cases[operator] += 1
        model = case.model()
        opset = model.graph.opset_imports.get("", 0)
        bodies |= {operator for node in model.graph if may_decompose(node)}
        for name, capability in capabilities.items():
            refusals = find_unsupported(model, capability)
            if opset > capability.opset_max:
                reasons[name, f"opset {opset} is newer than the target reads"][operator] += 1
            elif refusals:
                reasons[name, _general(refusals[0].reason)][operator] += 1
            else:
                claimed[operator][name] += 1
    rows = [Row(name, count, claimed[name], name in bodies) for name, count in sorted(cases.items())]
    return rows, reasons


def _general(reason: str) -> str:
    """The reason without the numbers and types of one case; and one line for all operators that are not there."""
    short = re.sub(r"the target has no operator \S+", "the target has no such operator", reason)
    short = re.sub(r"^element type \S+( \S+)* is not among .*", "an element type is not among the target's", short)
    short = re.sub(r"rank \d+ is above", "a rank above", short)
    short = re.sub(r"attribute (\w+)=.* is not among (.*)", r"attribute \1 is not among \2", short)
    return re.sub(r"it has \d+ (inputs|outputs); the target (takes|gives) (\d+)", r"more than \3 \1", short)


def _claims(rows: Sequence[Row]) -> Iterator[str]:
    yield f"| operator | cases | {' | '.join(PROFILES)} |"
    yield f"|---|---|{'---|' * len(PROFILES)}"
    for row in rows:
        cells = [_cell(row, name) for name in PROFILES]
        yield f"| {row.operator.replace('+', ', ')} | {row.cases} | {' | '.join(cells)} |"
    totals = [f"{sum(row.claimed[name] for row in rows)}" for name in PROFILES]
    yield f"| **all** | {sum(row.cases for row in rows)} | {' | '.join(totals)} |"


def _cell(row: Row, name: str) -> str:
    count = row.claimed[name]
    mark = "*" if row.is_written_out and count < row.cases else ""
    if count == row.cases:
        return "all"
    return f"{count}/{row.cases}{mark}" if count else f"-{mark}"


def _gaps() -> Iterator[str]:
    grouped: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (target, case), reason in known_gaps().items():
        grouped[target, reason].append(case.removeprefix("onnx/test_"))
    yield "| target | cases | what happens |"
    yield "|---|---|---|"
    for (target, reason), names in grouped.items():
        yield f"| {target} | {', '.join(f'`{name}`' for name in names)} | {reason} |"


def _refusals(reasons: Mapping[tuple[str, str], Counter[str]]) -> Iterator[str]:
    yield "| target | reason | cases | operators |"
    yield "|---|---|---|---|"
    order = list(PROFILES)
    for (target, reason), operators in sorted(reasons.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
        names = ", ".join(name.replace("+", ", ") for name in sorted(operators))
        yield f"| {target} | {reason} | {operators.total()} | {names} |"


if __name__ == "__main__":
    sys.exit(main())
