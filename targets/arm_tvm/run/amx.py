"""Leave for this process to use AMX: Linux gives the tiles' memory only to those who ask."""

from __future__ import annotations

import ctypes
import os

from compiler.target import TargetUnavailable

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
"""System call of x86-64, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA (Documentation/arch/x86/xstate.rst of Linux)."""


def request_tiles() -> None:
    """Asks for it, for all threads of this process. Raises TargetUnavailable where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) != 0:
        raise TargetUnavailable(
            f"Linux refuses AMX to this process: {os.strerror(ctypes.get_errno())}",
            remedy="Use Linux 5.16 or newer, or build with -amx-tile in mattr.",
        )
