"""An experiment on a running server: what was asked for, where it stands; written to JSON and read back as it is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum

from compiler.errors import DataError
from rollout.limits import Limits
from rollout.verdict import FEWEST_REQUESTS, RAMP, Rules, Verdict


class Mode(StrEnum):
    """Who is answered by the candidate: nobody, or a share of the clients."""

    SHADOW = "shadow"
    SPLIT = "split"


class Standing(StrEnum):
    """Where an experiment stands; all but the first are its end."""

    RUNNING = "running"
    ROLLED_BACK = "rolled back"
    SHIPPED = "shipped"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Request:
    """What is asked of a server.

    Args:
        candidate: Folder of the candidate, absolute, on the server's machine.
        against: SHA-256 of the current build's manifest, which must be the one that is served.
        mode: Whether the candidate answers anybody.
        share: Share of requests that are mirrored, or of clients that the candidate answers at first.
        limits: What the candidate is held against; where `latency_ms` is None, the server's time of a request is taken.
        least_s: Seconds that every step of the ramp lasts at least.
        least_requests: Requests that the candidate gets at least before it may go on.
    """

    candidate: str
    against: str
    mode: Mode
    share: float
    limits: Limits = field(default_factory=Limits)
    least_s: float = 0.0
    least_requests: int = FEWEST_REQUESTS

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or (self.mode == Mode.SPLIT and self.share == 1):
            raise DataError(
                f"a share of {self.share:.4g} of the traffic",
                where=f"--{self.mode}",
                remedy="give a share above 0 %, and below 100 % for a split",
            )

    @property
    def rules(self) -> Rules:
        """What the verdict asks before it says that the candidate may go on."""
        if self.mode == Mode.SHADOW:
            return Rules(ramp=(), least_s=self.least_s, least_requests=self.least_requests)
        ramp = (self.share, *(step for step in RAMP if step > self.share))
        return Rules(ramp=ramp, least_s=self.least_s, least_requests=self.least_requests)


@dataclass(frozen=True)
class Report:
    """Where an experiment stands now.

    Args:
        model: Name of the served model.
        mode: Whether the candidate answers anybody.
        standing: Whether it runs, and how it ended.
        why: Why it ended; empty while it runs.
        share: Share of the requests or clients now.
        candidate: Folder of the candidate.
        candidate_sha256: Digest of its manifest.
        current_sha256: Digest of the current build's manifest.
        seconds: How long it runs, or ran.
        skipped: Requests that were to be mirrored and were not, because the server had no idle moment.
        verdict: The verdict of this moment, or of the end.
    """

    model: str
    mode: Mode
    standing: Standing
    why: str
    share: float
    candidate: str
    candidate_sha256: str
    current_sha256: str
    seconds: float
    skipped: int
    verdict: Verdict


def falls_to_candidate(key: str, share: float, *, salt: str) -> bool:
    """Whether requests of a key are the candidate's: always the same for a key, also when it is tried again.

    A key that is the candidate's at a small share stays so at a larger one.

    Args:
        key: What the client calls its request, session or user.
        share: Share of the keys that are the candidate's.
        salt: Of this experiment: another one shall not have the same clients.
    """
    digest = hashlib.blake2b(f"{salt}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64
