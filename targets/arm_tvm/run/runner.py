"""A bundle loaded for execution: the very program that the device runs, as a child process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from compiler.target import (
    Answered,
    Array,
    Arrays,
    Artifact,
    Asked,
    Evidence,
    TargetUnavailable,
    ToolchainFailed,
    available_cpus,
    host_isa,
    scratch_folder,
    write_atomic,
)
from targets.arm_tvm.run.emulate import (
    REMEDY,
    count_timed,
    emulated_cpu,
    emulator,
    host_arch,
    why_not_runnable,
)
from targets.arm_tvm.run.guest_memory import reason_of, weigh_guest
from targets.arm_tvm.run.inputs import check_inputs
from targets.arm_tvm.run.served import ServedBundle

TIMEOUT_S = 24 * 3600
"""Only what hangs takes longer: whoever has a bundle run limits the process that does it."""


@dataclass
class BundleRunner:
    """Runs a bundle here: directly where the host has its architecture, else under QEMU.

    Args:
        artifact: The bundle.
        evidence: `measured-host` or `measured-emulator`.
        cpu: QEMU's CPU model; empty on the host. `max` where QEMU has no model of the profile's core.
        threads: Threads the bundle uses.
    """

    artifact: Artifact
    evidence: Evidence
    cpu: str
    threads: int

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Executes the bundle once.

        Raises:
            DataError: An input is missing, unknown, or of another dtype or shape.
            ToolchainFailed: The program failed.
        """
        with scratch_folder() as place:
            program = self._program(inputs, place)
            self._execute(program)
            return self._read_outputs(program)

    def latencies_ms(self, inputs: Arrays, repeat: int) -> list[float]:
        """Wall times of `repeat` inferences inside one start of the program, after one to warm up, sorted.

        Raises:
            DataError, ToolchainFailed: As `run` does.
        """
        return [time_us / 1e3 for time_us in self._timed(inputs, repeat)["latency_us"]["sorted"]]

    def processor_ms(self, inputs: Arrays, repeat: int) -> list[float]:
        """Processor time of `repeat` inferences inside one start of the program, after one to warm up, sorted.

        Raises:
            DataError, ToolchainFailed: As `run` does.
        """
        return [time_us / 1e3 for time_us in self._timed(inputs, repeat)["processor_us"]]

    def count_instructions(self, inputs: Arrays) -> int:
        """Guest instructions of one inference on one thread, start-up not included.

        Raises:
            TargetUnavailable: The bundle is for the host, or there is no emulator.
        """
        if not self.cpu:
            raise TargetUnavailable("instructions are counted under the emulator, and this bundle runs on the host")
        with scratch_folder() as place:
            program, *files = self._program(inputs, place)
            # One thread: others would execute instructions while they wait for work.
            return count_timed(
                (program, "--repeat", "1", *files),
                cpu=self.cpu,
                environment=self._environment(1),
                timeout_s=TIMEOUT_S,
            )

    def peak_memory_bytes(self, inputs: Arrays) -> int:
        """Largest resident memory of a process that loads the bundle and runs it, files mapped by it included.

        On the host it is the kernel's own figure; under QEMU the emulated program is looked at while it runs, and when
        its inference is done.

        Raises:
            DataError, ToolchainFailed: As `run` does.
        """
        if self.cpu:
            return self.run_weighed(inputs)[1]
        with scratch_folder() as place:
            program, *files = self._program(inputs, place)
            return int(json.loads(self._execute((program, "--repeat", "1", *files)))["peak_kib"]) * 1024

    def run_weighed(self, inputs: Arrays) -> tuple[dict[str, Array], int]:
        """Executes the bundle once; its outputs, and what `peak_memory_bytes` gives.

        Raises:
            DataError, ToolchainFailed: As `run` does.
        """
        if not self.cpu:
            return self.run(inputs), self.peak_memory_bytes(inputs)
        with scratch_folder() as place:
            program = self._program(inputs, place)
            output = Path(program[-len(self.artifact.outputs)])
            peak, written = weigh_guest(
                (*emulator(self.cpu), *program),
                environment=self._environment(self.threads),
                timeout_s=TIMEOUT_S,
                output=output,
            )
            output.unlink()  # the pipe that it was
            output.write_bytes(written)
            return self._read_outputs(program), peak

    @property
    def note(self) -> str:
        """A caveat for readers of its results; empty on the host and where QEMU has a model of the core."""
        mcpu, threads = self.artifact.facts["mcpu"], int(str(self.artifact.facts["threads"]))
        if self.threads < threads:
            return f"it ran on {self.threads} threads, as many as this machine has, not on the device's {threads}"
        return f"QEMU has no model of {mcpu}; its CPU '{self.cpu}' stood in" if self.cpu not in ("", mcpu) else ""

    def stay_loaded(self) -> ServedBundle:
        """The bundle in a process of its own that answers many runs, where `run` starts one for each.

        Raises:
            ToolchainFailed: It cannot be loaded.
        """
        command = (*(emulator(self.cpu) if self.cpu else ()), str(self.artifact.root.resolve() / "run"))
        return ServedBundle(self.artifact, self.evidence, command=command, environment=self._environment(self.threads))

    def close(self) -> None:
        """Nothing is held between runs."""

    def _timed(self, inputs: Arrays, repeat: int) -> dict[str, Any]:
        """What the program reports of `repeat` inferences."""
        with scratch_folder() as place:
            program, *files = self._program(inputs, place)
            report: dict[str, Any] = json.loads(self._execute((program, "--repeat", str(repeat), *files)))
            return report

    def _execute(self, program: Sequence[str]) -> str:
        command = (*(emulator(self.cpu) if self.cpu else ()), *program)
        return _execute(command, self._environment(self.threads))

    def _read_outputs(self, program: Sequence[str]) -> dict[str, Array]:
        paths = program[-len(self.artifact.outputs) :]
        return {
            spec.name: np.load(path, allow_pickle=False)
            for spec, path in zip(self.artifact.outputs, paths, strict=True)
        }

    def _program(self, inputs: Arrays, place: Path) -> tuple[str, ...]:
        check_inputs(self.artifact, inputs)
        return (str(self.artifact.root.resolve() / "run"), *self._files(inputs, place))

    def _files(self, inputs: Arrays, place: Path) -> tuple[str, ...]:
        """Files of the inputs, which are written, and of the outputs."""
        files = [place / f"in{index}.npy" for index in range(len(self.artifact.inputs))]
        for spec, path in zip(self.artifact.inputs, files, strict=True):
            array = np.asarray(inputs[spec.name], order="C")
            write_atomic(path, partial(np.save, arr=array, allow_pickle=False))
        files += [place / f"out{index}.npy" for index in range(len(self.artifact.outputs))]
        return tuple(map(str, files))

    @staticmethod
    def _environment(threads: int) -> dict[str, str]:
        return {"TVM_NUM_THREADS": str(threads)}


class DecoderBundle(BundleRunner):
    """A bundle of a decoder: `run` is one call of it with its cache; `answer` has its program answer a prompt."""

    def answer(self, asked: Asked) -> Answered:
        """The answer to a prompt, from an empty cache.

        Raises:
            ToolchainFailed: The program failed.
        """
        room = int(str(self.artifact.facts["context"])) - len(asked.prompt)
        options = ["--json", "--tokens", str(min(asked.tokens, room))]
        if asked.stop:
            options += ["--stop", ",".join(map(str, asked.stop))]
        printed = json.loads(self._execute((*self._generate(*options), *map(str, asked.prompt))))
        return Answered(tuple(printed["tokens"]), printed["prompt_ms"], tuple(printed["token_ms"]))

    def count_token(self, prompt: Sequence[int]) -> int:
        """Guest instructions of one token behind a prompt, on one thread.

        Raises:
            TargetUnavailable: The bundle is for the host, or there is no emulator.
        """
        if not self.cpu:
            raise TargetUnavailable("instructions are counted under the emulator, and this bundle runs on the host")
        return count_timed(
            (*self._generate("--tokens", "2"), *map(str, prompt)),
            cpu=self.cpu,
            environment=self._environment(1),
            timeout_s=TIMEOUT_S,
        )

    def stay_loaded(self) -> ServedBundle:
        """Raises TargetUnavailable: the program answers one prompt, and ends."""
        raise TargetUnavailable(
            "the bundle of a language model has no server: its program answers one prompt, and ends",
            remedy="Run ./generate, or fleetc run --prompt; or take target onnxruntime for a model that is served.",
        )

    def _program(self, inputs: Arrays, place: Path) -> tuple[str, ...]:
        check_inputs(self.artifact, inputs)
        return (*self._generate("--call"), *self._files(inputs, place))

    def _generate(self, *options: str) -> tuple[str, ...]:
        return (str(self.artifact.root.resolve() / "generate"), *options)


def load_bundle(artifact: Artifact) -> BundleRunner:
    """Loads a bundle where it can run.

    Raises:
        TargetUnavailable: Neither the host nor an emulator can run it; says why.
    """
    arch, mcpu = str(artifact.facts["mtriple"]).split("-")[0], str(artifact.facts["mcpu"])
    reason = why_not_runnable(arch)
    if reason:
        raise TargetUnavailable(f"the bundle cannot run here: {reason}", remedy=REMEDY if arch == "aarch64" else "")
    on_host, threads = arch == host_arch(), int(str(artifact.facts["threads"]))
    if on_host and (missing := missing_flags(artifact, host_isa())):
        raise TargetUnavailable(
            f"this machine's processor lacks {', '.join(missing)}, which the bundle is compiled for",
            remedy="Verify this artifact on a machine that has them, or build it for this machine's core.",
        )
    kind = DecoderBundle if "context" in artifact.facts else BundleRunner
    return kind(
        artifact,
        Evidence.HOST if on_host else Evidence.EMULATOR,
        "" if on_host else emulated_cpu(mcpu),
        min(threads, available_cpus()) if on_host else threads,
    )


def missing_flags(artifact: Artifact, host: Collection[str]) -> list[str]:
    """What a bundle needs of a processor that this one lacks; nothing where its flags are not known."""
    needs = artifact.facts.get("needs")
    return [str(flag) for flag in needs if flag not in host] if host and isinstance(needs, list) else []


def _execute(command: Sequence[str], environment: dict[str, str]) -> str:
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ToolchainFailed(f"the bundle did not end within {TIMEOUT_S} s") from error
    if ended.returncode:
        raise ToolchainFailed(f"the bundle failed: {reason_of(ended.returncode, ended.stderr)}")
    return ended.stdout
