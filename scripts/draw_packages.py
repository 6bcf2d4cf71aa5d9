"""Write the picture and the table of the packages in docs/how-it-works.md.

python scripts/draw_packages.py           write them if they have changed
python scripts/draw_packages.py --check   write nothing; exit with 1 when they are stale

Rows and their order are the import contracts of setup.cfg; what a package is, is the first line of its docstring.
"""

from __future__ import annotations

import argparse
import ast
import configparser
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = "docs/how-it-works.md"
BEGIN = "<!-- written by scripts/draw_packages.py: begin -->\n"
END = "<!-- written by scripts/draw_packages.py: end -->\n"
OUTER, INNER = "importlinter:contract:layers", "importlinter:contract:driver"

Rows = tuple[tuple[str, ...], ...]
"""Packages by row, the highest first; those of one row do not import each other."""


@dataclass(frozen=True)
class Contracts:
    """The contracts of setup.cfg.

    Args:
        rows: All packages.
        container: The package that the second contract about layers looks into.
        inner: The rows in it.
        forbidden: Source and imported package of each import that a contract forbids besides.
    """

    rows: Rows
    container: str
    inner: Rows
    forbidden: frozenset[tuple[str, str]]


def main() -> int:
    """Write or check the page; 1 when a checked page is stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when the page is stale")
    check = parser.parse_args().check
    page = ROOT / PAGE
    text = page_text(page.read_text("utf-8"), ROOT)
    if text == page.read_text("utf-8"):
        return 0
    print(f"{'stale' if check else 'written'}: {PAGE}")
    if not check:
        page.write_text(text, "utf-8")
    return 1 if check else 0


def page_text(text: str, root: Path) -> str:
    """A page with picture and table of today between the marks.

    Args:
        text: The page.
        root: The repository.

    Raises:
        ValueError: The page has no marks, or a package is in no row of the contract.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"{PAGE} has no place for the picture: it needs the lines\n{BEGIN}{END}")
    contracts = read_contracts(root / "setup.cfg")
    listed = {name for row in contracts.rows for name in row}
    if missing := [name for name in _top_names(root) if name not in listed]:
        raise ValueError(f"setup.cfg: {OUTER} has no row for {', '.join(missing)}")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    return f"{before}{BEGIN}\n{_picture(contracts)}\n{_table(contracts, root)}\n{END}{after}"


def read_contracts(path: Path) -> Contracts:
    """The contracts of setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read_string(path.read_text("utf-8"))
    sections = [section for section in parser.values() if section.get("type") == "forbidden"]
    forbidden = {
        (source, imported)
        for section in sections
        for source in section["source_modules"].split()
        for imported in section["forbidden_modules"].split()
    }
    inner = _rows(parser[INNER]["layers"])
    return Contracts(_rows(parser[OUTER]["layers"]), parser[INNER]["containers"].strip(), inner, frozenset(forbidden))


def first_line(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]


def _rows(lines: str) -> Rows:
    # `a | b` is a row of packages that do not import each other; `a : b` one of packages that may.
    return tuple(
        tuple(line.replace(":", "|").replace(" ", "").split("|")) for line in lines.split("\n") if line.strip()
    )


def _top_names(root: Path) -> list[str]:
    """Every package and module directly in compiler/, and `targets`."""
    entries = sorted(entry for entry in (root / "compiler").iterdir() if not entry.name.startswith("_"))
    packages = [entry.stem for entry in entries if entry.suffix == ".py" or (entry / "__init__.py").is_file()]
    return [*(f"compiler.{name}" for name in packages), "targets"]


def _picture(contracts: Contracts) -> str:
    lines = ["flowchart TD"]
    for row in contracts.rows:
        for name in row:
            lines += _box(name, contracts.inner) if name == contracts.container else [f"  {_key(name)}[{_shown(name)}]"]
    lines += [f"  {upper} --> {lower}" for upper, lower in _arrows(contracts.rows, contracts.forbidden)]
    return "```mermaid\n" + "\n".join(lines) + "\n```\n"


def _box(name: str, inner: Rows) -> Iterator[str]:
    """A package drawn with the packages in it."""
    yield f"  subgraph {_key(name)}[{_shown(name)}]"
    yield "    direction LR"
    for row in inner:
        yield from (f"    {_key(f'{name}.{part}')}[{part}]" for part in row)
    yield from (f"    {_key(name)}_{upper} --> {_key(name)}_{lower}" for upper, lower in _arrows(inner, frozenset()))
    yield "  end"


def _arrows(rows: Rows, forbidden: frozenset[tuple[str, str]]) -> list[tuple[str, str]]:
    """From each package to those of the highest row below it that it may import."""
    arrows: list[tuple[str, str]] = []
    for number, row in enumerate(rows):
        for upper in row:
            allowed = ([name for name in low if not _forbids(forbidden, upper, name)] for low in rows[number + 1 :])
            arrows += [(_key(upper), _key(lower)) for lower in next(filter(None, allowed), [])]
    return arrows


def _forbids(forbidden: frozenset[tuple[str, str]], upper: str, lower: str) -> bool:
    return any(f"{upper}.".startswith(f"{source}.") and lower == name for source, name in forbidden)


def _table(contracts: Contracts, root: Path) -> str:
    lines = ["| package | what it is |", "|---|---|"]
    for name in (name for row in contracts.rows for name in row):
        lines += [f"| `{_path(part, root)}` | {_cell(part, root)} |" for part in (name, *_parts(name, contracts, root))]
    return "\n".join(lines) + "\n"


def _parts(name: str, contracts: Contracts, root: Path) -> Sequence[str]:
    """The packages in a package, in the order of their contract where they have one."""
    if name == contracts.container:
        return [f"{name}.{part}" for row in contracts.inner for part in row]
    folder = root.joinpath(*name.split("."))
    return [f"{name}.{file.parent.name}" for file in sorted(folder.glob("*/__init__.py"))]


def _path(name: str, root: Path) -> str:
    place = root.joinpath(*name.split("."))
    return place.relative_to(root).as_posix() + ("/" if place.is_dir() else ".py")


def _cell(name: str, root: Path) -> str:
    place = root.joinpath(*name.split("."))
    return first_line(place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).replace("|", r"\|")


def _shown(name: str) -> str:
    return name.removeprefix("compiler.")


def _key(name: str) -> str:
    return name.removeprefix("compiler.").replace(".", "_")


if __name__ == "__main__":
    sys.exit(main())
