"""The fleet file: one model, the device classes it is built for, and what each of them asks of the build."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

from compiler.errors import FleetError, ProfileError, combine
from compiler.fleet.cut import Cut
from compiler.fleet.data import Calibration, Evaluation, Generation, Preprocess, is_function
from compiler.fleet.profile import find_profile, is_path
from compiler.fleet.sizes import ONE, Range, resolve_sums
from compiler.fleet.validate import validate
from compiler.fleet.yamlfile import Document, KeyPath, Origin, read_yaml

Precision: TypeAlias = Literal[
    "auto", "fp32", "fp16", "bf16", "fp16-weights", "int8", "fp8", "int8-weights", "int4-weights", "int4-weights-int8"
]
Prune: TypeAlias = Literal["off", "auto"] | float


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a build must hold to be delivered; None where nothing is asked."""

    accuracy_drop_pct: Annotated[
        float | None,
        Field(ge=0, le=100, description="Largest loss of the task's metric against the given model, in percent."),
    ] = None
    memory_reduction_pct: Annotated[
        float | None, Field(ge=0, lt=100, description="Smallest saving of memory against the given model, in percent.")
    ] = None
    latency_ms: Annotated[
        float | None,
        Field(gt=0, description="Longest median time of one inference at the optimal batch, in milliseconds."),
    ] = None
    saliency_correlation_min: Annotated[
        float | None,
        Field(
            ge=-1,
            le=1,
            description="Least rank correlation between the given model's saliency maps and the build's, for models "
            "of pictures.",
        ),
    ] = None
    memory_mib: Annotated[
        float | None,
        Field(
            gt=0,
            description="Most memory of the running process at the largest sizes, in MiB; weights are chosen by it.",
        ),
    ] = None
    perplexity_increase_pct: Annotated[
        float | None,
        Field(
            ge=0, le=100, description="generation: largest increase of the perplexity, in percent of the given model's."
        ),
    ] = None
    tokens_per_s_min: Annotated[
        float | None,
        Field(gt=0, description="generation: least tokens per second, one at a time, with a half full cache."),
    ] = None


class Kept(StrEnum):
    """Which builds of a device are delivered for serving."""

    OFF = "off"
    AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Serve:
    """How a device's builds are served."""

    slo_ms: Annotated[float, Field(gt=0, description="Time of a request that says nothing, in milliseconds.")] = 50.0
    ladder: Annotated[
        Kept,
        Field(
            description="`auto` also delivers the other builds that passed all gates and are faster or more accurate, "
            "so that a server can step down under load; `off` (the default) delivers one."
        ),
    ] = Kept.OFF
    degraded_drop_pct: Annotated[
        float | None,
        Field(
            ge=0,
            le=100,
            description="Largest loss of the task's metric, in percent, of a build that answers only under load; none "
            "is delivered beyond `limits` when absent.",
        ),
    ] = None


class WhenUnjudged(StrEnum):
    """What becomes of a build one of whose gates nobody could judge."""

    DELIVER = "deliver"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class Unjudged:
    """What becomes of a build by the gate that nobody could judge; None where nothing is said, then it is delivered."""

    accuracy: Annotated[WhenUnjudged | None, Field(description="For `accuracy_drop_pct`.")] = None
    memory: Annotated[WhenUnjudged | None, Field(description="For `memory_reduction_pct`.")] = None
    latency: Annotated[WhenUnjudged | None, Field(description="For `latency_ms`.")] = None
    saliency: Annotated[WhenUnjudged | None, Field(description="For `saliency_correlation_min`.")] = None


@dataclass(frozen=True, kw_only=True)
class DeviceClass:
    """Devices that are built for alike.

    Args:
        name: The device class, and the folder its artifact is written to.
        profile: A built-in profile's name, or the path of a profile file; `load_profile` takes either.
        batch: Sizes of the batch dimension.
        dims: Sizes of other named dimensions of the model's inputs.
        inputs: Inputs that are fixed when the model is built.
        targets: Targets that compete for it, the preferred one first; the profile's own where the file names none.
        precision: `auto`, or the number format asked for.
        prune: `off`, `auto`, or the share of the multiply-accumulates to prune; None where the file does not say.
        recover_minutes: Time that a pruned model may be trained for; None where it is not.
        limits: The fleet's limits with the device's own over them.
        unjudged: What becomes of a build by the gate that nobody could judge, the device's own over the fleet's.
        serve: How its builds are served, the device's own in place of the fleet's; None where nothing is said.
        generation: How a language model is used on it; None for other models.
        origin: The fleet file; its key path there is `("devices", name)`.
    """

    name: str
    profile: str
    batch: Range = ONE
    dims: Mapping[str, Range] = field(default_factory=dict)
    inputs: Mapping[str, object] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    precision: Precision = "auto"
    prune: Prune | None = None
    recover_minutes: float | None = None
    limits: Limits = Limits()
    unjudged: Unjudged = Unjudged()
    serve: Serve | None = None
    generation: Generation | None = None
    origin: Origin = field(default=Origin(), compare=False, repr=False)

    @property
    def place(self) -> str:
        """`file:line devices.NAME`, for messages."""
        return self.origin.place(("devices", self.name))


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """One model and the device classes it is built for, in the order of the file; paths are absolute."""

    path: Path
    model: Path
    devices: Mapping[str, DeviceClass]
    cut: Cut | None = None
    calibration: Calibration | None = None
    evaluation: Evaluation | None = None
    preprocess: Preprocess | None = None
    generation: Generation | None = None
    limits: Limits = Limits()
    origin: Origin = field(default=Origin(), compare=False, repr=False)


def _widen(value: object) -> object:
    """A single size is a range of one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"min": value, "opt": value, "max": value}
    if not isinstance(value, dict):
        raise ValueError("expected an integer or {min, opt, max}")
    return value


def _at_least_one(value: Range | None) -> Range | None:
    if value is not None and value.min < 1:
        raise ValueError("must be 1 or more")
    return value


def _size_or_sum(value: object) -> object:
    """A text with a plus is a sum."""
    return value if isinstance(value, str) and "+" in value else _widen(value)


def _all_gates(value: object) -> object:
    """One word holds for every gate."""
    return dict.fromkeys(vars(Unjudged()), value) if isinstance(value, str) else value


def _once_each(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) < len(value):
        raise ValueError("names a target twice")
    return value


def read_prune(value: object) -> Prune:
    """`off`, `auto`, or a ratio between 0 and 1.

    Raises:
        ValueError: It is none of them.
    """
    if value == "off" or value == "auto":
        return "off" if value == "off" else "auto"
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1:
        return float(value)
    raise ValueError("must be off, auto, or a ratio above 0 and below 1 (0.3 prunes 30 % of the multiply-accumulates)")


_Size: TypeAlias = Annotated[Range, BeforeValidator(_widen, json_schema_input_type=int | Range)]
_Batch: TypeAlias = Annotated[
    _Size | None,
    AfterValidator(_at_least_one),
    Field(description="Batch sizes: one size, or min, opt and max; 1 when nothing is said."),
]
_SizeOrSum: TypeAlias = Annotated[
    Range | str,
    BeforeValidator(_size_or_sum, json_schema_input_type=int | Range | Annotated[str, Field(pattern=r"\+")]),
]
_Dims: TypeAlias = Annotated[
    Mapping[str, _SizeOrSum],
    Field(
        description="Sizes of other named dimensions of the model's inputs, by their names; a size may be a sum of "
        "others, such as `past + sequence`."
    ),
]
_Unjudged: TypeAlias = Annotated[
    Annotated[Unjudged, BeforeValidator(_all_gates, json_schema_input_type=WhenUnjudged | Unjudged)],
    Field(
        description="What becomes of a build whose gate nobody could judge: `deliver` (the default) or `fail`, for all "
        "gates or by gate."
    ),
]
_Number: TypeAlias = bool | int | float
_Inputs: TypeAlias = Annotated[
    Mapping[str, _Number | list[_Number] | list[list[_Number]]],
    Field(
        description="Inputs of the model that are fixed when it is built, by name: a number, or a list of numbers; the "
        "built model does not take them."
    ),
]
_Targets: TypeAlias = Annotated[
    tuple[str, ...],
    AfterValidator(_once_each),
    Field(
        description="Targets that compete for it, in place of the profile's, the preferred one first: the best build "
        "is delivered. One alone is forced."
    ),
]
_Asked: TypeAlias = Annotated[
    Precision | None, Field(description="Number format to build in; auto (the default) lets the plan choose.")
]
_PruneText: TypeAlias = Literal["off", "auto"] | Annotated[float, Field(gt=0, lt=1)]
_Pruned: TypeAlias = Annotated[
    Annotated[Prune, PlainValidator(read_prune, json_schema_input_type=_PruneText)] | None,
    Field(
        description="Channel pruning: off (the default), auto to search how much pays inside the limits, or the share "
        "of the multiply-accumulates to cut, above 0 and below 1."
    ),
]

_Served: TypeAlias = Annotated[Serve | None, Field(description="How `fleetc serve` answers with the builds.")]
_Generated: TypeAlias = Annotated[
    Generation | None, Field(description="How a decoder language model is used; it sizes its dimensions.")
]
_Recovered: TypeAlias = Annotated[
    Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
    Field(
        description="Minutes that each pruned form may be trained for to give what the original gave; not at all when "
        "absent. It needs PyTorch, and pruning."
    ),
]


@dataclass(frozen=True, kw_only=True)
class DeviceEntry:
    """One device class, as the file writes it."""

    profile: Annotated[
        str,
        Field(min_length=1, description="A built-in profile's name, or the path of one, relative to the fleet file."),
    ]
    batch: _Batch = None
    dims: _Dims = field(default_factory=dict)
    inputs: _Inputs = field(default_factory=dict)
    targets: _Targets = ()
    precision: _Asked = None
    prune: _Pruned = None
    recover_minutes: _Recovered = None
    generation: _Generated = None
    limits: Annotated[Limits, Field(description="Limits of this device class, over the fleet's.")] = Limits()
    unjudged: _Unjudged = Unjudged()
    serve: _Served = None


def _not_json(name: str) -> str:
    if name.endswith(".json"):
        raise ValueError("must not end in .json: the name becomes a folder beside build.json")
    return name


_DeviceName: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$"), AfterValidator(_not_json)]


@dataclass(frozen=True, kw_only=True)
class FleetFile:
    """A fleet, as the file writes it."""

    schema: Annotated[Literal[1], Field(description="Version of this format.")]
    model: Annotated[Path, Field(description="The ONNX model, relative to the fleet file.")]
    cut: Annotated[Cut | None, Field(description="The part of the model that is built; all of it when absent.")] = None
    calibration: Annotated[
        Calibration | None, Field(description="Sample inputs for probing and verifying; random ones when absent.")
    ] = None
    evaluation: Annotated[Evaluation | None, Field(description="The task accuracy is judged by.")] = None
    preprocess: Annotated[
        Preprocess | None, Field(description="How pictures of calibration and evaluation become inputs.")
    ] = None
    generation: _Generated = None
    limits: Annotated[Limits, Field(description="Limits of every device class.")] = Limits()
    unjudged: _Unjudged = Unjudged()
    batch: _Batch = None
    dims: _Dims = field(default_factory=dict)
    inputs: _Inputs = field(default_factory=dict)
    precision: _Asked = None
    prune: _Pruned = None
    recover_minutes: _Recovered = None
    serve: _Served = None
    devices: Annotated[
        Mapping[_DeviceName, DeviceEntry],
        Field(min_length=1, description="The device classes by name; the name becomes the folder of the artifact."),
    ]


def load_fleet(path: str | Path) -> Fleet:
    """The fleet a file describes, its paths made absolute.

    The model and the calibration data must be there, and profile names must be known; profile files are not read.

    Raises:
        FleetError: Unreadable file, or everything that is wrong in it, each with its line.
    """
    return fleet_of(read_yaml(Path(path), error=FleetError))


def fleet_of(document: Document) -> Fleet:
    """The fleet that a document describes, relative paths counted from the folder of its origin.

    Raises:
        FleetError: Everything that is wrong in it, each with its place.
    """
    written, problems = validate(FleetFile, document.data, origin=document.origin, error=FleetError)
    problems += _missing(document)
    if written is None or problems:
        raise combine(problems)
    return _resolve(written, document.origin)


def _resolve(written: FleetFile, origin: Origin) -> Fleet:
    path = Path(origin.path).absolute()
    calibration, evaluation = written.calibration, written.evaluation
    return Fleet(
        path=path,
        model=path.parent / written.model,
        devices={name: _device(name, entry, written, origin) for name, entry in written.devices.items()},
        cut=written.cut,
        calibration=calibration and _calibration(path.parent, calibration, evaluation),
        evaluation=evaluation and _beside(path.parent, evaluation),
        preprocess=written.preprocess,
        generation=written.generation,
        limits=written.limits,
        origin=origin,
    )


def _calibration(folder: Path, calibration: Calibration, evaluation: Evaluation | None) -> Calibration:
    """The calibration with absolute paths; a text's tokenizer is the evaluation's where it names none."""
    tokenizer = calibration.tokenizer or (evaluation.tokenizer if evaluation else None)
    return replace(calibration, path=folder / calibration.path, tokenizer=tokenizer and folder / tokenizer)


def _beside(folder: Path, evaluation: Evaluation) -> Evaluation:
    """The evaluation with absolute paths; `module:function` becomes a path too, whose folder is searched first."""
    named = {name: getattr(evaluation, name) for name in ("images", "classes", "tokenizer", "other", "prompts")}
    beside = {name: folder / path for name, path in named.items() if path is not None}
    return replace(evaluation, path=folder / evaluation.path, **beside)


def _device(name: str, entry: DeviceEntry, fleet: FleetFile, origin: Origin) -> DeviceClass:
    """The device class with the fleet's defaults below what it says itself."""
    folder = Path(origin.path).absolute().parent
    return DeviceClass(
        name=name,
        profile=str(folder / entry.profile) if is_path(entry.profile) else entry.profile,
        batch=entry.batch or fleet.batch or ONE,
        dims=_dims(name, entry, fleet, origin),
        inputs={**fleet.inputs, **entry.inputs},
        targets=entry.targets,
        precision=entry.precision or fleet.precision or "auto",
        prune=entry.prune or fleet.prune,
        recover_minutes=entry.recover_minutes or (fleet.recover_minutes if entry.prune != "off" else None),
        limits=replace(
            fleet.limits, **{key: value for key, value in asdict(entry.limits).items() if value is not None}
        ),
        unjudged=replace(
            fleet.unjudged, **{gate: value for gate, value in vars(entry.unjudged).items() if value is not None}
        ),
        serve=entry.serve or fleet.serve,
        generation=entry.generation or fleet.generation,
        origin=origin,
    )


def _dims(name: str, entry: DeviceEntry, fleet: FleetFile, origin: Origin) -> dict[str, Range]:
    try:
        return resolve_sums({**fleet.dims, **entry.dims}, batch=entry.batch or fleet.batch or ONE)
    except ValueError as error:
        raise FleetError(str(error), where=origin.place(("devices", name, "dims"))) from error


def _missing(document: Document) -> Iterator[FleetError]:
    """What the file names and is not there, each at its line; read from the raw file to be told with all else."""
    folder, place = Path(document.origin.path).absolute().parent, document.origin.place
    for keys, is_there, what in _NAMED:
        text = _text_at(document.data, keys)
        if text is not None and not is_there(folder / text):
            yield FleetError(f"{what} {str(folder / text)!r}", where=place(keys))
    devices = document.data.get("devices")
    for name in devices if isinstance(devices, dict) else ():
        keys = ("devices", name, "profile")
        text = _text_at(document.data, keys)
        try:
            file = find_profile(str(folder / text) if is_path(text) else text) if text else None
        except ProfileError as reason:
            yield FleetError(reason.what, where=place(keys), remedy=reason.remedy)
        else:
            if file and not _is_file(file):
                yield FleetError(f"there is no file {str(file)!r}", where=place(keys))


def _text_at(value: object, keys: KeyPath) -> str | None:
    """The text at a key path; None where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def _holds_samples(path: Path) -> bool:
    is_arrays = path.suffix in (".npz", ".npy", ".txt") and _is_file(path)
    return is_arrays or _is_folder(path) or is_function(path.name)


def _holds_labels(path: Path) -> bool:
    return _is_file(path) or _is_folder(path) or is_function(path.name)


def _is_file(path: Path) -> bool:
    return _is(path, stat.S_ISREG)


def _is_folder(path: Path) -> bool:
    return _is(path, stat.S_ISDIR)


def _is(path: Path, kind: Callable[[int], bool]) -> bool:
    try:
        return kind(path.stat().st_mode)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return False


_OR = "a folder or module:function, found none"
_NAMED: tuple[tuple[KeyPath, Callable[[Path], bool], str], ...] = (
    (("model",), _is_file, "there is no file"),
    (
        ("calibration", "path"),
        _holds_samples,
        "expected a .npz or .npy file, a text, a folder or module:function, found none at",
    ),
    (("evaluation", "path"), _holds_labels, f"expected a file, {_OR} at"),
    (("evaluation", "images"), _is_folder, "there is no folder"),
    (("evaluation", "classes"), _is_file, "there is no file"),
    (("evaluation", "tokenizer"), _is_file, "there is no file"),
    (("evaluation", "other"), _is_file, "there is no file"),
    (("evaluation", "prompts"), _is_file, "there is no file"),
    (("calibration", "tokenizer"), _is_file, "there is no file"),
)
"""What a fleet file names by path: where, whether it is there, and what to say if it is not."""
