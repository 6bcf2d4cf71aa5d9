"""The child's side of `compiler.target.isolate`: loads one target, does one piece of work, writes one response."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compiler.artifact import Evidence, artifact_from_dict, artifact_to_dict
from compiler.errors import CompilerError, InternalError, TargetUnavailable, ToolchainFailed
from compiler.fleet import Range
from compiler.fleet.profile import HardwareProfile, load_profile, validate_options
from compiler.model.child import follow_parent
from compiler.model.numerics import write_arrays
from compiler.store.atomic import write_atomic
from compiler.target.target import Backend, Measurer, Target, TargetPlan, Tunes, find_target
from compiler.target.worker_measure import evaluate, footprint, profile, race, read_npz
from compiler.tune import Tunable


def planned(request: Mapping[str, Any]) -> tuple[HardwareProfile, Target, TargetPlan]:
    """The profile, the target and its part of the plan that a request names. Raises TargetUnavailable as `check`."""
    device = load_profile(Path(request["profile"]))
    target = find_target(device.target)
    target.check(device)
    plan = TargetPlan(
        precision=request["precision"],
        options=validate_options(target.Options, device),
        dims={name: Range(**sizes) for name, sizes in request["dims"].items()},
        threads=request["threads"],
        schedule=request.get("schedule", {}),
        payload_bytes=request.get("payload_bytes"),
        cache_dir=Path(request["cache_dir"]),
    )
    return device, target, plan


def build(request: Mapping[str, Any]) -> dict[str, Any]:
    """Builds a border model; gives the artifact's description."""
    import onnx_ir as ir

    device, target, plan = planned(request)
    model = ir.load(request["border"])
    return artifact_to_dict(target.build(model, plan, device, workdir=Path(request["workdir"])))


def kernels(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The kernels of a border model that have choices."""
    import onnx_ir as ir

    device, target, plan = planned(request)
    found = target.tunables(ir.load(request["border"]), plan, device) if isinstance(target, Tunes) else ()
    return [asdict(kernel) for kernel in found]


def measure(request: Mapping[str, Any]) -> None:
    """Measures one trial per line that `compiler.target.tuning_process` writes, until the pipe closes."""
    import onnx_ir as ir

    device, target, plan = planned(request)
    if not isinstance(target, Tunes):
        raise TargetUnavailable(f"target '{target.name}' has nothing to tune")
    measurer = target.measurer(ir.load(request["border"]), plan, device, Backend(**request["backend"]))
    with open(request["answers_fd"], "w", encoding="utf-8") as answers:  # noqa: PTH123  a pipe of our parent's
        _tell(answers, {"evidence": str(measurer.evidence), "device": asdict(measurer.device)})
        with open(request["questions_fd"], encoding="utf-8") as questions:  # noqa: PTH123
            for line in questions:
                _tell(answers, _answer(measurer, json.loads(line)))


def _answer(measurer: Measurer, asked: Mapping[str, Any]) -> dict[str, Any]:
    try:
        kernel = Tunable(**{**asked["kernel"], "choices": tuple(asked["kernel"]["choices"])})
        return {"values": list(measurer.measure(kernel, asked["choice"]).values)}
    except CompilerError as error:
        return error.to_dict()
    except Exception as error:  # whatever a toolchain raises of a trial is that trial's result
        traceback.print_exc()
        return ToolchainFailed(f"{type(error).__name__}: {error}"[:1000]).to_dict()


def _tell(answers: Any, value: Mapping[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def execute(request: Mapping[str, Any]) -> dict[str, Any]:
    """Runs an artifact on every input file; writes the outputs beside, gives evidence, latencies and notes.

    With `repeat`, every input is run that many times more and each run is timed. With `instructions`, a runner that
    emulates and can count guest instructions does so on the first input.
    """
    artifact = artifact_from_dict(request["artifact"])
    runner = find_target(artifact.target).load(artifact)
    try:
        repeat = 0 if runner.evidence == Evidence.EMULATOR else request["repeat"]  # an emulator's time is no figure
        times = [_run_once(runner, Path(item["inputs"]), Path(item["outputs"]), repeat) for item in request["items"]]
        is_counted = request["instructions"] and runner.evidence == Evidence.EMULATOR
        count = getattr(runner, "count_instructions", None) if is_counted else None
        return {
            "evidence": str(runner.evidence),
            "note": getattr(runner, "note", ""),
            "latencies_ms": times,
            "instructions": count(read_npz(Path(request["items"][0]["inputs"]))) if count else None,
        }
    finally:
        runner.close()


WORK: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "build": build,
    "kernels": kernels,
    "measure": measure,
    "execute": execute,
    "evaluate": evaluate,
    "footprint": footprint,
    "profile": profile,
    "race": race,
}


def main(folder: Path) -> None:
    """Reads the request, does the work, writes the response."""
    follow_parent()
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    try:
        response: dict[str, Any] = {"value": WORK[request["work"]](request)}
    except CompilerError as error:
        response = {"error": error.to_dict()}
    except Exception as error:  # whatever a toolchain raises must reach the parent as one message
        traceback.print_exc()
        response = {"error": InternalError(f"{type(error).__name__}: {error}").to_dict()}
    write_atomic(folder / "response.json", json.dumps(response).encode())
    sys.stdout.flush()
    os._exit(0)  # some toolchains crash while they unload; the work is done and written


def _run_once(runner: Any, source: Path, destination: Path, repeat: int) -> list[float]:
    inputs = read_npz(source)
    outputs = runner.run(inputs)
    write_arrays(destination, outputs)
    timed = getattr(runner, "latencies_ms", None)  # a runner that starts a program times inside of it
    return timed(inputs, repeat) if timed and repeat else [_milliseconds(runner, inputs) for _ in range(repeat)]


def _milliseconds(runner: Any, inputs: Mapping[str, Any]) -> float:
    started = time.perf_counter()
    runner.run(inputs)
    return (time.perf_counter() - started) * 1e3


if __name__ == "__main__":
    main(Path(sys.argv[1]))
