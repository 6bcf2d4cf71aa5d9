"""Type-check what people copy: examples/acme_npu, and every Python block of the documentation.

python scripts/check_examples.py    exit with 1 when mypy, in strict mode, finds something

Each block is a file of its own whose lines have the numbers they have in the page, so a message leads to the page.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ROOT / "examples" / "acme_npu"
HELPERS = ROOT / "tests" / "unit" / "compiler" / "passes"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main() -> int:
    """Runs mypy on the examples; its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        files = list(write_blocks(ROOT, Path(folder)))
        path = os.pathsep.join(map(str, (PLUGIN, HELPERS, ROOT)))
        command = [sys.executable, "-m", "mypy", str(PLUGIN / "acme_npu.py")]
        environment = {**os.environ, "MYPYPATH": path}
        return subprocess.run([*command, *map(str, files)], cwd=ROOT, env=environment, check=False).returncode


def write_blocks(root: Path, folder: Path) -> Iterator[Path]:
    """Writes each Python block of a repository's pages to a file.

    Args:
        root: The repository.
        folder: Where the files go.
    """
    for page in [*sorted(root.glob("*.md")), *sorted(root.glob("docs/**/*.md"))]:
        text = page.read_text("utf-8")
        for block in BLOCK.finditer(text):
            above = text.count("\n", 0, block.start(1))
            file = folder / f"{page.stem.replace('-', '_')}_md_{above}.py"
            file.write_text("\n" * above + block[1], "utf-8")
            yield file


if __name__ == "__main__":
    sys.exit(main())
