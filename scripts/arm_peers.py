"""Guest instructions of ncnn, MNN, ONNX Runtime and TVM's default pipeline for one inference, beside ours.

What was counted once for the same model, version, precision and core is kept in the cache: the counts repeat.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from arm_convert import PROGRAM, convert_mnn, convert_ncnn
from arm_guest import CONVERTER, PEERS, Guest, PeerUnavailable, prepare_guest
from bench_models import BenchModel, sqnr_db
from bench_quantizers import quantize_ort
from bench_record import Figures

from compiler.artifact import Artifact, Evidence
from compiler.errors import CompilerError
from targets.arm_tvm.bundle.folder import Cores, pack_bundle
from targets.arm_tvm.bundle.runtime_libraries import TVM_VERSION
from targets.arm_tvm.graph.kernel_objects import write_objects
from targets.arm_tvm.graph.lower import Lowered, read_signature
from targets.arm_tvm.options import Options
from targets.arm_tvm.run.runner import BundleRunner

PRECISIONS = ("fp32", "fp16", "int8")
CONVERTING_CPU = "max"


def count_peers(model: BenchModel, cpu: str, cache: Path) -> Figures:
    """Peer → precision → figures, or why there are none."""
    found: Figures = {}
    for peer in ("ncnn", "mnn", "onnxruntime"):
        found[peer] = _figures_of(peer, model, cpu, cache)
    return found


def _figures_of(peer: str, model: BenchModel, cpu: str, cache: Path) -> Figures:
    try:
        guest = prepare_guest(cache)
        files = _converted(peer, model, guest, cache)
    except (PeerUnavailable, CompilerError) as error:
        return {"unavailable": str(error)}
    found: Figures = {}
    for precision in PRECISIONS:
        key = ["peer", PEERS[peer], CONVERTER, model.digest, precision, cpu, PROGRAM.read_text("utf-8")]
        path = files.get(precision)
        if path is None:
            found[precision] = {"unavailable": f"{peer}'s tools made no {precision} model"}
        else:
            found[precision] = remembered(cache, key, _counting(guest, peer, precision, path, model, cpu))
    return {"version": PEERS[peer], **found}


def _converted(peer: str, model: BenchModel, guest: Guest, cache: Path) -> dict[str, Path]:
    """Precision → the peer's file; converted once."""
    folder = cache / "converted" / peer / model.digest[:16]
    index = folder / "files.json"
    if not index.exists():
        folder.mkdir(parents=True, exist_ok=True)
        given = (model.border, model.samples(), guest, folder)
        if peer == "ncnn":
            files = convert_ncnn(*given, cpu=CONVERTING_CPU)
        elif peer == "mnn":
            files = convert_mnn(*given, unit=model.unit, cpu=CONVERTING_CPU)
        else:
            samples = [{model.input: row[None]} for row in model.samples()]
            files = {"fp32": model.border, "int8": quantize_ort(model.source, samples, folder)}
        index.write_text(json.dumps({name: str(path) for name, path in files.items()}), "utf-8")
    return {name: Path(path) for name, path in json.loads(index.read_text("utf-8")).items()}


def _counting(
    guest: Guest, peer: str, precision: str, path: Path, model: BenchModel, cpu: str
) -> Callable[[], Figures]:
    def count() -> Figures:
        given, made = model.folder / "in.npy", model.folder / f"{peer}.npy"
        np.save(given, model.item())
        arguments = (PROGRAM, peer, precision, path, given, made)
        guest.run(*arguments, "1", cpu=cpu)  # writes Python's compiled files, which a counted run must not
        once, twice = (guest.count(*arguments, repeat, cpu=cpu) for repeat in ("1", "2"))
        return {"instructions": twice - once, "sqnr_db": round(sqnr_db(model.expected(), np.load(made)), 1)}

    return count


def count_default(model: BenchModel, options: Options, cpu: str, cache: Path) -> Figures:
    """What TVM's own pipeline makes of the same border model, in fp32: without our schedules, layouts and weights."""

    def count() -> Figures:
        runner = _default_runner(model, options, cpu, cache)
        given = {model.input: model.item()}
        (found,) = runner.run(given).values()
        sqnr = round(sqnr_db(model.expected(), np.asarray(found)), 1)
        return {"instructions": runner.count_instructions(given), "sqnr_db": sqnr}

    return {"version": TVM_VERSION, "fp32": remembered(cache, ["tvm", TVM_VERSION, model.digest, cpu], count)}


def _default_runner(model: BenchModel, options: Options, cpu: str, cache: Path) -> BundleRunner:
    import tvm
    from tvm.relax.frontend.onnx import from_onnx

    root = cache / "default" / f"{model.name}-{cpu}"
    shutil.rmtree(root, ignore_errors=True)
    objects = root / "objects"
    objects.mkdir(parents=True)
    try:
        module = from_onnx(onnx.load(model.border))  # as TVM's users do: our importer converts operators of its own
    except tvm.error.OpNotImplemented as error:
        raise PeerUnavailable(f"TVM's importer: {str(error).splitlines()[-1]}") from error
    inputs, outputs = read_signature(module, [model.input], ["output"])
    executable = tvm.compile(module, target=tvm.target.Target(options.target))
    lowered = Lowered(write_objects(executable, options, objects), (), inputs, outputs)
    files = pack_bundle(lowered, options, Cores(1, 1), workdir=root / "bundle", cache_dir=cache / "toolchains")
    facts: dict[str, Any] = {"mtriple": options.mtriple, "mcpu": options.mcpu, "mattr": [], "threads": 1}
    artifact = Artifact(root / "bundle", "tvm", "fp32", inputs, outputs, files, {}, facts)
    return BundleRunner(artifact, Evidence.EMULATOR, cpu, 1)


def remembered(cache: Path, key: list[str], measure: Callable[[], Figures]) -> Figures:
    """What `measure` gives, kept in the cache under all that can change it; failures are told and not kept."""
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    path = cache / "counted" / f"{digest}.json"
    if path.exists():
        found: Figures = json.loads(path.read_text("utf-8"))
        return found
    try:
        figures = measure()
    except (PeerUnavailable, CompilerError) as error:
        return {"unavailable": str(error)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures), "utf-8")
    return figures
