"""What a stage's key says about the code that makes its result: the sources it can reach, and the packages they use.

Nobody names these modules by hand. From the module that computes, imports are followed as the syntax tree has them, at
the top of a file and inside functions alike:

    import a.b, from a import b     the module; of a package, only the module that the imported name comes from
    "a.b" as a whole string         the same: a child process is started by its module's name
    "b.py" as a whole string        a module beside this one, by its file
    f"a.b.{name}"                   every module of the package `a.b`

What stands under `if TYPE_CHECKING:` never runs and is left out. A package that is only on the way to a module counts
with its own source and not with what it imports, since importing does no work in this project.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec, resolve_name
from pathlib import Path

from compiler.errors import InternalError

COMPILER = "compiler"
SOURCE_SUFFIXES = frozenset({".py", ".c", ".cc", ".h", ".json"})
MODULE = re.compile(r"""["']((?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*)["']""")
ANY_MODULE = re.compile(r"""f["']((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)\.\{""")
"""A whole string that looks like a module, and the beginning of an f-string that looks like a package."""

SUFFIXES = ("/__init__.py", ".py", *EXTENSION_SUFFIXES)
"""What may stand behind the path of a module."""

BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
"""Where statements hold other statements."""

ALIASES = {"google": "protobuf", "PIL": "pillow", "yaml": "PyYAML", "tvm": "apache-tvm", "ruamel": "ruamel.yaml"}
"""Import name → distribution, where they differ. Others are looked up too, but for that the metadata of every installed
distribution is read, which takes most of a second."""


@dataclass(frozen=True)
class Closure:
    """What the result of some code can depend on.

    Args:
        files: Name of each source file as the digest has it → its path.
        packages: Import names of packages that are followed no further.
    """

    files: tuple[tuple[str, Path], ...]
    packages: frozenset[str]


@dataclass(frozen=True)
class _Imports:
    """What one source file asks for: modules, names of modules, packages as a whole; and the names it hands on.

    Args:
        modules: Module, and the name that is imported from it; empty for the module itself.
        mentioned: Whole strings that look like the name of a module.
        packages: Packages any module of which may be imported.
        bound: Name → the module and the name there, of everything imported by `from … import`.
    """

    modules: tuple[tuple[str, str], ...]
    mentioned: tuple[str, ...]
    packages: tuple[str, ...]
    bound: dict[str, tuple[str, str]]


@cache
def closure_digest(root: str) -> str:
    """SHA-256 of every source file that a module, or any module of a package, can reach.

    Args:
        root: Dotted name of the module or package. Imports are followed into its own top-level package and `compiler`.

    Raises:
        InternalError: There is no such module, or one that it imports is missing: no key goes on without its code.
    """
    digest = hashlib.sha256()
    for name, path in find_closure(root).files:
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@cache
def closure_packages(root: str) -> dict[str, str]:
    """Version of every third-party package that the closure of a module imports, by its import name."""
    return {name: _version(name) for name in sorted(find_closure(root).packages)}


@cache
def find_closure(root: str) -> Closure:
    """The source files and third-party packages that a module, or a package with all its modules, can reach.

    Raises:
        InternalError: There is no such module, or one that it imports is missing.
    """
    return _Walk(frozenset({COMPILER, root.partition(".")[0]})).closure(root)


class _Walk:
    """A walk along imports; `tops` are the top-level packages it goes into."""

    def __init__(self, tops: frozenset[str]) -> None:
        self._tops = tops
        self._files: dict[str, Path] = {}
        self._packages: set[str] = set()
        self._followed: set[str] = set()

    def closure(self, root: str) -> Closure:
        self._follow_all(root)
        return Closure(tuple(sorted(self._files.items())), frozenset(self._packages))

    def _follow_all(self, name: str) -> None:
        """A module; of a package every module and data file."""
        path = _module_file(name)
        if path is None:
            raise InternalError(f"the sources of '{name}' are not there, and a cache key needs their digest")
        self._follow(name)
        if path.name != "__init__.py":
            return
        for file in sorted(path.parent.rglob("*")):
            inner = ".".join((name, *file.relative_to(path.parent).with_suffix("").parts))
            if file.suffix == ".py":
                self._follow(inner.removesuffix(".__init__"))
            elif file.suffix in SOURCE_SUFFIXES:
                self._files[inner + file.suffix] = file

    def _follow(self, name: str) -> None:
        """Takes a module in, and all that it imports."""
        if name in self._followed:
            return
        self._followed.add(name)
        path = self._take(name)
        imports = _imports_of(name, path)
        for module, attribute in imports.modules:
            self._ask(module, attribute)
        for text in imports.mentioned:
            if text.partition(".")[0] in self._tops and _module_file(text):
                self._follow(text)
            elif text.endswith(".py") and path.with_name(text).is_file():
                self._follow(f"{name.rpartition('.')[0]}.{text.removesuffix('.py')}")
        for package in imports.packages:
            if package.partition(".")[0] in self._tops:
                self._follow_all(package)

    def _ask(self, module: str, attribute: str) -> None:
        """`from module import attribute`, or `import module` where there is no attribute."""
        top = module.partition(".")[0]
        if top not in self._tops:
            if top not in sys.stdlib_module_names:
                self._packages.add(top)
            return
        if top != COMPILER and _module_file(module) is None:  # a plugin may do without a module that it asks for
            return
        inner = f"{module}.{attribute}"
        if attribute and _module_file(inner):
            self._follow(inner)
            return
        path = self._take(module)
        source = _imports_of(module, path).bound.get(attribute) if path.name == "__init__.py" else None
        if source is None:
            self._follow(module)
        elif source != (module, attribute):
            self._ask(*source)

    def _take(self, name: str) -> Path:
        """Notes the file of a module and those of the packages it lies in."""
        parts = name.split(".")
        places = [_module_file(".".join(parts[:count])) for count in range(1, len(parts) + 1)]
        for count, path in enumerate(places, start=1):
            if path is None:
                missing = ".".join(parts[:count])
                raise InternalError(f"the sources of '{missing}' are not there, and a cache key needs their digest")
            self._files[".".join(parts[:count])] = path
        return self._files[name]


@cache
def _module_file(name: str) -> Path | None:
    """The file of a module, without importing it or a package that it lies in; None where there is none."""
    top, *rest = name.split(".")
    spec = find_spec(top)
    if spec is None:
        return None
    if not rest:
        origin = Path(spec.origin or "")
        return origin if origin.is_file() else None
    bases = [Path(place, *rest) for place in spec.submodule_search_locations or ()]
    files = (Path(f"{base}{suffix}") for base in bases for suffix in SUFFIXES)
    return next((path for path in files if path.is_file()), None)


@cache
def _imports_of(name: str, path: Path) -> _Imports:
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source, str(path))
    except (UnicodeDecodeError, SyntaxError):  # compiled, or a template in a plugin's package: it imports nothing
        return _Imports((), (), (), {})
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    modules: list[tuple[str, str]] = []
    bound: dict[str, tuple[str, str]] = {}
    for statement, runs in _statements(tree):
        if isinstance(statement, ast.ImportFrom):
            module = _absolute(statement, package)
            # also what only a type checker sees: that tells where a name is from which is looked up when first used
            bound |= {alias.asname or alias.name: (module, alias.name) for alias in statement.names}
            modules += ((module, alias.name.replace("*", "")) for alias in statement.names if runs)
        elif isinstance(statement, ast.Import) and runs:
            modules += ((alias.name, "") for alias in statement.names)
    # a package that looks names up when they are first used lists all of them; each is followed where it is imported
    if any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body):
        source = ""
    return _Imports(tuple(modules), tuple(MODULE.findall(source)), tuple(ANY_MODULE.findall(source)), bound)


def _statements(tree: ast.AST, *, runs: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every statement, and whether it is more than something for the type checker; expressions are not looked into."""
    for node in (inner for part in BLOCKS for inner in getattr(tree, part, ())):
        yield node, runs
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            yield from _statements(ast.Module(node.body, []), runs=False)
            yield from _statements(ast.Module(node.orelse, []), runs=runs)
        else:
            yield from _statements(node, runs=runs)


def _is_type_checking(test: ast.expr) -> bool:
    return getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING"


def _absolute(node: ast.ImportFrom, package: str) -> str:
    return resolve_name("." * node.level + (node.module or ""), package) if node.level else str(node.module)


def _version(name: str) -> str:
    """Version of the distribution that an import name comes from; `absent` where it is not installed."""
    try:
        return version(ALIASES.get(name, name))
    except PackageNotFoundError:
        if find_spec(name) is None:
            return "absent"
    return (
        ", ".join(f"{distribution} {version(distribution)}" for distribution in packages_distributions().get(name, ()))
        or "unknown"
    )
