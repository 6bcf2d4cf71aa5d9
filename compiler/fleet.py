"""The fleet file: one model, the device classes it is built for, and what each of them asks of the build."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from compiler.errors import FleetError, ProfileError, combine
from compiler.fleet_data import Calibration, Evaluation, Preprocess, is_function
from compiler.profile import find_profile, is_path
from compiler.validate import validate
from compiler.yamlfile import KeyPath, Origin, read_yaml

Precision: TypeAlias = Literal["auto", "fp32", "fp16", "bf16", "fp16-weights", "int8", "fp8", "int4-weights"]


@dataclass(frozen=True)
class Range:
    """The sizes one dimension may take on a device: all of min..max, fastest at opt."""

    min: Annotated[int, Field(ge=1, description="Smallest size.")]
    opt: Annotated[int, Field(ge=1, description="Size to be fastest at.")]
    max: Annotated[int, Field(ge=1, description="Largest size.")]

    def __post_init__(self) -> None:
        if not self.min <= self.opt <= self.max:
            raise ValueError("must hold min <= opt <= max")

    def __str__(self) -> str:
        return str(self.min) if self.is_fixed else f"{self.min}..{self.max} (fastest at {self.opt})"

    @property
    def is_fixed(self) -> bool:
        """Whether only one size is possible."""
        return self.min == self.max


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


@dataclass(frozen=True, kw_only=True)
class DeviceClass:
    """Devices that are built for alike.

    Args:
        name: The device class, and the folder its artifact is written to.
        profile: A built-in profile's name, or the path of a profile file; `load_profile` takes either.
        batch: Sizes of the batch dimension.
        dims: Sizes of other named dimensions of the model's inputs.
        precision: `auto`, or the number format asked for.
        limits: The fleet's limits with the device's own over them.
        origin: The fleet file; its key path there is `("devices", name)`.
    """

    name: str
    profile: str
    batch: Range = Range(1, 1, 1)
    dims: Mapping[str, Range] = field(default_factory=dict)
    precision: Precision = "auto"
    limits: Limits = Limits()
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
    calibration: Calibration | None = None
    evaluation: Evaluation | None = None
    preprocess: Preprocess | None = None
    limits: Limits = Limits()
    origin: Origin = field(default=Origin(), compare=False, repr=False)


def _widen(value: object) -> object:
    """A single size is a range of one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"min": value, "opt": value, "max": value}
    if not isinstance(value, dict):
        raise ValueError("expected an integer or {min, opt, max}")
    return value


_Size: TypeAlias = Annotated[Range, BeforeValidator(_widen, json_schema_input_type=int | Range)]
_Batch: TypeAlias = Annotated[
    _Size | None, Field(description="Batch sizes: one size, or min, opt and max; 1 when nothing is said.")
]
_Dims: TypeAlias = Annotated[
    Mapping[str, _Size], Field(description="Sizes of other named dimensions of the model's inputs, by their names.")
]
_Asked: TypeAlias = Annotated[
    Precision | None, Field(description="Number format to build in; auto (the default) lets the plan choose.")
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
    precision: _Asked = None
    limits: Annotated[Limits, Field(description="Limits of this device class, over the fleet's.")] = Limits()


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
    calibration: Annotated[
        Calibration | None, Field(description="Sample inputs for probing and verifying; random ones when absent.")
    ] = None
    evaluation: Annotated[Evaluation | None, Field(description="The task accuracy is judged by.")] = None
    preprocess: Annotated[
        Preprocess | None, Field(description="How pictures of calibration and evaluation become inputs.")
    ] = None
    limits: Annotated[Limits, Field(description="Limits of every device class.")] = Limits()
    batch: _Batch = None
    dims: _Dims = field(default_factory=dict)
    precision: _Asked = None
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
    document = read_yaml(Path(path), error=FleetError)
    written, problems = validate(FleetFile, document.data, origin=document.origin, error=FleetError)
    if written is None:
        raise combine(problems)
    fleet = _resolve(written, document.origin)
    if problems := list(_missing(fleet)):
        raise combine(problems)
    return fleet


def _resolve(written: FleetFile, origin: Origin) -> Fleet:
    path = Path(origin.path).absolute()
    calibration, evaluation = written.calibration, written.evaluation
    return Fleet(
        path=path,
        model=path.parent / written.model,
        devices={name: _device(name, entry, written, origin) for name, entry in written.devices.items()},
        calibration=calibration and replace(calibration, path=path.parent / calibration.path),
        evaluation=evaluation and _beside(path.parent, evaluation),
        preprocess=written.preprocess,
        limits=written.limits,
        origin=origin,
    )


def _beside(folder: Path, evaluation: Evaluation) -> Evaluation:
    """The evaluation with absolute paths; `module:function` becomes a path too, whose folder is searched first."""
    images, classes = evaluation.images, evaluation.classes
    return replace(
        evaluation,
        path=folder / evaluation.path,
        images=images and folder / images,
        classes=classes and folder / classes,
    )


def _device(name: str, entry: DeviceEntry, fleet: FleetFile, origin: Origin) -> DeviceClass:
    """The device class with the fleet's defaults below what it says itself."""
    folder = Path(origin.path).absolute().parent
    return DeviceClass(
        name=name,
        profile=str(folder / entry.profile) if is_path(entry.profile) else entry.profile,
        batch=entry.batch or fleet.batch or Range(1, 1, 1),
        dims={**fleet.dims, **entry.dims},
        precision=entry.precision or fleet.precision or "auto",
        limits=replace(
            fleet.limits, **{key: value for key, value in asdict(entry.limits).items() if value is not None}
        ),
        origin=origin,
    )


def _missing(fleet: Fleet) -> Iterator[FleetError]:
    """What the file names and is not there, each at its line."""
    place = fleet.origin.place
    if not _is(fleet.model, stat.S_ISREG):
        yield FleetError(f"there is no file {str(fleet.model)!r}", where=place(("model",)))
    if (calibration := fleet.calibration) and not _holds_samples(calibration.path):
        what = f"expected a .npz or .npy file, a folder or module:function, found none at {str(calibration.path)!r}"
        yield FleetError(what, where=place(("calibration", "path")))
    if evaluation := fleet.evaluation:
        yield from _missing_evaluation(evaluation, place)
    for name, device in fleet.devices.items():
        where = place(("devices", name, "profile"))
        try:
            file = find_profile(device.profile)
        except ProfileError as reason:
            yield FleetError(reason.what, where=where, remedy=reason.remedy)
        else:
            if not _is(file, stat.S_ISREG):
                yield FleetError(f"there is no file {str(file)!r}", where=where)


def _missing_evaluation(evaluation: Evaluation, place: Callable[[KeyPath], str]) -> Iterator[FleetError]:
    path = evaluation.path
    if not (_is(path, stat.S_ISDIR) or _is(path, stat.S_ISREG) or is_function(path.name)):
        what = f"expected a file, a folder or module:function, found none at {str(path)!r}"
        yield FleetError(what, where=place(("evaluation", "path")))
    if evaluation.images and not _is(evaluation.images, stat.S_ISDIR):
        yield FleetError(f"there is no folder {str(evaluation.images)!r}", where=place(("evaluation", "images")))
    if evaluation.classes and not _is(evaluation.classes, stat.S_ISREG):
        yield FleetError(f"there is no file {str(evaluation.classes)!r}", where=place(("evaluation", "classes")))


def _holds_samples(path: Path) -> bool:
    is_arrays = path.suffix in (".npz", ".npy") and _is(path, stat.S_ISREG)
    return is_arrays or _is(path, stat.S_ISDIR) or is_function(path.name)


def _is(path: Path, kind: Callable[[int], bool]) -> bool:
    try:
        return kind(path.stat().st_mode)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return False
