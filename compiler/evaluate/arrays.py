"""Samples out of .npz and .npy files, row by row: an archive of any size is never whole in memory.

A set is read once for each model that is run on it. So what is small is unpacked once, and mapped from then on.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Literal

import numpy as np

from compiler.errors import CompilerError, DataError, combine
from compiler.evaluate.dataset import Dataset, Step
from compiler.evaluate.layout import Layout, find_layouts
from compiler.evaluate.samples import RESERVED, misfit, reading, sample_files
from compiler.evaluate.select import Indices, select
from compiler.model.numerics import Array
from compiler.model.spec import TensorSpec

# labels are held in memory, unlike samples, which are read step by step
MAX_LABEL_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 22
"""Bytes read at a time: small beside any model, large beside the cost of a step."""

MOST_UNPACKED_BYTES = 1 << 27
"""Largest array of an archive that is unpacked once: a few of them fit on any disk that holds a build."""
_UNPACKED = 4
"""Arrays that stay unpacked at a time: pictures and labels of calibration and evaluation."""


@dataclass(frozen=True)
class _Column:
    """One array of a file, not read yet."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    in_columns: bool

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


def open_arrays(path: Path, inputs: Sequence[TensorSpec], *, labelled: bool | None, count: int | None) -> Dataset:
    """Samples of a .npz (one array per input, `labels`, `origin`), of a .npy, or of a folder of them.

    Args:
        path: The file or folder.
        inputs: What the model takes.
        labelled: Whether labels are needed; None takes them where every file has them.
        count: How many samples to use, taken evenly; all if None.

    Raises:
        DataError: Something does not fit; every problem that shows without reading the samples is listed.
    """
    files = sample_files(path)
    problems: list[CompilerError] = []
    tables = [table for file in files if (table := _table(file, inputs, labelled, problems))]
    if not problems and not any(table.rows for table in tables):
        problems.append(DataError("there are no samples", where=str(path), remedy="Give at least one."))
    if problems:
        raise combine(problems)
    total = sum(table.rows for table in tables)
    labels = _joined(tables)
    chosen = select(total, labels, count, where=path)
    return Dataset(
        count=len(chosen),
        origin=_origin(path, tables),
        digest=_digest(files, chosen, labels),
        inputs=tuple(inputs),
        steps=partial(_steps, tables, chosen, tuple(inputs)),
        labels=None if labels is None else labels[chosen],
        whole=any(table.whole for table in tables),
    )


def array_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Array → shape of a .npz, of which only the headers are read. Raises DataError where it cannot be read."""
    return {name: column.shape for name, column in _columns(file).items()}


@dataclass(frozen=True)
class _Table:
    """The samples of one file."""

    columns: Mapping[str, _Column]
    layouts: Mapping[str, Layout]
    rows: int
    whole: bool
    labels: Array | None
    origin: str


def _table(
    file: Path, inputs: Sequence[TensorSpec], labelled: bool | None, problems: list[CompilerError]
) -> _Table | None:
    """The samples of a file; what is wrong with it is added to the problems."""
    try:
        columns = _columns(file)
        samples = _inputs_of(file, columns, inputs)
        wanted = labelled or (labelled is None and "labels" in columns and "labels" not in samples)
        labels = _labels(file, columns) if wanted else None
        origin = str(_small(columns["origin"])) if "origin" in columns and "origin" not in samples else ""
    except DataError as error:
        problems.append(error)
        return None
    misfits: list[CompilerError] = [
        problem
        for spec in inputs
        if (problem := misfit(spec, (c := samples[spec.name]).dtype, c.shape, where=f"{file}: input '{spec.name}'"))
    ]
    if misfits:
        problems += misfits
        return None
    layouts = find_layouts(inputs, {name: column.shape for name, column in samples.items()})
    lengths = {name: samples[name].shape[0] for name, layout in layouts.items() if layout != Layout.SHARED}
    lengths |= {} if labels is None else {"labels": len(labels)}
    if len(set(lengths.values())) > 1:
        problems.append(DataError(f"arrays have different numbers of samples: {lengths}", where=str(file)))
        return None
    whole = any(layout != Layout.ROWS for layout in layouts.values())
    return _Table(samples, layouts, min(lengths.values(), default=1), whole, labels, origin)


def _columns(file: Path) -> dict[str, _Column]:
    with reading(file):
        if file.suffix == ".npy":
            with file.open("rb") as opened:
                return {"": _Column(file, "", *_header(opened))}
        with zipfile.ZipFile(file) as archive:
            members = {}
            for info in archive.infolist():
                with archive.open(info) as member:
                    shape, dtype, in_columns = _header(member)
                claimed = int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
                if claimed > info.file_size:
                    raise ValueError(f"'{info.filename}' is cut short")
                name = info.filename.removesuffix(".npy")
                members[name] = _Column(file, info.filename, shape, dtype, in_columns)
            return members


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic], bool]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, in_columns, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    return shape, dtype, in_columns


def _inputs_of(file: Path, columns: Mapping[str, _Column], inputs: Sequence[TensorSpec]) -> dict[str, _Column]:
    names = [spec.name for spec in inputs]
    data = {key: column for key, column in columns.items() if key in names or key not in RESERVED}
    if len(names) == 1 and set(data) in ({""}, {"arr_0"}):
        return {names[0]: next(iter(data.values()))}
    missing, extra = [name for name in names if name not in data], [key for key in data if key not in names]
    if missing or extra:
        faults = [f"no array for {', '.join(map(repr, missing))}"] if missing else []
        faults += [f"arrays {', '.join(map(repr, extra))} that the model has no input for"] if extra else []
        remedy = f"Save one array per input: numpy.savez(file, {', '.join(f'{name}=…' for name in names)}, labels=…)."
        raise DataError(f"the file holds {' and '.join(faults)}", where=str(file), remedy=remedy)
    return {name: data[name] for name in names}


def _labels(file: Path, columns: Mapping[str, _Column]) -> Array:
    if "labels" not in columns:
        raise DataError("there are no labels", where=str(file), remedy="Save them beside the inputs: labels=….")
    labels = _small(columns["labels"])
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        what = f"labels are {labels.dtype.name} of shape {labels.shape}"
        raise DataError(what, where=str(file), remedy="Give one integer or one name per sample.")
    return labels


def _small(column: _Column) -> Array:
    with reading(column.file), zipfile.ZipFile(column.file) as archive, archive.open(column.key) as member:
        if archive.getinfo(column.key).file_size > MAX_LABEL_BYTES:
            raise ValueError(f"'{column.key}' is larger than {MAX_LABEL_BYTES} bytes")
        return np.lib.format.read_array(member, allow_pickle=False)


def _joined(tables: Sequence[_Table]) -> Array | None:
    """The labels of all files; None where one has none."""
    labelled = [table.labels for table in tables if table.labels is not None]
    return np.concatenate(labelled) if len(labelled) == len(tables) else None


def _origin(path: Path, tables: Sequence[_Table]) -> str:
    origins = sorted({table.origin for table in tables if table.origin})
    return f"{path.name}: {', '.join(origins)}" if origins else path.name


def _digest(files: Sequence[Path], chosen: Indices, labels: Array | None) -> str:
    digest = hashlib.sha256(b"arrays\0" if labels is None else b"arrays\0labelled\0")
    for file in files:
        with reading(file), file.open("rb") as opened:
            digest.update(f"{file.name}\0".encode() + hashlib.file_digest(opened, "sha256").digest())
    digest.update(np.ascontiguousarray(chosen, np.int64).tobytes())
    return digest.hexdigest()


def _steps(tables: Sequence[_Table], chosen: Indices, inputs: tuple[TensorSpec, ...]) -> Iterator[Step]:
    """One step per chunk of rows; they share one position in each file, so they must run in order."""
    start = 0
    for table in tables:
        rows = chosen[(chosen >= start) & (chosen < start + table.rows)] - start
        start += table.rows
        per_chunk = _rows_per_chunk(table)
        chunks = np.split(rows, range(per_chunk, len(rows), per_chunk)) if len(rows) else []
        streams = {spec.name: _samples(table, spec, chunks) for spec in inputs}
        yield from [partial(_next, streams)] * len(chunks)


def _rows_per_chunk(table: _Table) -> int:
    row_bytes = sum(column.row_bytes for column in table.columns.values())
    return 1 if table.whole else max(1, _CHUNK_BYTES // max(1, row_bytes))


def _next(streams: Mapping[str, Iterator[Array]]) -> dict[str, Array]:
    return {name: next(stream) for name, stream in streams.items()}


def _samples(table: _Table, spec: TensorSpec, chunks: Sequence[Indices]) -> Iterator[Array]:
    """An input for each chunk: its rows, a complete one (chunks are then of one sample), or what all samples share."""
    column, layout = table.columns[spec.name], table.layouts[spec.name]
    fixed = spec.shape[0] if spec.shape else 1
    if layout == Layout.SHARED:
        whole = _whole(column)
        yield from (whole for _ in chunks)
    elif layout == Layout.STACKED:
        yield from (rows[0] for rows in _stream(column, chunks))
    elif table.whole and isinstance(fixed, int):
        yield from (np.repeat(rows, fixed, axis=0) for rows in _stream(column, chunks))  # one row fills a fixed batch
    else:
        yield from _stream(column, chunks)


def _whole(column: _Column) -> Array:
    with reading(column.file), _opened(column) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _stream(column: _Column, chunks: Sequence[Indices]) -> Iterator[Array]:
    """The rows of each chunk in turn, from a file that stays open meanwhile, or from one that is mapped."""
    if (array := _mapped(column)) is not None:
        yield from (_taken(array, rows) for rows in chunks)
        return
    with reading(column.file), _opened(column) as stream:
        _header(stream)
        if column.in_columns:
            stream.seek(0)
            whole = np.lib.format.read_array(stream, allow_pickle=False)
            yield from (whole[rows] for rows in chunks)
            return
        at = 0
        for rows in chunks:
            parts = []
            for first, end in _runs(rows):
                stream.seek((first - at) * column.row_bytes, 1)
                parts.append(_rows(stream, column, end - first))
                at = end
            yield np.concatenate(parts) if len(parts) > 1 else parts[0]


def _mapped(column: _Column) -> Array | None:
    """An array of an archive, unpacked by whoever reads it first; None of a file that need not be, or is too large."""
    with reading(column.file):
        facts = column.file.stat()
        size = int(np.prod(column.shape, dtype=np.float64)) * column.dtype.itemsize
        if not column.key or not 0 < size <= MOST_UNPACKED_BYTES:
            return None
        return _unpacked(column, (facts.st_ino, facts.st_size, facts.st_mtime_ns))


@lru_cache(maxsize=_UNPACKED)
def _unpacked(column: _Column, version: tuple[int, ...]) -> Array:
    """The array in a file without a name, which goes with the last reader; `version` tells one file from its next."""
    with _opened(column) as member, tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(member, copy, _CHUNK_BYTES)
        copy.seek(0)
        _header(copy)
        order: Literal["C", "F"] = "F" if column.in_columns else "C"
        mapped: Array = np.memmap(copy, column.dtype, "r", copy.tell(), column.shape, order)
        return np.asarray(mapped).astype(column.dtype.newbyteorder("="), copy=False)


def _taken(array: Array, rows: Indices) -> Array:
    """Rows of an array, in place where they are consecutive."""
    is_run = len(rows) and int(rows[-1]) - int(rows[0]) == len(rows) - 1 and bool((np.diff(rows) == 1).all())
    return array[int(rows[0]) : int(rows[-1]) + 1] if is_run else array[rows]


def _rows(stream: IO[bytes], column: _Column, count: int) -> Array:
    wanted = count * column.row_bytes
    raw = stream.read(wanted)
    if len(raw) < wanted:
        raise ValueError("the data end early")
    array = np.frombuffer(raw, column.dtype).reshape(count, *column.shape[1:])
    return array.astype(column.dtype.newbyteorder("="), copy=False)


def _runs(rows: Indices) -> Iterator[tuple[int, int]]:
    """First and one past the last of each run of consecutive numbers."""
    for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
        yield int(run[0]), int(run[-1]) + 1


@contextmanager
def _opened(column: _Column) -> Iterator[IO[bytes]]:
    if not column.key:
        with column.file.open("rb") as stream:
            yield stream
        return
    with zipfile.ZipFile(column.file) as archive, archive.open(column.key) as member:
        yield member
