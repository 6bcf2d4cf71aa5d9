"""Syntax trees that several threads have made at once."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import ast, gc, sys, threading, time
from compiler.store.parsing import parse_one_at_a_time

if sys.argv[1] == "guarded":
    parse_one_at_a_time()
text = repr([{"a": (1, 2, [3, 4, {"b": (5,)}])} for _ in range(300)])
gc.callbacks.append(lambda phase, info: time.sleep(0.0005))  # lets the other thread go on in the middle of a tree
gc.set_threshold(50)
errors, end = [], time.monotonic() + 20

def read():
    for _ in range(4):
        try:
            if not errors and time.monotonic() < end:
                ast.literal_eval(text)  # as numpy.load does
        except SystemError as error:
            errors.append(error)

threads = [threading.Thread(target=read) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(errors)
"""


def test_threads_that_parse_at_once_do_not_fail_each_other() -> None:
    command = [sys.executable, "-c", PROGRAM, "guarded"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
