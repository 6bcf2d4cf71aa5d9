"""Writes the bundle: the model, its weights and signature, the runtime, and its program: `run`, or `generate`."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from compiler.target import TensorSpec, scratch_folder
from targets.arm_tvm.bundle.link import link_generator, link_model, link_runner, link_server
from targets.arm_tvm.bundle.processor import needed_flags
from targets.arm_tvm.bundle.runtime_libraries import EXTRA, runtime_files
from targets.arm_tvm.bundle.weights_file import write_weights
from targets.arm_tvm.graph.decoder import DecoderBuild
from targets.arm_tvm.graph.lower import Lowered, Signature, lower
from targets.arm_tvm.graph.packing import Schedule
from targets.arm_tvm.graph.sizes import Sizes
from targets.arm_tvm.options import Options


@dataclass(frozen=True)
class Cores:
    """The CPUs a model runs on.

    Args:
        threads: Threads of an inference, the calling one included.
        fast: Number of CPUs they are bound to: the fastest of the device.
    """

    threads: int
    fast: int


def write_bundle(
    model: ir.Model,
    options: Options,
    cores: Cores,
    *,
    schedule: Schedule,
    workdir: Path,
    cache_dir: Path,
    precision: str = "fp32",
    payload_bytes: int | None = None,
    sizes: Sizes | None = None,
    decoder: DecoderBuild | None = None,
) -> tuple[Lowered, tuple[str, ...]]:
    """Compiles a model and writes the folder that runs it.

    Args:
        model: The border model.
        options: What to compile for.
        cores: Where the model shall run on the device.
        schedule: Workload → the choice to build it with; others get the analytic default.
        workdir: The folder to fill.
        cache_dir: Where the device's libraries, object files of kernels and zig's own cache are kept.
        precision: As of `lower`.
        payload_bytes: Most bytes of `payload/`; None: no limit.
        sizes: How the range of its open dimension is built; None where all sizes are fixed.
        decoder: How a decoder is built; None of other models.

    Returns:
        What was compiled, and the files written, relative to `workdir`.
    """
    with scratch_folder() as objects:
        lowered = lower(
            model,
            options,
            workdir=objects,
            cache_dir=cache_dir,
            schedule=schedule,
            precision=precision,
            payload_bytes=payload_bytes,
            sizes=sizes,
            decoder=decoder,
        )
        return lowered, pack_bundle(lowered, options, cores, workdir=workdir, cache_dir=cache_dir)


def pack_bundle(lowered: Lowered, options: Options, cores: Cores, *, workdir: Path, cache_dir: Path) -> tuple[str, ...]:
    """Links compiled code and writes the folder that runs it; arguments and files as in `write_bundle`."""
    payload, runtime = workdir / "payload", workdir / "runtime"
    payload.mkdir(parents=True)
    link_model(lowered.objects, payload / "model.so", cache_dir=cache_dir)
    weights = write_weights(payload / "weights.bin", lowered.weights)
    (payload / "io.txt").write_text(_signature(lowered, weights), encoding="utf-8")
    (payload / "cores.txt").write_text(f"threads {cores.threads}\nfast_cores {cores.fast}\n", encoding="utf-8")
    if lowered.sizes is not None:
        (payload / "sizes.txt").write_text(_sizes(lowered.sizes), encoding="utf-8")
    if needs := needed_flags(options):
        (payload / "cpu.txt").write_text("".join(f"{flag}\n" for flag in needs), encoding="utf-8")
    _copy_runtime(options.arch, runtime, cache_dir=cache_dir, with_extra=_needs_extra(payload / "model.so"))
    if lowered.decoder:
        (payload / "decoder.txt").write_text(lowered.decoder, encoding="utf-8")
        link_generator(options, workdir / "generate", runtime=runtime, cache_dir=cache_dir)
    else:
        link_runner(options.arch, workdir / "run", runtime=runtime, cache_dir=cache_dir)
    files = sorted(path.relative_to(workdir).as_posix() for path in workdir.rglob("*") if path.is_file())
    return tuple(files)


def write_server(arch: str, *, workdir: Path, cache_dir: Path) -> None:
    """Writes the folder that offers a board to TVM's tracker: the program `serve` and its libraries, no Python.

    Args:
        arch: First part of the board's triple.
        workdir: The folder to fill.
        cache_dir: As of `write_bundle`.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    _copy_runtime(arch, workdir / "runtime", cache_dir=cache_dir, with_extra=True)
    link_server(arch, workdir / "serve", runtime=workdir / "runtime", cache_dir=cache_dir)


def _copy_runtime(arch: str, folder: Path, *, cache_dir: Path, with_extra: bool) -> None:
    folder.mkdir()
    for name, path in runtime_files(arch, cache_dir=cache_dir).items():
        if name != EXTRA or with_extra:
            shutil.copyfile(path, folder / name)


def _signature(lowered: Lowered, weights: Iterable[TensorSpec]) -> str:
    sizes = lowered.signatures or (Signature(lowered.inputs, lowered.outputs),)
    inputs, outputs = ([getattr(own, kind) for own in sizes] for kind in ("inputs", "outputs"))
    lines = [*_lines("input", inputs), *_lines("output", outputs), *_lines("weight", [tuple(weights)])]
    return "".join(lines)


def _lines(kind: str, sizes: Sequence[Sequence[TensorSpec]]) -> Iterable[str]:
    """A line for each tensor, of its shape at each size."""
    for specs in zip(*sizes, strict=True):
        shape = ",".join(map(_extent, zip(*(spec.shape for spec in specs), strict=True)))
        yield f"{kind} {specs[0].dtype} {shape or '-'} {_printable(specs[0].name)}\n"


def _extent(extents: Sequence[int | str]) -> str:
    """One number, or one for each size."""
    return str(extents[0]) if len(set(extents)) == 1 else "|".join(map(str, extents))


def _sizes(sizes: Sizes) -> str:
    built = "".join(f"size {size}\n" for size in sizes.built)
    name = f"dimension {_printable(sizes.dimension)}\n"
    return f"least {sizes.least}\nmost {sizes.most}\ndivides {int(sizes.divides)}\n{built}{name}"


def _printable(name: str) -> str:
    # These files are read line by line, so a name must not hold the end of one.
    return "".join(char if char.isprintable() else "?" for char in name)


def _needs_extra(library: Path) -> bool:
    # Compiled code calls what is in the extra library by global names that begin so.
    return b"tvm.contrib." in library.read_bytes()
