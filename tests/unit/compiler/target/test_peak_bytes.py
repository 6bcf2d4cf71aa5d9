"""What counts as a model's memory when a process is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")

MIB = 1 << 20

CODE = """
import mmap, sys
from pathlib import Path
from compiler.target.worker_measure import _refuse_huge_pages, peak_bytes
_refuse_huge_pages()
artifact, mapped, heap_mib = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
with mapped.open("rb") as file:
    pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    touched = sum(pages[at] for at in range(0, len(pages), 4096))
    heap = bytearray(b"x" * (heap_mib << 20))
    del heap
    print(peak_bytes(artifact))
"""


def measured_mib(artifact: Path, mapped: Path, heap_mib: int = 0) -> float:
    arguments = [str(artifact), str(mapped), str(heap_mib)]
    ended = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=True)
    return int(ended.stdout) / MIB


def test_pages_of_the_artifact_count_and_those_of_a_library_do_not(tmp_path: Path) -> None:
    artifact, beside = tmp_path / "artifact", tmp_path / "artifact-library"
    for folder in (artifact, beside):
        (folder / "payload").mkdir(parents=True)
        (folder / "payload" / "file").write_bytes(bytes(32 * MIB))
    own = measured_mib(artifact, artifact / "payload" / "file")
    library = measured_mib(artifact, beside / "payload" / "file")
    assert own - library == pytest.approx(32, abs=1)


def test_memory_that_was_freed_again_is_in_the_peak(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    extra = measured_mib(tmp_path, tmp_path / "file", 48) - measured_mib(tmp_path, tmp_path / "file")
    assert extra >= 47
