"""Pictures in folders: one folder per class or person, a plain folder, or the pictures that a file of pairs names."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from compiler.errors import CompilerError, DataError, combine
from compiler.evaluate.dataset import MAX_PROBLEMS, Dataset, Step
from compiler.evaluate.images import SUFFIXES, check_picture, input_layout, load_picture
from compiler.evaluate.pairs import read_pairs
from compiler.evaluate.select import select
from compiler.fleet.data import Preprocess
from compiler.model.numerics import Array, Arrays
from compiler.model.spec import TensorSpec


@dataclass(frozen=True)
class _Pictures:
    """Files below a folder, by name, and what they show."""

    folder: Path
    names: tuple[str, ...]
    labels: Array | None


def open_folder(
    path: Path, inputs: Sequence[TensorSpec], *, preprocess: Preprocess | None, labelled: bool | None, count: int | None
) -> Dataset:
    """Pictures of a folder; with labels, those in its folders, whose names are the labels.

    Args:
        path: The folder.
        inputs: What the model takes: one input of pictures.
        preprocess: How a picture becomes an input.
        labelled: Whether labels are needed; None takes them where every picture has one.
        count: How many pictures to use, taken evenly; all if None.

    Raises:
        DataError: There are none, some are unusable, or something does not fit the model.
    """
    listing = _find(path, labelled=labelled)
    chosen = select(len(listing.names), listing.labels, count, where=path)
    labels = None if listing.labels is None else listing.labels[chosen]
    pictures = _Pictures(path, tuple(listing.names[index] for index in chosen), labels)
    return _dataset(pictures, inputs, preprocess, origin=path.name)


def open_pairs(
    path: Path, inputs: Sequence[TensorSpec], *, preprocess: Preprocess | None, folder: Path, count: int | None
) -> Dataset:
    """The pictures that a file of pairs names, and the pairs as labels; `count` counts pairs.

    Raises:
        DataError: As `open_folder`, and whatever is wrong with the pairs.
    """
    pairs = read_pairs(path, folder, count=count)
    return _dataset(_Pictures(folder, pairs.files, pairs.table), inputs, preprocess, origin=path.name)


def _find(path: Path, *, labelled: bool | None) -> _Pictures:
    try:
        names = [
            file.relative_to(path).as_posix()
            for pattern in ("*", "*/*")
            for file in path.glob(pattern)
            if file.suffix.lower() in SUFFIXES and file.is_file()
        ]
    except OSError as error:
        raise DataError(f"the folder cannot be read: {error.strerror}", where=str(path)) from error
    names.sort()
    if not names:
        kinds = ", ".join(sorted(SUFFIXES))
        what = "the folder and its folders hold no pictures"
        raise DataError(what, where=str(path), remedy=f"Pictures end in {kinds}.")
    loose = [name for name in names if "/" not in name]
    if labelled is False or (labelled is None and loose):
        return _Pictures(path, tuple(names), None)
    if loose:
        what = f"{len(loose)} of {len(names)} pictures have no label: {', '.join(loose[:5])}"
        raise DataError(what, where=str(path), remedy="Put each into a folder with the name of its class or person.")
    return _Pictures(path, tuple(names), np.array([name.partition("/")[0] for name in names]))


def _dataset(
    pictures: _Pictures, inputs: Sequence[TensorSpec], preprocess: Preprocess | None, *, origin: str
) -> Dataset:
    spec, how = _fitting(pictures.folder, inputs, preprocess)
    _refuse_unreadable(pictures)
    digest, warnings = _digest(pictures, spec, how)
    return Dataset(
        count=len(pictures.names),
        origin=origin,
        digest=digest,
        inputs=tuple(inputs),
        steps=partial(_steps, pictures, spec, how),
        labels=pictures.labels,
        warnings=warnings,
        in_order=False,
    )


def _fitting(
    folder: Path, inputs: Sequence[TensorSpec], preprocess: Preprocess | None
) -> tuple[TensorSpec, Preprocess]:
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        what = f"pictures feed one input, the model takes {len(inputs)}: {names}"
        raise DataError(what, where=str(folder), remedy="Give .npz files, one array per input.")
    if preprocess is None:
        what = "pictures need `preprocess`: how they become inputs is the model's own matter, and is not guessed"
        raise DataError(what, where=str(folder), remedy="State at least `preprocess: {scale: …}` in the fleet file.")
    input_layout(inputs[0], preprocess)
    return inputs[0], preprocess


def _refuse_unreadable(pictures: _Pictures) -> None:
    problems: list[CompilerError] = [
        error for name in pictures.names if (error := check_picture(pictures.folder / name))
    ]
    if len(problems) > MAX_PROBLEMS:
        problems = [*problems[:MAX_PROBLEMS], DataError(f"and {len(problems) - MAX_PROBLEMS} more pictures")]
    if problems:
        raise combine(problems)


def _digest(pictures: _Pictures, spec: TensorSpec, preprocess: Preprocess) -> tuple[str, tuple[str, ...]]:
    """The digest of content and preprocessing, and warnings of pictures that repeat."""
    digest = hashlib.sha256(f"pictures\0{preprocess!r}\0{spec!r}\0pillow {version('pillow')}\0".encode())
    seen: Counter[bytes] = Counter()
    for name in pictures.names:
        try:
            content = hashlib.sha256((pictures.folder / name).read_bytes()).digest()
        except OSError as error:
            raise DataError(f"it cannot be read: {error.strerror}", where=str(pictures.folder / name)) from error
        seen[content] += 1
        digest.update(f"{name}\0".encode(errors="surrogateescape") + content)
    if pictures.labels is not None:
        digest.update(repr(pictures.labels.tolist()).encode(errors="surrogateescape"))
    repeats = len(pictures.names) - len(seen)
    return digest.hexdigest(), ((f"{repeats} of {len(pictures.names)} pictures repeat another",) if repeats else ())


def _steps(pictures: _Pictures, spec: TensorSpec, preprocess: Preprocess) -> Iterator[Step]:
    for name in pictures.names:
        yield partial(_load, pictures.folder / name, spec, preprocess)


def _load(path: Path, spec: TensorSpec, preprocess: Preprocess) -> Arrays:
    return {spec.name: load_picture(path, spec, preprocess)}
