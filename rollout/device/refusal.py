"""Why a device stays on the build that it has."""

from __future__ import annotations


class Refused(Exception):
    """A build is not installed, or left again; `what` says why in one sentence."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Unavailable(Refused):
    """Nothing that can be trusted is known of the repository: it says nothing of a build, and is asked again."""
