"""One syntax tree at a time, in whatever thread: CPython before 3.14 counts the depth of all threads' trees together.

Where two threads have `ast.parse` make one at once, it may find a false depth and raise SystemError ("AST constructor
recursion depth mismatch"), the more likely the busier the machine is. It is called in places that are not ours, too:
NumPy reads the header of every array with it.
"""

from __future__ import annotations

import ast
import functools
import sys
from threading import RLock
from typing import Any

_PARSING = RLock()
"""Of one thread again and again: the garbage collector may call what parses while a tree is made."""


@functools.cache
def parse_one_at_a_time() -> None:
    """Has all threads of this process wait for each other in `ast.parse`, from now on; for those who start threads."""
    if sys.version_info < (3, 14):
        ast.parse = _alone(ast.parse)


def _alone(parse: Any) -> Any:
    @functools.wraps(parse)
    def parse_alone(*arguments: Any, **named: Any) -> Any:
        with _PARSING:
            return parse(*arguments, **named)

    return parse_alone
