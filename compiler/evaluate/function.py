"""Functions of the user's own, each call in a child process: a function that crashes, hangs or eats memory is an error.

A function is code from a fleet file, which on a build server anybody may have written. The child has a limit on time
and memory; it has the rights of this process, and is no protection against malice by itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import select
import subprocess
import zipfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import CompilerError, DataError, combine, from_dict
from compiler.evaluate.dataset import MAX_PROBLEMS, Dataset, Step
from compiler.evaluate.samples import misfit
from compiler.model.numerics import Array, Arrays, arrays_digest, load_arrays, write_arrays
from compiler.model.process import POLL_S, ChildLimits, Watch, death_of, kill_child, log_tail, start_child
from compiler.model.spec import TensorSpec
from compiler.model.user_code import LENGTHS, Frame
from compiler.store.scratch import scratch_folder

LIMITS = ChildLimits(timeout_s=1800.0)
"""What one call of a function may use, and how long it may take for the next few samples."""

MAX_HEADER_BYTES = 64 << 20
MAX_ARRAYS_BYTES = 4 << 30
"""Longest parts of a frame that are read: the other side may be anything by the time it writes."""

_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile)


def check_function(spec: str, folder: Path, *, child_limits: ChildLimits = LIMITS) -> None:
    """Imports `module:function` in a child process, to see whether it is there.

    Raises:
        DataError: The module cannot be imported, or has no such function.
    """
    for _ in ask("check", spec, folder, child_limits=child_limits):
        pass


def ask(
    work: str,
    spec: str,
    folder: Path,
    *,
    child_limits: ChildLimits,
    files: Mapping[str, Arrays] | None = None,
    count: int | None = None,
) -> Generator[Frame]:
    """What one work of `compiler.model.user_code` sends.

    Args:
        work: `check`, `samples`, `metric` or `resample`.
        spec: `module:function`.
        folder: Where the module is looked for before installed packages.
        child_limits: When to end it; the time counts from one frame to the next, while it is waited for.
        files: Arrays that it is given, by file.
        count: How many samples are wanted; all if None.

    Raises:
        DataError: Whatever the function did wrong, or how its process ended.
    """
    with scratch_folder() as scratch:
        for name, arrays in (files or {}).items():
            write_arrays(scratch / f"{name}.npz", arrays)
        answers, child_end = os.pipe()
        request = {"work": work, "spec": spec, "folder": str(folder.absolute()), "count": count}
        (scratch / "request.json").write_text(json.dumps({**request, "answers_fd": child_end}), encoding="utf-8")
        child = start_child("compiler.model.user_code", scratch, pass_fds=(child_end,))
        os.close(child_end)
        try:
            yield from _frames(_Pipe(answers, child, child_limits, spec, scratch), spec)
        finally:
            kill_child(child)
            os.close(answers)


def _frames(pipe: _Pipe, spec: str) -> Iterator[Frame]:
    while True:
        pipe.restart_clock()
        lengths = LENGTHS.unpack(pipe.read(LENGTHS.size))
        if lengths[0] > MAX_HEADER_BYTES or lengths[1] > MAX_ARRAYS_BYTES:
            raise DataError("what it gives cannot be read: it is too long", where=spec)
        text, packed = pipe.read(lengths[0]), pipe.read(lengths[1])
        try:
            header: dict[str, Any] = json.loads(text)
            arrays = _unpacked(packed)
            error = from_dict(header["error"]) if "error" in header else None
            is_last = bool(header.get("end"))
        except _UNREADABLE as problem:
            raise DataError(f"what it gives cannot be read: {problem}", where=spec) from problem
        if error is not None:
            raise error
        if is_last:
            return
        yield header, arrays


class _Pipe:
    """The pipe that a child writes frames into.

    Args:
        handle: Our end.
        child: The process.
        child_limits: When to give up.
        spec: The function, for messages.
        folder: The child's folder, with its log.
    """

    def __init__(
        self, handle: int, child: subprocess.Popen[bytes], child_limits: ChildLimits, spec: str, folder: Path
    ) -> None:
        self._handle, self._child, self._spec, self._folder = handle, child, spec, folder
        self._watch = Watch(child, child_limits)

    def restart_clock(self) -> None:
        """Begins to count the time anew: whoever reads may have taken long over the last frame."""
        self._watch.restart()

    def read(self, count: int) -> bytes:
        """The next so many bytes. Raises DataError where the child ends before, or breaks a limit."""
        parts: list[bytes] = []
        while count:
            has_ended = self._child.poll() is not None  # asked before looking: what it wrote last is still read
            if select.select([self._handle], [], [], 0 if has_ended else POLL_S)[0]:
                part = os.read(self._handle, min(count, 1 << 20))
                if not part:
                    raise self._ended()
                parts.append(part)
                count -= len(part)
            elif has_ended:  # its guardian may still hold the pipe open
                raise self._ended()
            elif broken := self._watch.broken_limit():
                raise DataError(f"the function {broken}", where=self._spec)
        return b"".join(parts)

    def _ended(self) -> DataError:
        try:
            code = self._child.wait(2.0)
        except subprocess.TimeoutExpired:  # it closed the pipe and goes on
            return DataError("the function ended without a result", where=self._spec)
        return DataError(f"the function's process {death_of(code)}{log_tail(self._folder)}", where=self._spec)


def _unpacked(packed: bytes) -> dict[str, Array]:
    return load_arrays(io.BytesIO(packed)) if packed else {}


def open_function(
    spec: str,
    folder: Path,
    inputs: Sequence[TensorSpec],
    *,
    labelled: bool | None,
    count: int | None,
    child_limits: ChildLimits = LIMITS,
) -> Dataset:
    """Samples from a function of the user's own, which is called anew each time they are read.

    The function takes nothing and returns an iterable of samples, or of (sample, label). A sample is a mapping of input
    name to array, or for a model of one input the array; shaped as one sample with or without a batch axis of 1.

    Args:
        spec: `module:function`.
        folder: Where the module is looked for first.
        inputs: What the model takes.
        labelled: Whether labels are needed; None takes them where there are any.
        count: Use the first so many; all if None.
        child_limits: What the function's process may use.

    Raises:
        DataError: The function fails, gives nothing, or gives samples that do not fit; every problem is listed.
    """
    problems: list[CompilerError] = []
    labels: list[object] = []
    digest, total = hashlib.sha256(b"function\0"), 0
    read = partial(_samples, spec, folder, tuple(inputs), child_limits)
    for sample, label in read(count, problems):
        digest.update(arrays_digest(sample).encode() + repr(label).encode(errors="surrogateescape"))
        labels.append(label)
        total += 1
    if not problems and (error := _shortage(spec, total, count)):
        problems.append(error)
    if labelled is None:
        labelled = all(label is not None for label in labels)
    if not problems and labelled and any(label is None for label in labels):
        what = "it gives samples without labels"
        problems.append(DataError(what, where=spec, remedy="Give (sample, label)."))
    if problems:
        raise combine(problems[:MAX_PROBLEMS])
    return Dataset(
        count=total,
        origin=spec,
        digest=digest.hexdigest(),
        inputs=tuple(inputs),
        steps=partial(_steps, spec, folder, tuple(inputs), child_limits, total),
        labels=np.array(labels) if labelled else None,
    )


def _shortage(spec: str, total: int, count: int | None) -> CompilerError | None:
    if not total:
        return DataError("it gives no samples", where=spec)
    if count is not None and total < count:
        what = f"{count} samples are asked for, it gives {total}"
        return DataError(what, where=spec, remedy=f"Write `samples: {total}`.")
    return None


def _samples(
    spec: str,
    folder: Path,
    inputs: Sequence[TensorSpec],
    child_limits: ChildLimits,
    count: int | None,
    problems: list[CompilerError],
) -> Iterator[tuple[dict[str, Array], object]]:
    """Samples with their labels; what is wrong with one is added to the problems, and it is left out."""
    number = 0
    with closing(ask("samples", spec, folder, child_limits=child_limits, count=count)) as frames:
        for header, arrays in frames:
            for sample, label in _rows(header, arrays, spec):
                number += 1
                try:
                    yield _fitted(sample, inputs, where=f"{spec}, sample {number}"), label
                except DataError as error:
                    problems.append(error)
                if len(problems) >= MAX_PROBLEMS:
                    return


def _rows(header: Mapping[str, Any], arrays: Arrays, spec: str) -> list[tuple[dict[str, Array] | Array, object]]:
    """The samples of a frame, as the function gave them, and their labels."""
    try:
        labels = [_label(label) for label in header["labels"]]
        columns = [_typed(arrays[str(index)], dtype) for index, dtype in enumerate(header["dtypes"])]
        if any(len(column) != len(labels) for column in columns):
            raise ValueError("arrays and labels differ in number")
        if header["names"] == [None]:  # the sample is the array itself
            return list(zip(columns[0], labels, strict=True))
        rows = [dict(zip(header["names"], row, strict=True)) for row in zip(*columns, strict=True)]
        return list(zip(rows or [{} for _ in labels], labels, strict=True))
    except _UNREADABLE as error:
        raise DataError(f"what it gives cannot be read: {error}", where=spec) from error


def _label(value: Any) -> object:
    return np.array(value["values"], value["dtype"]) if isinstance(value, dict) else value


def _typed(array: Array, dtype: str) -> Array:
    """An array of an element type that a .npz file cannot name: its bytes and its texts are there."""
    if str(array.dtype) == dtype:
        return array
    if array.dtype.kind == "V":
        import ml_dtypes  # noqa: F401  registers bfloat16 and its like

        return array.view(np.dtype(dtype))
    return array.astype(np.dtype(dtype))


def _fitted(sample: dict[str, Array] | Array, inputs: Sequence[TensorSpec], *, where: str) -> dict[str, Array]:
    if not isinstance(sample, dict):
        sample = {inputs[0].name: sample} if len(inputs) == 1 else {}
    if missing := [spec.name for spec in inputs if spec.name not in sample]:
        raise DataError(f"there is no array for {', '.join(map(repr, missing))}", where=where)
    arrays = {spec.name: sample[spec.name] for spec in inputs}
    rows = {
        name: array[None] if array.ndim < len(spec.shape) else array for (name, array), spec in _each(arrays, inputs)
    }
    for (name, array), spec in _each(rows, inputs):
        if problem := misfit(spec, array.dtype, array.shape, where=f"{where}, input '{name}'"):
            raise problem
        if len(array) != 1:
            raise DataError(
                f"shape {array.shape} holds {len(array)} samples, not one", where=f"{where}, input '{name}'"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError("it holds NaN or infinity", where=f"{where}, input '{name}'")
    return rows


def _each(arrays: Mapping[str, Array], inputs: Sequence[TensorSpec]) -> Iterator[tuple[tuple[str, Array], TensorSpec]]:
    return zip(arrays.items(), inputs, strict=True)


def _steps(
    spec: str, folder: Path, inputs: tuple[TensorSpec, ...], child_limits: ChildLimits, count: int
) -> Iterator[Step]:
    problems: list[CompilerError] = []
    samples = _samples(spec, folder, inputs, child_limits, count, problems)

    def step() -> dict[str, Array]:
        sample = next(samples, None)
        if sample is None:
            raise combine(problems or [DataError("it gives fewer samples the second time", where=spec)])
        return sample[0]

    for _ in range(count):
        yield step
