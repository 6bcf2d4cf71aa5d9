"""Which cases run on which target, on which profile: all that is installed, as far as time allows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ruamel.yaml import YAML

from compiler.errors import CompilerError
from compiler.fleet.profile import HardwareProfile, list_profiles, load_profile
from compiler.target import Target, find_target, list_targets
from compiler.target.testing import Case, conformance_cases, onnx_backend_cases, quantized_cases

_HERE = Path(__file__).parent
QUICK = "FLEETC_SLOW" not in os.environ
"""One of ONNX's cases per operator, where all of them would be tried if there were time."""

_EVERY = 1 if QUICK else 0
_HOST_ARM = {"mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3", "mattr": []}
_HOST_VNNI = {"mtriple": "x86_64-linux-gnu", "mcpu": "icelake-server", "mattr": []}
_HOST_BF16 = {"mtriple": "x86_64-linux-gnu", "mcpu": "sapphirerapids", "mattr": []}
_PRODUCTS = ("conv-stride", "conv-group", "gemm", "block-residual")
"""What is computed otherwise where only products are: all kinds of kernels of it."""


@dataclass(frozen=True)
class Suite:
    """Cases for one target on one profile.

    Args:
        own: `all`, `essential` (for targets that take seconds per case) or `none` of our cases; or `quantized`, or
            `products`.
        per_op: How many of ONNX's cases per operator the target claims; 0 means all, −1 none.
        profile: A built-in profile's name; empty: the first one of that target, or one that says nothing.
        options: `target_options` instead of a built-in profile's.
        precision: What is built.
    """

    own: str
    per_op: int
    profile: str = ""
    options: dict[str, object] | None = None
    precision: str = "fp32"


# TVM's bundle takes seconds to build and to run under QEMU; TensorRT-RTX a third of a second to build.
SUITES = {
    "reference": [Suite("all", _EVERY)],
    "onnxruntime": [Suite("all", 1)],
    "openvino": [Suite("all", _EVERY, "intel-n100")],
    "tvm": [
        Suite("all", -1, "raspberry-pi-4"),
        Suite("none", 1, options=_HOST_ARM),
        Suite("quantized", -1, options=_HOST_VNNI, precision="int8"),
        Suite("products", -1, options=_HOST_BF16, precision="bf16"),
    ],
    "tensorrt": [Suite("all", 1, "nvidia-l4")],
}
_ANY_OTHER = [Suite("all", 1)]


@dataclass(frozen=True)
class Trial:
    """One case to be run on one target; `problem` is why that cannot be tried here, empty if it can."""

    target: str
    profile: HardwareProfile
    case: Case
    precision: str = "fp32"
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.target}-{self.profile.name}-{self.case.name}"


def trials() -> list[Trial]:
    """Everything to run; a target whose plugin does not load or whose toolchain is missing has one trial, to say so."""
    return [trial for name in list_targets() for trial in _trials_of(name)]


@cache
def known_gaps() -> dict[tuple[str, str], str]:
    """(target, case) → reason."""
    entries = YAML(typ="safe").load(_HERE / "known_gaps.yaml")
    return {(entry["target"], case): entry["reason"] for entry in entries for case in entry["cases"]}


@cache
def target_of(name: str) -> Target:
    """The target; each look for it reads the entry points of every installed package."""
    return find_target(name)


def _trials_of(name: str) -> Iterator[Trial]:
    for suite in SUITES.get(name, _ANY_OTHER):
        profile = _profile(name, suite)
        if problem := _problem(name, profile):
            yield Trial(name, profile, conformance_cases(essential=True)[0], problem=problem)
            continue
        yield from (Trial(name, profile, case, suite.precision) for case in _cases(target_of(name), profile, suite))


def _problem(target: str, profile: HardwareProfile) -> str:
    """Why the target cannot be tried here; empty if it can."""
    try:
        target_of(target).check(profile)
    except CompilerError as error:
        return str(error)
    return ""


def _cases(target: Target, profile: HardwareProfile, suite: Suite) -> Iterator[Case]:
    if suite.own == "quantized":
        yield from quantized_cases()
    elif suite.own == "products":
        yield from (case for case in conformance_cases() if case.name in _PRODUCTS)
    elif suite.own != "none":
        yield from conformance_cases(essential=suite.own == "essential")
    if suite.per_op >= 0:
        yield from onnx_backend_cases(target.capability(profile), per_op=suite.per_op)


def _profile(name: str, suite: Suite) -> HardwareProfile:
    if suite.profile:
        return load_profile(suite.profile)
    if suite.options is not None:
        return HardwareProfile(schema=1, name="host", target=name, target_options=suite.options)
    fitting = [profile for profile in map(load_profile, list_profiles()) if profile.target == name]
    return fitting[0] if fitting else HardwareProfile(schema=1, name="any", target=name)
