"""`build.json`: what became of each device of a fleet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from compiler.artifact.schema.trial import Searched


class DeviceStatus(StrEnum):
    """What became of a device.

    `deferred` waits for its device to finish it, and is `finished` afterwards. Two are never written: of `border` only
    the border model was asked for; and of `unreadable` the folder is not what was delivered, and nothing it says is
    shown.
    """

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FINISHED = "finished"
    FAILED = "failed"
    UNREADABLE = "unreadable"
    BORDER = "border"


@dataclass(frozen=True)
class Failure:
    """Why a device was not delivered."""

    error: str
    exit_code: int
    what: str
    where: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class DeviceRow:
    """One device.

    Args:
        status: What became of it.
        manifest: SHA-256 of its manifest; empty if it failed.
        error: Why it failed; None otherwise.
        report: Of a device that no candidate passes the gates of: every trial and figure.
    """

    status: DeviceStatus
    manifest: str = ""
    error: Failure | None = None
    report: Searched | None = None

    def __post_init__(self) -> None:
        if self.status == DeviceStatus.UNREADABLE:
            raise ValueError("status must be delivered, deferred, finished or failed")
        if (self.status == DeviceStatus.FAILED) != (self.error is not None):
            raise ValueError("a device has an error if it failed, and only then")


@dataclass(frozen=True)
class Summary:
    """The whole file; `model` is the digest of the model."""

    fleet: str
    fleetc: str
    model: str
    devices: Mapping[str, DeviceRow]
