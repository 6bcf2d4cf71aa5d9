"""Files of pairs: which two pictures are compared, and whether they show the same person.

Two spellings are read. That of Labeled Faces in the Wild: an optional first line of counts, then `NAME i j` for two
pictures of one person and `NAME i NAME j` for two persons, where picture i is `NAME/NAME_000i.jpg`. And one of paths:
`first second 1` for the same person, `0` for two; separated by blanks, tabs or commas.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from compiler.errors import CompilerError, DataError, combine
from compiler.evaluate.select import Indices

# a list of millions of pairs is smaller; a data file named by mistake must not be read whole
MAX_BYTES = 1 << 28
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class Pairs:
    """Pictures and their pairs.

    Args:
        files: Every picture that a pair names, once, by name, below the folder.
        table: (M, 5) integers: first and second picture, same person (1 or 0), and the person of each.
    """

    files: tuple[str, ...]
    table: Indices


def read_pairs(path: Path, folder: Path, *, count: int | None = None) -> Pairs:
    """The pairs of a file.

    Args:
        path: The text file.
        folder: What its pictures are relative to.
        count: How many pairs to use, taken evenly; all if None.

    Raises:
        DataError: The file is none, a picture is missing or outside the folder, or pairs of one kind are missing.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"the file has more than {MAX_BYTES} bytes", where=str(path))
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the pairs cannot be read: {error}", where=str(path)) from error
    problems: list[CompilerError] = []
    pairs = [pair for pair in _pairs(lines, path, folder, problems) if pair]
    if problems:
        raise combine(problems[:50])
    if count is not None and count < len(pairs):
        pairs = [pairs[index] for index in np.linspace(0, len(pairs) - 1, count).round().astype(int)]
    for wanted, said in ((True, "of one person"), (False, "of two persons")):
        if not any(same is wanted for _, _, same in pairs):
            raise DataError(f"there is no pair {said}", where=str(path), remedy="Both kinds are needed.")
    return _numbered(pairs)


_Pair = tuple[str, str, bool]


def _pairs(lines: Sequence[str], path: Path, folder: Path, problems: list[CompilerError]) -> Iterator[_Pair | None]:
    for number, line in enumerate(lines, start=1):
        words = [word for word in re.split(r"[\s,]+", line.strip()) if word]
        if not words or words[0].startswith("#") or (number == 1 and all(word.isdigit() for word in words)):
            continue
        try:
            yield _pair(words, folder)
        except DataError as error:
            problems.append(DataError(error.what, where=f"{path}:{number}", remedy=error.remedy))


def _pair(words: Sequence[str], folder: Path) -> _Pair:
    if len(words) == 3 and words[2] in ("0", "1") and not words[1].isdigit():
        return _picture(words[0], folder), _picture(words[1], folder), words[2] == "1"
    if len(words) == 3 and words[1].isdigit() and words[2].isdigit():
        return _numbered_picture(words[0], words[1], folder), _numbered_picture(words[0], words[2], folder), True
    if len(words) == 4 and words[1].isdigit() and words[3].isdigit():
        first, second = _numbered_picture(words[0], words[1], folder), _numbered_picture(words[2], words[3], folder)
        return first, second, words[0] == words[2]
    remedy = "Write `NAME i j`, `NAME i NAME j`, or `first.jpg second.jpg 1`."
    raise DataError(f"the line is no pair: {' '.join(words)[:80]!r}", remedy=remedy)


def _numbered_picture(name: str, number: str, folder: Path) -> str:
    stem = f"{name}/{name}_{int(number):04d}"
    files = [stem + suffix for suffix in _SUFFIXES if "\0" not in stem and (folder / (stem + suffix)).is_file()]
    return _picture(files[0] if files else f"{stem}.jpg", folder)


def _picture(name: str, folder: Path) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise DataError(f"'{name}' leads out of the folder of pictures")
    if not (folder / path).is_file():
        raise DataError(f"there is no picture '{name}'", remedy=f"Pictures are looked for in {folder}.")
    return str(path)


def _numbered(pairs: Sequence[_Pair]) -> Pairs:
    files = sorted({name for first, second, _ in pairs for name in (first, second)})
    index = {name: number for number, name in enumerate(files)}
    people = _people(files, [(index[first], index[second]) for first, second, same in pairs if same])
    table = [
        (index[first], index[second], int(same), people[index[first]], people[index[second]])
        for first, second, same in pairs
    ]
    return Pairs(tuple(files), np.array(table, np.int64))


def _people(files: Sequence[str], genuine: Sequence[tuple[int, int]]) -> list[int]:
    """The person of each picture; those joined by genuine pairs are one."""
    leader = list(range(len(files)))

    def find(picture: int) -> int:
        while leader[picture] != picture:
            leader[picture] = leader[leader[picture]]
            picture = leader[picture]
        return picture

    for first, second in genuine:
        leader[find(first)] = find(second)
    return [find(picture) for picture in range(len(files))]
