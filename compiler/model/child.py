"""The child's side of `compiler.model.process`: it ends when its parent does. Few imports: it shall start quickly."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import warnings

PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h: the signal that a process gets when its parent ends."""


def follow_parent() -> None:
    """Makes this process and all that it starts end with its parent, however that ends."""
    _die_with_parent()
    _start_guardian()


def _die_with_parent() -> None:
    """A killed parent must not leave compilers running (Linux; elsewhere the time limit ends them)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _start_guardian() -> None:
    """Forks a process that waits for the parent's end of our standard input to close and then kills our group.

    A killed parent takes this process along by `_die_with_parent`; the tools a toolchain started need the guardian.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads: the fork only reads and kills
        guardian = os.fork()
    if guardian == 0:
        while os.read(0, 1):
            pass
        os.killpg(0, signal.SIGKILL)
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
