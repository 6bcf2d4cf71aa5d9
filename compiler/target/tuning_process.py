"""Trials of tuning in a child process that lives from trial to trial, and is started anew when a trial ends it.

The parent writes one JSON line per trial into a pipe and waits for one line back, with its eye on time and memory. A
toolchain's start-up is paid once, and yet no trial can take the run along.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from compiler.artifact import Evidence
from compiler.artifact.adapter import parse, to_json
from compiler.errors import CompilerError, ToolchainFailed, from_dict
from compiler.fleet.profile import HardwareProfile
from compiler.store.scratch import scratch_folder
from compiler.target.isolate import MIB, ChildLimits, Family, death_of, kill_child, log_tail, start_child
from compiler.target.request import BuildRequest, TrialAnswer, TrialQuestion, TuneHello, TuneTask, border_work
from compiler.target.target import Backend
from compiler.tune import Choice, DeviceType, Measurement, Tunable

A = TypeVar("A")

# how late a broken limit on memory is seen: short beside the time that memory takes to fill
POLL_S = 0.05
GRACE_S = 2.0
"""What a trial may take beyond its limit before its process is killed: a measurer stops by itself where it can."""


@dataclass(frozen=True)
class Subject:
    """What trials are of: a border model under a plan, and where they are measured."""

    border: Path
    request: BuildRequest
    profile: HardwareProfile
    backend: Backend


class MeasuringChild:
    """A child process that measures trials.

    Args:
        subject: What is measured, and where.
        child_limits: Time for the start-up, and memory at any moment.

    Raises:
        CompilerError: On entering: the back-end is not there, or the toolchain does not start.
    """

    evidence: Evidence
    device: DeviceType

    def __init__(self, subject: Subject, child_limits: ChildLimits) -> None:
        self._subject, self._limits = subject, child_limits
        self._child: _Child | None = None

    def __enter__(self) -> MeasuringChild:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def measure(self, kernel: Tunable, choice: Choice) -> Measurement:
        """One trial.

        Raises:
            TargetUnavailable: The back-end is gone.
            CompilerError: The trial failed, hung, crashed, or used too much memory.
        """
        # the trial before may have ended the process
        child = self._child or self._start()
        try:
            child.ask(TrialQuestion(kernel, choice))
            answer = child.answer(TrialAnswer, self._subject.backend.trial_s + GRACE_S)
        except CompilerError:
            self._stop()
            raise
        if answer.error is not None:
            raise from_dict(answer.error)
        return Measurement(answer.values, self.evidence)

    def _start(self) -> _Child:
        self._child = child = _Child(self._subject, self._limits)
        try:
            hello = child.answer(TuneHello, self._limits.timeout_s)
        except CompilerError:
            self._stop()
            raise
        self.evidence, self.device = hello.evidence, hello.device
        return child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


class _Child:
    """One process and its two pipes."""

    def __init__(self, subject: Subject, child_limits: ChildLimits) -> None:
        self._limits = child_limits
        self._scratch = contextlib.ExitStack()
        self._folder = folder = self._scratch.enter_context(scratch_folder())
        asked, self._questions = os.pipe()
        self._answers, answered = os.pipe()
        work = border_work(subject.border, subject.request, subject.profile, folder)
        task = TuneTask(work, subject.backend, questions_fd=asked, answers_fd=answered)
        (folder / "request.json").write_text(json.dumps(to_json(task)), encoding="utf-8")
        self._process = start_child("compiler.target.worker", folder, pass_fds=(asked, answered))
        # the child's ends: as long as they are open here too, its death is no end of file
        os.close(asked)
        os.close(answered)
        self._family = Family(self._process.pid)
        self._read = b""

    def ask(self, question: TrialQuestion) -> None:
        with contextlib.suppress(BrokenPipeError):  # it died between two trials: `answer` says how
            os.write(self._questions, (json.dumps(to_json(question)) + "\n").encode())

    def answer(self, type_: type[A], seconds: float) -> A:
        """The next line. Raises what the child raised, or ToolchainFailed if it broke a limit or died."""
        deadline, ceiling = time.monotonic() + seconds, self._limits.memory_bytes()
        while b"\n" not in self._read:
            if select.select([self._answers], [], [], POLL_S)[0]:
                piece = os.read(self._answers, 1 << 16)
                if not piece:
                    raise self._ended()
                self._read += piece
            elif self._process.poll() is not None:  # its guardian may still hold the pipe open
                raise self._ended()
            elif time.monotonic() > deadline:
                raise ToolchainFailed(f"the trial did not finish within {seconds:g} s")
            elif (used := self._family.resident_bytes()) > ceiling:
                raise ToolchainFailed(f"the trial used {used // MIB} MiB of memory, more than {ceiling // MIB} MiB")
        line, _, self._read = self._read.partition(b"\n")
        return parse(type_, json.loads(line))

    def close(self) -> None:
        kill_child(self._process)
        os.close(self._questions)
        os.close(self._answers)
        self._scratch.close()

    def _ended(self) -> CompilerError:
        """Why the process is gone: what it raised before it measured anything, or how it died."""
        folder = self._folder
        with contextlib.suppress(subprocess.TimeoutExpired):
            # its exit code tells of a crash from a kill
            self._process.wait(GRACE_S)
        response = folder / "response.json"
        if response.exists() and "error" in (value := json.loads(response.read_text(encoding="utf-8"))):
            return from_dict(value["error"])
        return ToolchainFailed(f"the trial {death_of(self._process.returncode or 0)}{log_tail(folder)}")
