"""Inputs to probe and verify a model with: the user's own, checked, or seeded random ones, labelled as such."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.errors import CompilerError, DataError, combine
from compiler.evaluate.draw import draw
from compiler.evaluate.layout import BATCH, Layout, find_layouts, fits, forms
from compiler.model.frontend.kinds import InputKind
from compiler.model.numerics import Array
from compiler.model.spec import TensorSpec

SUFFIXES = (".npz", ".npy")

RESERVED = frozenset({"labels", "origin"})
"""Arrays of a .npz that are no inputs: labels, and one text that says where the samples are from."""

_NOTHING: Array = np.empty(0, dtype=np.float32)

MAX_ARRAY_BYTES = 2**33
"""8 GiB: the most one array in an archive may claim; the bound on memory that a hostile file can cost."""


@dataclass(frozen=True)
class Samples:
    """Inputs of single samples.

    Args:
        items: One mapping per sample, input name → array with a first axis of 1 where the model has a batch.
        origin: `random, seed 0`, or the file or folder they are from: labels every figure measured with them.
        warnings: What is unusual about them without being an error.
        is_random: Whether they were drawn.
    """

    items: tuple[Mapping[str, Array], ...]
    origin: str
    warnings: tuple[str, ...] = ()
    is_random: bool = False


def load_samples(path: str | Path, inputs: Sequence[TensorSpec], *, count: int | None = None) -> Samples:
    """Reads samples for a model's inputs.

    Args:
        path: A .npz with one key per input, a .npy for a model of one input, or a folder of such files, each one or
            more samples, taken by name. The first axis of an array counts samples, or the array is as the model takes
            it and serves every sample: a table, a scalar.
        inputs: What the model takes.
        count: How many samples to use; all if None.

    Returns:
        The first `count` samples. Arrays of .npy files stay on disk until they are read.

    Raises:
        DataError: Something does not fit the model; every problem of the data is listed.
    """
    place = Path(path)
    problems: list[CompilerError] = []
    items: list[Mapping[str, Array]] = []
    for file in sample_files(place):
        if count is not None and len(items) >= count:
            break
        limit = None if count is None else count - len(items)
        items += _file_items(file, inputs, limit, problems)
    if not problems and not items:
        problems.append(DataError("there are no samples", where=str(place), remedy="Give at least one."))
    if not problems and count is not None and len(items) < count:
        what = f"{count} samples are asked for, there are {len(items)}"
        problems.append(DataError(what, where=str(place), remedy=f"Write `samples: {len(items)}`, or add samples."))
    if problems:
        raise combine(problems)
    chosen = tuple(items[:count])
    return Samples(chosen, str(place), tuple(_oddities(chosen)))


def read_arrays(path: Path) -> dict[str, Array]:
    """Every array of a .npz file by name, or the one of a .npy file under the empty name.

    Raises:
        DataError: The file cannot be read, or unpacks to more than is allowed.
    """
    with reading(path), path.open("rb") as opened:
        if path.suffix == ".npy":
            return {"": np.lib.format.read_array(opened, allow_pickle=False)}
        # not np.load: the archive is looked at before anything is unpacked
        with np.lib.npyio.NpzFile(opened, allow_pickle=False) as archive:
            _refuse_huge(archive, path)
            return {key: archive[key] for key in archive.files}


def make_samples(
    inputs: Sequence[TensorSpec],
    *,
    seed: int = 0,
    count: int = 1,
    sizes: Mapping[str, int] | None = None,
    kinds: Mapping[str, InputKind] | None = None,
) -> Samples:
    """Random samples, the same for the same arguments on every machine.

    Args:
        inputs: What the model takes.
        seed: Any integer ≥ 0.
        count: How many samples.
        sizes: Symbolic dimension other than the batch → its size.
        kinds: Input → what its numbers are, as far as the model tells; the origin then says what was drawn.

    Returns:
        Numbers of their kinds; without kinds standard normal floats, integers that are 0 or 1 (so valid as masks and as
        indices), and booleans.

    Raises:
        DataError: A dimension has no size, or a type has no random values.
    """
    problems = [error for spec in inputs for error in _spec_problems(spec, sizes or {})]
    if problems:
        raise combine(problems)
    # one per sample: the n-th sample is the same however many are drawn
    generators = [np.random.Generator(np.random.PCG64([seed, index])) for index in range(count)]
    items = tuple(
        {spec.name: _random(spec, sizes or {}, random, (kinds or {}).get(spec.name), row) for spec in inputs}
        for row, random in enumerate(generators)
    )
    drawn = "; ".join(f"{spec.name}: {(kinds or {})[spec.name]}" for spec in inputs if spec.name in (kinds or {}))
    return Samples(items, f"random, seed {seed}" + (f" ({drawn})" if drawn else ""), (), True)


def batch_of(
    samples: Samples, inputs: Sequence[TensorSpec], size: int, *, sizes: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """One set of inputs of a given batch size, from samples taken in turn and again from the first.

    Args:
        samples: What to take from.
        inputs: What the model takes. A first dimension `batch` gets `size`; a number gets that many samples; an input
            whose samples are complete already (a table, a scalar) is fed as the first sample has it.
        size: Batch size, ≥ 1.
        sizes: First dimension of another name → its size.
    """
    named = {**(sizes or {}), BATCH: size}
    return {spec.name: _stacked(samples.items, spec, named) for spec in inputs}


def _stacked(items: Sequence[Mapping[str, Array]], spec: TensorSpec, sizes: Mapping[str, int]) -> Array:
    first = items[0][spec.name]
    wanted = (sizes.get(spec.shape[0]) if isinstance(spec.shape[0], str) else spec.shape[0]) if spec.shape else None
    if wanted is None or first.shape[0] == wanted:
        return np.asarray(first)
    rows = [items[index % len(items)][spec.name] for index in range(-(-wanted // max(1, first.shape[0])))]
    return np.concatenate(rows)[:wanted]


def sample_files(place: Path) -> list[Path]:
    """The .npz and .npy files of a place, by name; raises DataError where there is none."""
    try:
        if place.is_dir():
            files = sorted(file for file in place.iterdir() if file.suffix in SUFFIXES and file.is_file())
            if not files:
                what = "the folder holds no .npy or .npz files"
                raise DataError(what, where=str(place), remedy="Save each input with numpy.save or numpy.savez.")
            return files
        if not place.exists():
            raise DataError("there is no such file or folder", where=str(place), remedy="Check the path.")
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", where=str(place)) from error
    if place.suffix not in SUFFIXES:
        raise DataError("samples are .npy or .npz files, or a folder of them", where=str(place))
    return [place]


def _file_items(
    file: Path, inputs: Sequence[TensorSpec], limit: int | None, problems: list[CompilerError]
) -> list[Mapping[str, Array]]:
    """The samples of one file; what is wrong with it is added to the problems."""
    try:
        arrays = _arrays(file, inputs)
    except DataError as error:
        problems.append(error)
        return []
    misfits = [problem for spec in inputs for problem in _array_problems(file, spec, arrays[spec.name], limit)]
    if misfits:
        problems += misfits
        return []
    layouts = find_layouts(inputs, {name: array.shape for name, array in arrays.items()})
    lengths = {name: len(arrays[name]) for name, layout in layouts.items() if layout != Layout.SHARED}
    if len(set(lengths.values())) > 1:
        problems.append(DataError(f"inputs have different numbers of samples: {lengths}", where=str(file)))
        return []
    count = min(lengths.values(), default=1)
    rows = range(count if limit is None else min(count, limit))
    return [{name: _sample(arrays[name], layout, row) for name, layout in layouts.items()} for row in rows]


def _arrays(file: Path, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Input name → array of one file."""
    with reading(file):
        if file.suffix == ".npy":
            return _named({"": np.lib.format.open_memmap(file, mode="r")}, file, inputs)
        with file.open("rb") as opened, np.lib.npyio.NpzFile(opened, allow_pickle=False) as archive:
            _refuse_huge(archive, file)
            wanted = {spec.name for spec in inputs}
            arrays = {key: archive[key] if key in wanted or len(archive.files) == 1 else _NOTHING for key in archive}
            return _named(arrays, file, inputs)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turns whatever NumPy and the archive say about a file into DataError."""
    try:
        yield
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        remedy = "Write it with numpy.save or numpy.savez; pickled objects are never read."
        raise DataError(f"the file cannot be read: {error}", where=str(file), remedy=remedy) from error


def _named(arrays: Mapping[str, Array], file: Path, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    names = [spec.name for spec in inputs]
    if len(names) == 1 and set(arrays) in ({""}, {"arr_0"}):
        return {names[0]: next(iter(arrays.values()))}
    missing = [name for name in names if name not in arrays]
    extra = [key for key in arrays if key and key not in names and key not in RESERVED]
    if missing or extra:
        faults = [f"no array for {', '.join(map(repr, missing))}"] if missing else []
        faults += [f"arrays {', '.join(map(repr, extra))} that the model has no input for"] if extra else []
        remedy = f"Save one array per input: numpy.savez(file, {', '.join(f'{name}=…' for name in names)})."
        raise DataError(f"the file holds {' and '.join(faults)}", where=str(file), remedy=remedy)
    return {name: arrays[name] for name in names}


def _refuse_huge(archive: np.lib.npyio.NpzFile, file: Path) -> None:
    sizes = {info.filename: info.file_size for info in archive.zip.infolist()} if archive.zip else {}
    for name, size in sizes.items():
        if size > MAX_ARRAY_BYTES:
            what = f"'{name}' unpacks to {size} bytes, more than the {MAX_ARRAY_BYTES} allowed"
            raise DataError(what, where=str(file), remedy="Use a folder of .npy files, which stay on disk.")


def _array_problems(file: Path, spec: TensorSpec, array: Array, limit: int | None) -> Iterator[DataError]:
    where = f"{file}: input '{spec.name}'"
    if problem := misfit(spec, array.dtype, array.shape, where=where):
        yield problem
    elif array.dtype.kind == "f":
        rows = array[:limit] if array.ndim else array.reshape(1)
        bad = [row for row, sample in enumerate(rows) if not np.isfinite(sample).all()]
        if bad:
            listed = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
            yield DataError(f"{len(bad)} samples hold NaN or infinity: {listed}", where=where, remedy="Leave them out.")


def misfit(spec: TensorSpec, dtype: np.dtype[np.generic], shape: tuple[int, ...], *, where: str) -> DataError | None:
    """Why an array of samples does not fit an input; None where it does."""
    if dtype.name != spec.dtype:
        remedy = f"Convert it: array.astype('{spec.dtype}')."
        return DataError(f"elements are {dtype.name}, the model takes {spec.dtype}", where=where, remedy=remedy)
    if not fits(spec, shape):
        sizes = ", ".join(map(str, spec.shape))
        return DataError(f"shape {shape} does not fit the model's ({sizes})", where=where, remedy=forms(spec))
    return None


def _sample(array: Array, layout: Layout, row: int) -> Array:
    """One sample of an array: a row as an axis of 1, a complete input, or what all samples share."""
    if layout == Layout.SHARED:
        return array
    return array[row : row + 1] if layout == Layout.ROWS else array[row]


def _oddities(items: Sequence[Mapping[str, Array]]) -> Iterator[str]:
    constant = sum(all(_is_constant(array) for array in item.values()) for item in items)
    if constant:
        yield f"{constant} of {len(items)} samples are constant: every element is the same"
    distinct = len({_digest(item) for item in items})
    if distinct < len(items):
        yield f"{len(items) - distinct} of {len(items)} samples repeat another"


def _is_constant(array: Array) -> bool:
    return array.size > 1 and bool((array == array.reshape(-1)[0]).all())


def _digest(item: Mapping[str, Array]) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(item):
        digest.update(np.ascontiguousarray(item[name]).reshape(-1).view(np.uint8).data)
    return digest.digest()


def _spec_problems(spec: TensorSpec, sizes: Mapping[str, int]) -> Iterator[DataError]:
    for axis, dim in enumerate(spec.shape):
        if isinstance(dim, str) and dim not in sizes and not (axis == 0 and dim == BATCH):
            yield DataError(f"dimension '{dim}' has no size", where=f"input '{spec.name}'", remedy="Bind it.")
    if not _numeric(spec.dtype):
        what = f"there are no random values of type {spec.dtype}"
        yield DataError(what, where=f"input '{spec.name}'", remedy="Give samples: `calibration: {path: …}`.")


def _numeric(dtype: str) -> bool:
    try:
        return dtype == "bfloat16" or np.dtype(dtype).kind in "fiub"
    except TypeError:
        return False


def _random(
    spec: TensorSpec, sizes: Mapping[str, int], random: np.random.Generator, kind: InputKind | None, row: int
) -> Array:
    shape = tuple(
        dim if isinstance(dim, int) else 1 if (axis, dim) == (0, BATCH) else sizes[dim]
        for axis, dim in enumerate(spec.shape)
    )
    dtype = ir.DataType.BFLOAT16.numpy() if spec.dtype == "bfloat16" else np.dtype(spec.dtype)
    if kind is not None:
        return draw(kind, shape, random, row=row).astype(dtype)
    is_float = spec.dtype == "bfloat16" or dtype.kind == "f"
    values = random.standard_normal(shape, dtype=np.float32) if is_float else random.integers(0, 2, shape)
    return np.asarray(values).astype(dtype)
