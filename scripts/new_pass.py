#!/usr/bin/env python3
"""Write the skeleton of a new pass and its test.

    scripts/new_pass.py fuse-conv-clip

The pass is named verb and object in kebab case. The files are compiler/passes/<name>.py and
tests/unit/compiler/passes/test_<name>.py; a test that fails is in the second until the first does something.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PASS = '''"""{kebab}: SAY WHAT BECOMES WHAT.

WRITE THE ALGEBRA, OR THE NUMBERED CASES, HERE.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult, RewriteRuleClassBase

from compiler.passes.matching import rule_of
from compiler.passes.rules import RulePass


class {camel}(RewriteRuleClassBase):
    """Case 1."""

    def pattern(self, op: Any, x: Any) -> Any:
        """What is looked for."""
        return op.Neg(op.Neg(x))

    def check(self, context: MatchContext, x: ir.Value) -> MatchResult:
        """Whether it may be rewritten; `fail` takes the reason that the user reads."""
        result = MatchResult()
        if x.dtype is None:
            return result.fail(f"the type of '{{x.name}}' is not known")
        return result

    def rewrite(self, op: Any, x: ir.Value) -> Any:
        """What stands there instead."""
        return op.Identity(x)


{constant} = RulePass("{kebab}", [rule_of({camel}())])
'''

TEST = """from __future__ import annotations

from pass_cases import apply, assert_left_alone, assert_same

from compiler.passes.{snake} import {constant}


def test_{snake}_rewrites_the_pattern() -> None:
    model, result = apply({constant}, "g (float[N,3] x) => (float[N,3] y) {{ a = Neg(x) y = Neg(a) }}")
    assert result.modified
    assert_same(model, "REPLACE: g (float[N,3] x) => (float[N,3] y) {{ y = Identity(x) }}")


def test_{snake}_leaves_alone_what_others_read() -> None:
    result = assert_left_alone(
        {constant}, "g (float[N,3] x) => (float[N,3] y, float[N,3] a) {{ a = Neg(x) y = Neg(a) }}"
    )
    assert result.notes
"""


def main() -> int:
    """Writes the two files; says what to do next."""
    parser = argparse.ArgumentParser(description="Write the skeleton of a new pass and its test.")
    parser.add_argument("name", help="verb and object in kebab case, such as fuse-conv-clip")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    args = parser.parse_args()
    if not re.fullmatch(r"[a-z]+(-[a-z0-9]+)+", args.name):
        parser.error(f"'{args.name}' is not verb and object in kebab case")
    snake = args.name.replace("-", "_")
    words = {"kebab": args.name, "snake": snake, "constant": snake.upper(), "camel": args.name.title().replace("-", "")}
    files = {
        args.root / "compiler" / "passes" / f"{snake}.py": PASS,
        args.root / "tests" / "unit" / "compiler" / "passes" / f"test_{snake}.py": TEST,
    }
    existing = [path for path in files if path.exists()]
    if existing:
        parser.error(f"{existing[0]} is there already")
    for path, text in files.items():
        path.write_text(text.format(**words), encoding="utf-8")
        print(path.relative_to(args.root))
    print(
        f'Now put "{words["kebab"]}" into compiler/passes/pipelines.py, where the order needs it, with a comment why.'
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
