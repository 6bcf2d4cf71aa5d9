"""Why a device stays on the build that it has."""

from __future__ import annotations


class Refused(Exception):
    """A build is not installed, or nothing can be known of it; `what` says why in one sentence."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
