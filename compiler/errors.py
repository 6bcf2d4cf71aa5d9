"""The exception tree. Every failure fleetc can name is one of these; each branch has one exit code.

    CompilerError
    ├── UsageError            2   a command line, profile or fleet file that cannot be obeyed
    │   ├── ProfileError
    │   ├── FleetError
    │   ├── DataError             calibration or input arrays that do not fit the model
    │   ├── ArtifactError         an artifact's folder that is not whole, or not ours
    │   └── OutputError           an output place that cannot be written
    ├── ModelError            3   the model
    │   ├── InvalidModel          not a well-formed ONNX model
    │   └── UnsupportedModel      well-formed, but the target refuses some of it: carries every Refusal
    ├── MissingError          4   what this machine lacks
    │   ├── TargetNotFound        no plugin of that name
    │   ├── TargetUnavailable     the plugin is there, its toolchain or device is not
    │   ├── ToolchainFailed       a vendor tool crashed, hung, ran out of memory or said no
    │   ├── StorageError          the cache or the disk: full, unwritable
    │   └── ServerError           a build server that is not there, or refuses
    ├── GateFailed            5   an artifact was built and is not good enough
    │   └── SignatureRefused      an artifact that nobody trusted has signed, or that was changed since
    ├── FleetFailed           6   some devices failed, the others were delivered
    └── InternalError         1   our bug

`Interrupted` (130) stands apart, because Ctrl-C is no error: it derives from KeyboardInterrupt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class CompilerError(Exception):
    """A failure that can be named: what happened, where, and what to do about it.

    Args:
        what: What is wrong, in one sentence.
        where: File and key, file:line, or node and operator. Empty when there is no place.
        remedy: What the reader can do. Empty when there is nothing to suggest.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(what, where, remedy)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\n  {self.remedy}" if self.remedy else ""
        return f"{place}{self.what}{advice}"

    @property
    def page(self) -> str:
        """Where the documentation tells of this class."""
        return f"docs/errors.md#{type(self).__name__.lower()}"

    @property
    def brief(self) -> str:
        """What is wrong in one line: the first, and the next where that only announces it."""
        first, *rest = [line.strip().removeprefix("- ") for line in self.what.splitlines() if line.strip()] or [""]
        return f"{first} {rest[0]}" if first.endswith(":") and rest else first

    def to_dict(self) -> dict[str, object]:
        """The error as a JSON-ready value; `from_dict` reads it back on the other side of a process border."""
        return {
            "error": type(self).__name__,
            "exit_code": self.exit_code,
            "what": self.what,
            "where": self.where,
            "remedy": self.remedy,
        }


class UsageError(CompilerError):
    """The command line, or a file the user wrote, cannot be obeyed."""

    exit_code = 2


class ProfileError(UsageError):
    """A hardware profile is not valid."""


class FleetError(UsageError):
    """A fleet file is not valid, or asks for what cannot be had together."""


class DataError(UsageError):
    """Calibration or input arrays do not fit the model."""


class ArtifactError(UsageError):
    """A folder is no artifact of fleetc, or not the one that was delivered."""


class OutputError(UsageError):
    """An output place cannot be written."""


class ModelError(CompilerError):
    """The model cannot be compiled."""

    exit_code = 3


class InvalidModel(ModelError):
    """The file is not a well-formed ONNX model."""


class UnsupportedModel(ModelError):
    """The target refuses some nodes of a well-formed model."""


class MissingError(CompilerError):
    """This machine lacks what the work needs."""

    exit_code = 4


class TargetNotFound(MissingError):
    """No installed plugin has that name."""


class TargetUnavailable(MissingError):
    """The plugin is installed; its toolchain, driver or device is not."""


class ToolchainFailed(MissingError):
    """A vendor tool crashed, hung, exceeded its memory, or refused without a reason we know."""


class StorageError(MissingError):
    """The cache or the disk cannot take what must be written."""


class ServerError(MissingError):
    """The build server cannot be reached, refuses the key, or cannot do what it is asked."""


class GateFailed(CompilerError):
    """An artifact was built and executed, and is outside a limit."""

    exit_code = 5


class SignatureRefused(GateFailed):
    """An artifact is not signed by the keys that were named, or is not what they signed."""


class FleetFailed(CompilerError):
    """Some devices of the fleet failed; the others were delivered."""

    exit_code = 6


class InternalError(CompilerError):
    """Our bug: the input is innocent."""

    exit_code = 1


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: what was finished is in the store; the same command resumes."""

    exit_code: ClassVar[int] = 130


def all_errors() -> dict[str, type[CompilerError]]:
    """Every class of the tree by name, root included."""
    classes: dict[str, type[CompilerError]] = {}
    waiting: list[type[CompilerError]] = [CompilerError]
    while waiting:
        cls = waiting.pop()
        classes[cls.__name__] = cls
        waiting.extend(cls.__subclasses__())
    return classes


def from_dict(data: dict[str, object]) -> CompilerError:
    """The error that `CompilerError.to_dict` wrote; an unknown name becomes InternalError."""
    cls = all_errors().get(str(data.get("error")), InternalError)
    return cls(str(data.get("what", "")), where=str(data.get("where", "")), remedy=str(data.get("remedy", "")))


def combine(errors: Sequence[CompilerError]) -> CompilerError:
    """One error that says all of them, in the class of the first; raise it to report all problems at once."""
    if len(errors) == 1:
        return errors[0]
    lines = "\n".join(f"  - {error}".replace("\n", "\n    ") for error in errors)
    return type(errors[0])(f"{len(errors)} problems:\n{lines}")
