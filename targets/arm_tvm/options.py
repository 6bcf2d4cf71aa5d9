"""The `target_options` of a profile: triple, core and features."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import Field

ARCHITECTURES = ("aarch64", "x86_64")


class Preference(StrEnum):
    """What weights may grow for where no limit of the fleet file says how large the payload may be."""

    SIZE = "size"
    SPEED = "speed"


@dataclass(frozen=True)
class Options:
    """The profile's `target_options`, in TVM's spelling."""

    mtriple: Annotated[
        str,
        Field(description="LLVM triple: aarch64-linux-gnu, or x86_64-linux-gnu to build for a workstation."),
    ]
    mcpu: Annotated[str, Field(description="LLVM name of the core, e.g. cortex-a76.")] = "generic"
    mattr: Annotated[
        tuple[str, ...], Field(description="LLVM features to switch on or off, each with its sign: +dotprod.")
    ] = ()
    prefer: Annotated[
        Preference,
        Field(
            description="size: weights take at most 1.25 times the bytes they have in the model; speed: as many as the "
            "fastest kernels want. Where memory_reduction_pct holds, it decides instead."
        ),
    ] = Preference.SIZE

    def __post_init__(self) -> None:
        """Raises ValueError for a triple we have no runtime libraries for, or a feature without a sign."""
        if self.arch not in ARCHITECTURES or not self.mtriple.endswith("linux-gnu"):
            known = ", ".join(f"{arch}-linux-gnu" for arch in ARCHITECTURES)
            raise ValueError(f"mtriple '{self.mtriple}' is not among {known}")
        unsigned = [feature for feature in self.mattr if feature[:1] not in ("+", "-")]
        if unsigned:
            raise ValueError(f"mattr {', '.join(unsigned)} must start with + or -")

    @property
    def arch(self) -> str:
        """First part of the triple."""
        return self.mtriple.split("-")[0]

    @property
    def target(self) -> dict[str, object]:
        """The same as TVM's description of a target."""
        return {"kind": "llvm", "mtriple": self.mtriple, "mcpu": self.mcpu, "mattr": list(self.mattr)}
