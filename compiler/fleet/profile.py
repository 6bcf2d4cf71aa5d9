"""What is known of one kind of device, each fact with where it is from.

A profile holds facts of the device and how its target addresses it; limits, batch sizes and budgets belong to the
fleet file. A fact nobody has stated is absent, never guessed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BeforeValidator, Field
from pydantic.json_schema import SkipJsonSchema
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from compiler.errors import ProfileError, combine
from compiler.fleet.validate import MAX_PROBLEMS, nearest, validate
from compiler.fleet.yamlfile import Document, KeyPath, Origin, dotted, read_yaml

T = TypeVar("T")
Arithmetic: TypeAlias = Literal["fp64", "tf32", "fp32", "fp16", "bf16", "fp8", "fp4", "int8", "int4"]

TargetOptions: TypeAlias = Mapping[str, Any]
"""The `target_options` of one target."""

_FACTS = ("cpu", "accelerator", "memory_mib", "memory_bandwidth_gbps", "power_w", "precisions")
_SUFFIXES = (".yaml", ".yml")


def _without_options(value: object) -> object:
    """A list of names is that of targets without options; what is no name is refused by the type."""
    if isinstance(value, list) and len(set(map(str, value))) < len(value):
        raise ValueError("names a target twice")
    is_names = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return {name: {} for name in value} if is_names and isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class EfficiencyCores:
    """The slower cores of a chip that has two kinds; its `cpu` describes the faster ones."""

    model: Annotated[str, Field(description="Core name, e.g. Cortex-A55.")]
    cores: Annotated[int, Field(ge=1, description="Number of slower cores.")]
    clock_mhz: Annotated[int | None, Field(ge=1, description="Highest clock of a slower core, in MHz.")] = None


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The processor code is compiled for, or the one beside an accelerator."""

    model: Annotated[str, Field(description="Name of the processor or of its cores.")]
    cores: Annotated[int, Field(ge=1, description="Physical cores; where the chip has two kinds, the faster ones.")]
    threads: Annotated[int | None, Field(ge=1, description="Hardware threads of these cores.")] = None
    clock_mhz: Annotated[int | None, Field(ge=1, description="Highest clock of one core, boost included, in MHz.")] = (
        None
    )
    isa: Annotated[
        tuple[str, ...],
        Field(
            description="Instruction-set flags compiled code may use, spelled as Linux prints them in /proc/cpuinfo."
        ),
    ] = ()
    l1_kib: Annotated[int | None, Field(ge=1, description="Level-1 data cache of one core, in KiB.")] = None
    l2_kib: Annotated[
        int | None, Field(ge=1, description="Level-2 cache of one core, or of the cluster sharing it, in KiB.")
    ] = None
    l3_kib: Annotated[int | None, Field(ge=1, description="Level-3 or system cache, all of it, in KiB.")] = None
    efficiency_cores: Annotated[
        EfficiencyCores | None, Field(description="The slower cores beside these; absent where all cores are alike.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A processor beside the CPU that runs the model."""

    vendor: Annotated[str | None, Field(description="Maker, e.g. NVIDIA.")] = None
    model: Annotated[str, Field(description="Product name, e.g. NVIDIA L4.")]
    compute_capability: Annotated[
        str | None, Field(pattern=r"^[0-9]{1,2}\.[0-9]$", description='NVIDIA compute capability, in quotes: "8.9".')
    ] = None
    cores: Annotated[int | None, Field(ge=1, description="Arithmetic units as the maker counts them (CUDA cores).")] = (
        None
    )
    clock_mhz: Annotated[int | None, Field(ge=1, description="Highest clock, boost included, in MHz.")] = None
    memory_mib: Annotated[
        int | None, Field(ge=1, description="Memory of its own, in MiB; absent where it shares the CPU's.")
    ] = None
    memory_bandwidth_gbps: Annotated[
        float | None, Field(gt=0, description="Peak bandwidth of its own memory, in GB/s (10⁹ bytes).")
    ] = None


@dataclass(frozen=True, kw_only=True)
class HardwareProfile:
    """One kind of device: which targets build for it, and what is known of it."""

    schema: Annotated[Literal[1], Field(description="Version of this format.")]
    name: Annotated[
        str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="Short name, lower case; the file's own name.")
    ]
    description: Annotated[str, Field(description="One sentence on what the device is.")] = ""
    target: Annotated[str, Field(min_length=1, description="Name of the target that builds for it (`fleetc targets`).")]
    target_options: Annotated[
        TargetOptions, Field(description="How the target addresses the device; each target checks its own keys.")
    ] = field(default_factory=dict)
    also: Annotated[
        Annotated[
            Mapping[str, TargetOptions],
            BeforeValidator(_without_options, json_schema_input_type=list[str] | Mapping[str, TargetOptions]),
        ]
        | None,
        Field(
            description="Other targets that compete with it: a list of names, or the `target_options` of each by its "
            "name; the best build of all is delivered."
        ),
    ] = None
    other_target_options: Annotated[
        Mapping[str, TargetOptions],
        Field(
            description="`target_options` of targets that do not compete by themselves, by their names: for those that "
            "name them in a fleet file's `targets`, or by `--target`."
        ),
    ] = field(default_factory=dict)
    cpu: Annotated[Cpu | None, Field(description="The processor; absent where it does not matter.")] = None
    accelerator: Annotated[Accelerator | None, Field(description="The accelerator; absent where there is none.")] = None
    memory_mib: Annotated[int | None, Field(ge=1, description="Main memory of the device, in MiB.")] = None
    memory_bandwidth_gbps: Annotated[
        float | None, Field(gt=0, description="Peak bandwidth of main memory, in GB/s (10⁹ bytes).")
    ] = None
    power_w: Annotated[
        float | None, Field(gt=0, description="Power the chip or board may draw, as its maker states it, in watts.")
    ] = None
    precisions: Annotated[
        tuple[Arithmetic, ...],
        Field(description="Number formats the hardware multiplies in; stored-only formats are not named."),
    ] = ()
    provenance: Annotated[
        Mapping[str, str],
        Field(description="Where each fact is from: dotted key, or a prefix covering all below it → document."),
    ] = field(default_factory=dict)
    origin: SkipJsonSchema[Annotated[Origin, Field(exclude=True)]] = field(
        default=Origin(), init=False, compare=False, repr=False
    )

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of all targets that compete for it, the preferred one first."""
        return (self.target, *(self.also or ()))


@dataclass(frozen=True)
class _OtherOptions(Origin):
    """Where another target was written, which is asked for under `target` and `target_options`.

    Args:
        key: `also` or `other_target_options`.
        target: Its name.
    """

    key: str = "also"
    target: str = ""

    def place(self, keys: KeyPath) -> str:
        is_own = keys[:1] in (("target",), ("target_options",))
        return super().place((self.key, self.target, *keys[1:]) if is_own else keys)


def load_profile(name_or_path: str | Path) -> HardwareProfile:
    """The profile of a built-in name, or of a file.

    Args:
        name_or_path: A name of `list_profiles()`, or a path: whatever holds a `/` or ends in .yaml.

    Raises:
        ProfileError: Unknown name, unreadable file, or everything that is wrong in it.
    """
    document = read_yaml(find_profile(name_or_path), error=ProfileError)
    return profile_of(document)


def profile_of(document: Document) -> HardwareProfile:
    """The profile a document describes.

    Raises:
        ProfileError: With everything that is wrong in it.
    """
    profile, problems = validate(HardwareProfile, document.data, origin=document.origin, error=ProfileError)
    problems += _provenance_problems(document)
    if problems or profile is None:
        raise combine(problems)
    for key, others in (("also", profile.also or {}), ("other_target_options", profile.other_target_options)):
        if profile.target in others:
            raise ProfileError(
                f"names '{profile.target}', the profile's own target", where=document.origin.place((key,))
            )
    return _written_at(profile, document.origin)


def profile_for(profile: HardwareProfile, target: str) -> HardwareProfile:
    """The profile as one of the competing targets sees it: with that target's options, and no other target.

    Args:
        profile: A device's profile.
        target: One of its targets, or another one, which has what `other_target_options` holds for it, if anything.
    """
    if target == profile.target:
        if not profile.also and not profile.other_target_options:
            return profile
        return _written_at(replace(profile, also=None, other_target_options={}), profile.origin)
    competes = target in (profile.also or ())
    options = (profile.also or {})[target] if competes else profile.other_target_options.get(target, {})
    own = replace(profile, target=target, target_options=options, also=None, other_target_options={})
    key = "also" if competes else "other_target_options"
    return _written_at(own, _OtherOptions(profile.origin.path, profile.origin.lines, key, target))


def _written_at(profile: HardwareProfile, origin: Origin) -> HardwareProfile:
    object.__setattr__(profile, "origin", origin)  # the only field that is not in the file
    return profile


def find_profile(name_or_path: str | Path) -> Path:
    """The file of a built-in name or of a path; the file of a path need not exist.

    Raises:
        ProfileError: No built-in profile has that name; the message tells the nearest.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or is_path(text):
        return Path(name_or_path)
    if text not in (known := list_profiles()):
        remedy = "`fleetc profiles list` shows all; a path holds a / or ends in .yaml."
        raise ProfileError(f"no built-in profile is named {text[:64]!r}{nearest(text, known)}", remedy=remedy)
    return _builtin_folder() / f"{text}.yaml"


def is_path(text: str) -> bool:
    """Whether a profile reference means a file rather than a built-in name."""
    return os.sep in text or text.endswith(_SUFFIXES)


def list_profiles() -> list[str]:
    """Names of the built-in profiles, sorted."""
    return sorted(file.stem for file in _builtin_folder().glob("*.yaml"))


def validate_options(cls: type[T], profile: HardwareProfile) -> T:
    """The profile's `target_options` as the target's own frozen dataclass.

    Args:
        cls: A frozen dataclass, plain or of pydantic; a key it lacks is refused.
        profile: Its `origin` gives messages their file and line.

    Raises:
        ProfileError: With everything that is wrong in the options.
    """
    options, problems = validate(
        cls, profile.target_options, origin=profile.origin, error=ProfileError, under=("target_options",)
    )
    if problems or options is None:
        raise combine(problems)
    return options


def profile_digest(profile: HardwareProfile) -> str:
    """SHA-256, in hex, of everything the profile says; layout and comments of the file do not change it."""
    text = json.dumps(to_dict(profile), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def to_dict(profile: HardwareProfile) -> dict[str, Any]:
    """The profile as JSON-ready values in the order of its fields, without what is not known."""
    values: dict[str, Any] = _plain(profile)
    return values


def to_yaml(profile: HardwareProfile) -> str:
    """The profile as a file `load_profile` reads back to an equal value."""
    yaml, out = YAML(), io.StringIO()
    yaml.width = 120
    yaml.dump(_styled(to_dict(profile)), out)
    return out.getvalue()


def _styled(value: Any) -> Any:
    """The value with its lists in one line, and text in quotes where it does not print or would be read as a key."""
    if isinstance(value, dict):
        return {_styled(key): _styled(item) for key, item in value.items()}
    if isinstance(value, list):
        row = CommentedSeq(map(_styled, value))
        row.fa.set_flow_style()
        return row
    # ruamel.yaml writes `?x` without quotes, and reads it in a one-line list as a mapping with the key `x`.
    is_odd = isinstance(value, str) and (not value.isprintable() or value.startswith("?"))
    return DoubleQuotedScalarString(value) if is_odd else value


def _builtin_folder() -> Path:
    from importlib.resources import files

    return Path(str(files("profiles")))


def _plain(value: Any) -> Any:
    """Dataclasses as mappings of their known fields; what the file holds under free keys stays whole."""
    if is_dataclass(value):
        items = ((fact.name, getattr(value, fact.name)) for fact in fields(value) if fact.name != "origin")
        return {name: _plain(item) for name, item in items if item is not None and item != ()}
    return list(value) if isinstance(value, tuple) else value


def _provenance_problems(document: Document) -> list[ProfileError]:
    """Facts without provenance, and provenance of no fact, read from the raw file to be told with all else."""
    facts = [keys for name in _FACTS for keys in _leaves(document.data.get(name), (name,))]
    stated = document.data.get("provenance")
    named = {tuple(key.split(".")) for key in stated} if isinstance(stated, dict) else set()
    real = {fact[:depth] for fact in facts for depth in range(1, len(fact) + 1)}
    bare = [dotted(fact) for fact in facts if not any(fact[:depth] in named for depth in range(1, len(fact) + 1))]
    idle = sorted(".".join(keys) for keys in named - real)
    place = document.origin.place
    problems = []
    if bare:
        what = f"does not say where these are from: {', '.join(bare[:MAX_PROBLEMS])}"
        problems.append(ProfileError(what, where=place(("provenance",))))
    for key in idle[:MAX_PROBLEMS]:
        what = f"is not a fact of this profile{nearest(key, map(dotted, facts))}"
        problems.append(ProfileError(what, where=place(("provenance", key))))
    return problems


def _leaves(value: object, keys: KeyPath) -> Iterator[KeyPath]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*keys, key))
    elif value is not None and value != []:
        yield keys
