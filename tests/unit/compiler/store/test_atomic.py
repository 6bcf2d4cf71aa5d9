"""A kill, a full disk, another process at any moment: a file or folder is the old or the new one, and never none."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import compiler
from compiler.store.atomic import replacing_folder, restore_folder, write_atomic

HOUSE = Path(compiler.__file__).parents[1]

SWEEP = """
import ctypes, json, os, signal, sys
from pathlib import Path
from compiler.store.atomic import replacing_folder, restore_folder, write_atomic

root, kind, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
place = root / "place"
EVENTS = ("os.rename", "os.remove", "os.mkdir", "shutil.rmtree", "open", "ctypes.dlsym")

def write(text):
    if kind == "file":
        return write_atomic(place, lambda file: [file.write(part) for part in (text[:3], text[3:])])
    with replacing_folder(place) as draft:
        draft.mkdir()
        (draft / "a").write_bytes(text)
        (draft / "b").write_bytes(text)

def read():
    if kind == "file":
        return place.read_text()
    restore_folder(place)
    return "|".join(sorted({path.read_text() for path in place.iterdir()} | {str(len(list(place.iterdir())))}))

def no_exchange(*arguments, **options):
    raise OSError("no C library here")

if how == "fallback":
    ctypes.CDLL = no_exchange
number = 0
while True:
    number += 1
    write(b"old text")
    child = os.fork()
    if child == 0:
        seen = 0
        def kill(event, arguments):
            global seen
            seen += event in EVENTS
            if seen == number and event in EVENTS:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(kill)
        write(b"new text")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    print(json.dumps([killed, read()]), flush=True)
    write(b"third text")
    third, names = read(), sorted(path.name for path in root.iterdir())
    names = [name for name in names if kind == "folder" or not name.startswith(".place.")]
    print(json.dumps([third, names]), flush=True)
    if not killed:
        break
"""
"""Writes with a real SIGKILL before the first, the second, … call that changes a folder or opens a file."""


@pytest.mark.parametrize(("kind", "how"), [("file", "-"), ("folder", "exchange"), ("folder", "fallback")])
def test_a_kill_before_any_step_leaves_the_old_or_the_new_whole(tmp_path: Path, kind: str, how: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SWEEP), str(tmp_path), kind, how],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(HOUSE)},
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    rows = [json.loads(line) for line in finished.stdout.splitlines()]
    killed, next_writes = rows[0::2], rows[1::2]
    count = "" if kind == "file" else "2|"  # of the files in the folder
    old, new, third = (f"{count}{text}" for text in ("old text", "new text", "third text"))
    contents = [content for _, content in killed]
    assert len(contents) > 4 and contents[-1] == new
    assert set(contents) <= {old, new} and contents[0] == old
    assert next_writes == [[third, ["place"]]] * len(next_writes)


def test_a_folder_moved_aside_is_put_back_by_the_next_reader(tmp_path: Path) -> None:
    """What a process of an older fleetc, or one without the exchange, leaves where it is killed between two renames."""
    aside = tmp_path / f".kiosk.{'a' * 32}.old"
    aside.mkdir()
    (aside / "manifest.json").write_text("{}")
    restore_folder(tmp_path / "kiosk")
    assert [path.name for path in tmp_path.iterdir()] == ["kiosk"]
    restore_folder(tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_what_is_not_written_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "file"
    write_atomic(place, b"old")

    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomic(place, full)
    with pytest.raises(KeyError), replacing_folder(tmp_path / "folder") as draft:
        draft.mkdir()
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and place.read_bytes() == b"old"


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path: Path) -> None:
    real, link, pipe = tmp_path / "real", tmp_path / "link", tmp_path / "pipe"
    real.write_bytes(b"old")
    link.symlink_to(real)
    write_atomic(link, b"new")
    assert link.is_symlink() and real.read_bytes() == b"new"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(pipe, b"into the pipe")
    assert os.read(reader, 100) == b"into the pipe" and pipe.is_fifo()
    os.close(reader)


def _write_often(place: Path, letter: bytes) -> None:
    for _ in range(50):
        write_atomic(place, letter * 10000)


def test_processes_that_write_one_file_at_once_never_mix(tmp_path: Path) -> None:
    place = tmp_path / "file"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_often, args=(place, letter)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    seen: set[bytes] = set()
    while any(writer.is_alive() for writer in writers):
        if place.exists():
            seen.add(place.read_bytes())
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert {*seen, place.read_bytes()} <= {b"a" * 10000, b"b" * 10000}
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_file_that_must_be_whole_is_written_by_the_one_function() -> None:
    """Another rename of a draft would be another way to forget the disk, or to name drafts by process id."""
    sources = [path for folder in ("compiler", "targets") for path in (HOUSE / folder).rglob("*.py")]
    calls = (".replace(path)", ".replace(place)", "os.replace", "os.rename", "os.link", "getpid()}.tmp")
    renaming = [
        path.relative_to(HOUSE).as_posix()
        for path in sources
        if any(call in path.read_text(encoding="utf-8") for call in calls)
    ]
    assert renaming == ["compiler/store/atomic.py"]


def test_why_an_array_was_not_written_is_the_systems_reason(tmp_path: Path) -> None:
    """numpy says how many elements were written; a child, since the limit holds for a whole process."""
    code = """
        import resource, signal, sys
        from functools import partial
        from pathlib import Path
        import numpy as np
        from compiler.store.atomic import write_atomic
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write_atomic(Path(sys.argv[1]) / "a.npy", partial(np.save, arr=np.zeros(1 << 20)))
        except OSError as error:
            print(error.errno)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    ended = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(errno.EFBIG)]
    assert list(tmp_path.iterdir()) == []
