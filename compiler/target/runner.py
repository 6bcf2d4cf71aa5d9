"""An artifact loaded for execution: what every runner has, and what some offer beside it.

Each offer is a protocol of one member. What a runner has is asked with `isinstance`, so that a checker of types reads
the contract where a plugin is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from compiler.artifact import Artifact, Evidence

if TYPE_CHECKING:
    from compiler.evaluate.answers import Answered, Asked
    from compiler.model.numerics import Array, Arrays


@dataclass(frozen=True)
class LayerTime:
    """Time of one kernel.

    Args:
        nodes: Nodes of the border model that were fused into it; names of the toolchain's own may be among them.
        us: Microseconds of one inference.
        kernel: What the toolchain calls the kernel; empty where it says nothing.
    """

    nodes: tuple[str, ...]
    us: float
    kernel: str = ""


class Runner(Protocol):
    """An artifact loaded for execution.

    A runner may also be `TimesRuns`, `TimesProcessor`, `CountsInstructions`, `ReportsPeakMemory`, `WeighsRuns`,
    `TimesLayers`, `StaysLoaded`, `KeepsCache`, `AnswersPrompts` and `HasNote`.
    """

    evidence: Evidence

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Executes the artifact once; inputs and outputs by name."""

    def close(self) -> None:
        """Frees what the runner holds."""


@runtime_checkable
class TimesRuns(Protocol):
    """A runner whose `run` does more than infer, as one that starts a program: it times inside of that."""

    def latencies_ms(self, inputs: Arrays, repeat: int) -> list[float]:
        """Milliseconds of each of `repeat` inferences."""


@runtime_checkable
class TimesProcessor(Protocol):
    """A runner that starts a program, and can tell how much processor time that takes for an inference."""

    def processor_ms(self, inputs: Arrays, repeat: int) -> list[float]:
        """Milliseconds of processor time, of all threads together, of each of `repeat` inferences."""


@runtime_checkable
class CountsInstructions(Protocol):
    """A runner under an emulator that counts."""

    def count_instructions(self, inputs: Arrays) -> int:
        """Guest instructions of one inference."""


@runtime_checkable
class ReportsPeakMemory(Protocol):
    """A runner that starts a program of its own, whose memory is not that of this process."""

    def peak_memory_bytes(self, inputs: Arrays) -> int:
        """Peak resident memory of the program for one inference, in bytes."""


@runtime_checkable
class WeighsRuns(Protocol):
    """A runner under an emulator, where each run takes long: one tells both the outputs and the memory."""

    def run_weighed(self, inputs: Arrays) -> tuple[dict[str, Array], int]:
        """Executes the artifact once; its outputs, and the peak resident memory of its program in bytes."""


@runtime_checkable
class TimesLayers(Protocol):
    """A runner whose toolchain tells the time of its kernels."""

    def layer_times(self, inputs: Arrays) -> Sequence[LayerTime]:
        """Time of every kernel in one inference."""


@runtime_checkable
class StaysLoaded(Protocol):
    """A runner whose `run` starts a program: for a server it has another one that stays loaded."""

    def stay_loaded(self) -> Runner:
        """The same artifact, loaded once for many runs; `run` raises ConnectionError where its program is gone."""


@runtime_checkable
class KeepsCache(Protocol):
    """A runner of a decoder whose keys and values stay inside from one run to the next."""

    def forget(self) -> None:
        """Begins anew, with an empty cache."""

    def follow(self, inputs: Arrays) -> dict[str, Array]:
        """Executes tokens behind those seen since `forget`; neither inputs nor outputs have the cache.

        Logits may be those of the last token alone.
        """


@runtime_checkable
class AnswersPrompts(Protocol):
    """A runner of a decoder whose program answers a prompt by itself, as it does on the device."""

    def answer(self, asked: Asked) -> Answered:
        """The answer to a prompt, from an empty cache."""


@runtime_checkable
class HasNote(Protocol):
    """A runner whose figures hold for the device only in part; empty where there is nothing to know."""

    note: str


@runtime_checkable
class KnowsWhereItRuns(Protocol):
    """A target that can tell cheaply, without its toolchain, that an artifact cannot run on this machine.

    It saves the process in which `load` would find it out.
    """

    def unavailable_here(self, artifact: Artifact) -> str:
        """Why not; empty where it may."""
