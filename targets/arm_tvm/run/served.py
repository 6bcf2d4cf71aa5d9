"""A bundle that stays loaded: its program answers at a socket (`run --serve`) and is asked for each inference."""

from __future__ import annotations

import select
import signal
import socket
import struct
import subprocess
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from typing import IO

import numpy as np

from compiler.target import Array, Arrays, Artifact, DataError, Evidence, ToolchainFailed, scratch_folder
from targets.arm_tvm.run.inputs import check_inputs
from targets.arm_tvm.run.sizes import open_sizes, shape_of_output

MAGIC = int.from_bytes(b"FLC1", "little")
"""What native/requests.h begins every request and every answer with."""

HEAD, LENGTH = struct.Struct("<5I"), struct.Struct("<Q")
DONE, MALFORMED = 0, 2
TIMEOUT_S = 600.0
"""Seconds that the bundle has to load, and that a run may take."""


class ServedBundle:
    """A bundle whose program stays loaded.

    Args:
        artifact: The bundle.
        evidence: Where it runs.
        command: What starts its program, without options.
        environment: All of its environment.

    Raises:
        ToolchainFailed: It cannot be loaded.
    """

    def __init__(
        self, artifact: Artifact, evidence: Evidence, *, command: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.evidence = evidence
        self._artifact = artifact
        # the folder is needed until the socket is connected to: a kill afterwards leaves nothing
        with scratch_folder() as place, tempfile.TemporaryFile() as log:
            self._process = subprocess.Popen(
                [*command, "--serve", str(place / "socket")],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
            self._end = weakref.finalize(self, _end, self._process)
            try:
                self._wait_until_loaded(log)
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(TIMEOUT_S)
                self._socket.connect(str(place / "socket"))
            except BaseException:
                self.close()
                raise

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Asks for one inference.

        Raises:
            DataError: An input is missing, unknown, or of another dtype or shape.
            ConnectionError: The program, or the process that runs the model in it, ended.
        """
        check_inputs(self._artifact, inputs)
        parts = [struct.pack("<2I", MAGIC, 0)]
        for spec in self._artifact.inputs:
            data = np.asarray(inputs[spec.name], order="C").tobytes()
            parts += [LENGTH.pack(len(data)), data]
        self._socket.sendall(b"".join(parts))
        magic, status, *_ = HEAD.unpack(self._take(HEAD.size))
        if magic != MAGIC:
            raise ConnectionError("the bundle's program answers in another form")
        if status != DONE:
            what = self._block().decode(errors="replace")
            raise DataError(what) if status == MALFORMED else ConnectionError(what)
        sizes = open_sizes(self._artifact)
        return {
            spec.name: np.frombuffer(self._block(), spec.dtype).reshape(shape_of_output(spec, sizes, inputs))
            for spec in self._artifact.outputs
        }

    def close(self) -> None:
        """Ends the program."""
        self._end()
        if hasattr(self, "_socket"):
            self._socket.close()

    def _wait_until_loaded(self, log: IO[bytes]) -> None:
        assert self._process.stdout is not None  # noqa: S101  it was asked for
        readable, _, _ = select.select([self._process.stdout], [], [], TIMEOUT_S)
        if readable and self._process.stdout.readline():
            return
        if not readable:
            raise ToolchainFailed(f"the bundle was not loaded within {TIMEOUT_S:g} s")
        code = self._process.wait(TIMEOUT_S)
        crash = f"killed by {signal.Signals(-code).name}; " if code < 0 else ""
        log.seek(0)
        raise ToolchainFailed(f"the bundle failed: {crash}{log.read().decode(errors='replace').strip()[-1000:]}")

    def _block(self) -> bytearray:
        return self._take(LENGTH.unpack(self._take(LENGTH.size))[0])

    def _take(self, count: int) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            got = self._socket.recv_into(view)
            if not got:
                raise ConnectionError("the bundle's program ended")
            view = view[got:]
        return data


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # it ends its builds' processes, which a kill would leave for a moment
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
