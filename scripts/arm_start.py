"""What it costs to start a bundle: instructions and memory under QEMU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from arm_ours import PROFILES, Build, build
from bench_models import BenchModel
from bench_record import Figures

from targets.arm_tvm.run.emulate import count_instructions, emulated_cpu, emulator
from targets.arm_tvm.run.guest_memory import weigh_guest

TIMEOUT_S = 3600
ONE_THREAD = {"TVM_NUM_THREADS": "1"}


def start_up(model: BenchModel, core: str, cache: Path) -> Figures:
    """Figures of the fp32 bundle of a model for a core.

    Returns:
        `start_up_instructions`: what one run executes beside its inference, reading the picture and writing the result
        included. `peak_bytes`: largest resident memory of loading and an inference, mapped weights included.
    """
    wanted = Build(model, PROFILES[core], "fp32", cache / "untuned")
    built = build(wanted)
    if "unavailable" in built:
        return built
    given, made = model.folder / "in.npy", model.folder / "start.npy"
    np.save(given, model.item())
    cpu = emulated_cpu(core)
    program = (str(wanted.folder / "run"), str(given), str(made))
    whole = count_instructions(program, cpu=cpu, environment=ONE_THREAD, timeout_s=TIMEOUT_S)
    made.unlink()
    peak, _ = weigh_guest((*emulator(cpu), *program), environment=ONE_THREAD, timeout_s=TIMEOUT_S, output=made)
    weights = (wanted.folder / "payload" / "weights.bin").stat().st_size
    return {
        "start_up_instructions": whole - built["instructions"],
        "weights_bytes": weights,
        "peak_bytes": peak,
        "peak_over_weights": round(peak / weights, 3),
        "bytes_beside_weights": peak - weights,
    }
