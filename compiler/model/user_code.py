"""The child's side of functions of the user's own: imports `module:function`, calls it, and sends what it gives.

Whatever the function does, it does to this process: the parent sees frames on a pipe, or that there are no more.
A frame is two lengths, a header in JSON, and arrays as an uncompressed .npz file.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from compiler.errors import CompilerError, DataError, InternalError
from compiler.model.child import follow_parent
from compiler.model.numerics import Array, load_arrays, write_arrays

LENGTHS = struct.Struct(">QQ")
"""Bytes of a frame's header, and of its arrays."""

FRAME_BYTES = 8 << 20
"""Samples are sent in frames of about this size: a frame costs a millisecond, and both sides hold one or two."""

SAMPLE_BYTES = 256
"""What a sample without content counts: its label, and the Python objects that hold it."""

Frame: TypeAlias = tuple[dict[str, Any], dict[str, Array]]


def find_function(spec: str, folder: Path) -> Callable[..., Any]:
    """The function `module:function`; the folder is searched before installed packages. Importing runs the module.

    Raises:
        DataError: The module cannot be imported, or has no such function.
    """
    module_name, _, name = spec.partition(":")
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        remedy = f"The module is looked for in {folder} and among the installed packages."
        raise DataError(f"it cannot be imported: {_said(error)}", where=spec, remedy=remedy) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise DataError(f"module '{module_name}' has no function '{name}'", where=spec)
    return function  # type: ignore[no-any-return]


def call(function: Callable[..., Any], spec: str, *arguments: object, **options: object) -> Any:
    """What the user's function returns; raises DataError naming it where it raises."""
    try:
        return function(*arguments, **options)
    except (Exception, SystemExit) as error:  # whatever the user's function raises
        raise DataError(f"the function raised {_said(error)}", where=spec) from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


def check(request: Mapping[str, Any], folder: Path) -> Iterator[Frame]:
    """Sends nothing: that the function can be found is all that is asked."""
    find_function(request["spec"], Path(request["folder"]))
    yield from ()


def samples(request: Mapping[str, Any], folder: Path) -> Iterator[Frame]:
    """Sends the first `count` samples of the function, those of one form stacked in a frame."""
    spec = request["spec"]
    returned = call(find_function(spec, Path(request["folder"])), spec)
    if not isinstance(returned, Iterable):
        raise DataError(f"it returns {type(returned).__name__}, which cannot be iterated over", where=spec)
    iterator = islice(iter(returned), request["count"])
    held: list[_Sample] = []
    size = number = 0
    while (item := call(partial(next, iterator, None), spec)) is not None:
        number += 1
        sample = _sample(item, spec, where=f"{spec}, sample {number}")
        if held and (size >= FRAME_BYTES or sample.form != held[0].form):
            yield _stacked(held)
            held, size = [], 0
        held.append(sample)
        size += SAMPLE_BYTES + sum(array.nbytes for array in sample.arrays)
    if held:
        yield _stacked(held)


@dataclass(frozen=True)
class _Sample:
    """What the function gave once.

    Args:
        form: Name, element type and shape of each array; no name where the sample is the array itself.
        arrays: The arrays, without Python objects.
        label: The label, as JSON can hold it.
    """

    form: tuple[tuple[str | None, str, tuple[int, ...]], ...]
    arrays: tuple[Array, ...]
    label: Any


def _sample(item: object, spec: str, *, where: str) -> _Sample:
    sample, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
    named = {str(name): value for name, value in sample.items()} if isinstance(sample, Mapping) else {None: sample}
    # copied: a function may fill one buffer again and again
    copies = [call(np.array, spec, value) for value in named.values()]
    arrays = tuple(_storable(array, where=where) for array in copies)
    form = tuple((name, str(array.dtype), array.shape) for name, array in zip(named, copies, strict=True))
    return _Sample(form, arrays, _plain(label, where=where))


def _stacked(held: Sequence[_Sample]) -> Frame:
    """A frame of samples of one form."""
    header = {
        "names": [name for name, _, _ in held[0].form],
        "dtypes": [dtype for _, dtype, _ in held[0].form],
        "labels": [sample.label for sample in held],
    }
    columns = zip(*(sample.arrays for sample in held), strict=True)
    return header, {str(index): np.stack(column) for index, column in enumerate(columns)}


def metric(request: Mapping[str, Any], folder: Path) -> Iterator[Frame]:
    """Sends what the function gives for outputs and labels, as numbers."""
    spec = request["spec"]
    function = find_function(spec, Path(request["folder"]))
    outputs, reference = _read(folder / "outputs.npz"), _read(folder / "reference.npz")
    labels = (_read(folder / "labels.npz") or {}).get("labels")
    value = _value(function, spec, outputs or {}, labels, reference)
    yield {}, {"value": value}


def resample(request: Mapping[str, Any], folder: Path) -> Iterator[Frame]:
    """Sends what the function gives for each resample, a row of multiplicities; NaN where it gives no number."""
    spec = request["spec"]
    function = find_function(spec, Path(request["folder"]))
    outputs, reference = _read(folder / "outputs.npz") or {}, _read(folder / "reference.npz")
    labels = (_read(folder / "labels.npz") or {}).get("labels")
    values = []
    for row in (_read(folder / "weights.npz") or {})["weights"]:
        index = np.repeat(np.arange(len(row)), row.astype(np.int64))
        chosen = {name: array[index] for name, array in outputs.items()}
        others = None if reference is None else {name: array[index] for name, array in reference.items()}
        try:
            again = _value(function, spec, chosen, None if labels is None else labels[index], others)
            values.append(float(again) if again.ndim == 0 else float("nan"))
        except DataError:
            values.append(float("nan"))
    yield {}, {"values": np.array(values)}


WORK: Mapping[str, Callable[[Mapping[str, Any], Path], Iterator[Frame]]] = {
    "check": check,
    "samples": samples,
    "metric": metric,
    "resample": resample,
}


def _value(
    function: Callable[..., Any],
    spec: str,
    outputs: Mapping[str, Array],
    labels: Array | None,
    reference: Mapping[str, Array] | None,
) -> Array:
    """One number, or one per sample.

    Raises:
        DataError: The function raises, or returns no finite number.
    """
    options = {"reference": reference} if takes(function, "reference") else {}
    returned = call(function, spec, outputs, labels, **options)
    count = len(next(iter(outputs.values())))
    try:
        value = np.asarray(returned, np.float64)
    except (TypeError, ValueError):
        value = np.array(np.nan)
    if value.shape not in ((), (count,)) or not np.isfinite(value).all():
        what = f"the function returned {str(returned)[:100]!r}, which is no finite number"
        raise DataError(what, where=spec, remedy="Return the metric in percent: one number, or one per sample.")
    return value


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of that name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _plain(label: object, *, where: str) -> Any:
    """A label as JSON can hold it."""
    if isinstance(label, np.generic):
        label = label.item()
    if isinstance(label, np.ndarray):
        return {"values": label.tolist(), "dtype": str(label.dtype)}
    if isinstance(label, list | tuple):
        return [_plain(part, where=where) for part in label]
    if label is None or isinstance(label, str | bool | int | float):
        return label
    remedy = "Give a number, a text, or an array of numbers."
    raise DataError(f"the label is of type {type(label).__name__}", where=where, remedy=remedy)


def _storable(array: Array, *, where: str) -> Array:
    """The array without Python objects: texts become an array of texts."""
    if array.dtype != object:
        return array
    if all(isinstance(value, str) for value in array.reshape(-1)):
        return array.astype(str)
    raise DataError("it gives Python objects where an array of numbers is expected", where=where)


def _read(path: Path) -> dict[str, Array] | None:
    return load_arrays(path) if path.exists() else None


def send(pipe: io.BufferedWriter, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Writes one frame."""
    packed = io.BytesIO()
    if arrays:
        write_arrays(packed, arrays)
    text = json.dumps(header).encode()
    pipe.write(LENGTHS.pack(len(text), len(packed.getbuffer())))
    pipe.write(text)
    pipe.write(packed.getbuffer())
    pipe.flush()


def main(folder: Path) -> None:
    """Reads the request, runs the user's function, and sends frames; the last says that there are no more."""
    follow_parent()
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    with open(request["answers_fd"], "wb") as pipe:  # noqa: PTH123  a pipe of our parent's
        try:
            for header, arrays in WORK[request["work"]](request, folder):
                send(pipe, header, arrays)
            send(pipe, {"end": True}, {})
        except CompilerError as error:
            send(pipe, {"error": error.to_dict()}, {})
        except Exception as error:  # a bug of this module: the user's code is called by `call`
            send(pipe, {"error": InternalError(f"{type(error).__name__}: {error}").to_dict()}, {})
    sys.stdout.flush()
    os._exit(0)  # threads that the user's code has left behind must not hold us up


if __name__ == "__main__":
    main(Path(sys.argv[1]))
