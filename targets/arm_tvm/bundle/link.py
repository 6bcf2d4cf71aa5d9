"""Object files → the model's library; the runner's sources → the program beside it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from compiler.target import TargetUnavailable
from targets.arm_tvm.bundle.zig import REMEDY, run_zig
from targets.arm_tvm.options import Options

NATIVE = Path(__file__).parent / "native"
RUNNER_SOURCES = (
    *("main.c", "bundle.c", "model.c", "tensor.c", "sizes.c", "cores.c", "pool.c", "processor.c"),
    *("answer.c", "requests.c", "rungs.c", "ladder.c", "memory.c"),
)
GENERATOR_SOURCES = (
    *("generate.c", "decoder.c", "attention.c", "blocks.c"),
    *("bundle.c", "model.c", "tensor.c", "sizes.c", "cores.c", "pool.c", "processor.c"),
)
SERVER_SOURCES = ("serve.c",)
GLIBC = "2.28"
"""Oldest C library the runner starts with; TVM's own libraries need 2.27."""


def link_model(objects: Sequence[Path], output: Path, *, cache_dir: Path) -> None:
    """Links a shared library that takes what it needs (libm, TVM) from the program that loads it."""
    # No debug information and no build id: a model gives the same bytes in every folder. -z now: a symbol that is
    # missing is noticed when the library is loaded, not during an inference.
    run_zig(
        "ld.lld",
        "-shared",
        "--strip-debug",
        "--build-id=none",
        "-z",
        "now",
        "-o",
        output,
        *objects,
        cache_dir=cache_dir,
    )


def link_runner(arch: str, output: Path, *, runtime: Path, cache_dir: Path) -> None:
    """Compiles the program that runs any model of one architecture.

    Args:
        arch: First part of the triple.
        output: The program to write.
        runtime: Folder of the device's TVM libraries; the program looks for them in `runtime/` beside it.
        cache_dir: Where zig keeps what it compiles once.
    """
    _link_program(RUNNER_SOURCES, arch, output, runtime=runtime, cache_dir=cache_dir)


def link_generator(options: Options, output: Path, *, runtime: Path, cache_dir: Path) -> None:
    """Compiles the program that runs a decoder, for one core: it has kernels of its own.

    Args:
        options: What it is for.
        output, runtime, cache_dir: As of `link_runner`.
    """
    core = "baseline" if options.mcpu == "generic" else _zig_name(options.mcpu)
    features = "".join(feature[0] + _zig_name(feature[1:]) for feature in options.mattr)
    flags = (f"-mcpu={core}{features}",)
    _link_program(GENERATOR_SOURCES, options.arch, output, runtime=runtime, cache_dir=cache_dir, flags=flags)


def _zig_name(name: str) -> str:
    """What zig calls a core or feature of LLVM."""
    return name.replace("-", "_").replace(".", "_")


def link_server(arch: str, output: Path, *, runtime: Path, cache_dir: Path) -> None:
    """Compiles the program that offers a board to TVM's tracker; arguments as of `link_runner`."""
    _link_program(SERVER_SOURCES, arch, output, runtime=runtime, cache_dir=cache_dir)


def _link_program(
    sources: Sequence[str], arch: str, output: Path, *, runtime: Path, cache_dir: Path, flags: Sequence[str] = ()
) -> None:
    includes = [argument for folder in _headers() for argument in ("-isystem", folder)]
    run_zig(
        "cc",
        *("-target", f"{arch}-linux-gnu.{GLIBC}", "-std=c11", "-D_GNU_SOURCE", "-O2", "-g0", "-s"),
        "-rtlib=none",  # zig would compile compiler-rt for its first program, of which these need nothing
        *flags,
        *includes,
        *(NATIVE / name for name in sources),
        *("-o", output, "-L", runtime),
        "-Wl,--no-as-needed",  # zig would drop libtvm_runtime, whose static registrations load the model
        *("-ltvm_runtime", "-ltvm_ffi", "-ldl", "-Wl,-rpath,$ORIGIN/runtime", "-Wl,--build-id=none"),
        cache_dir=cache_dir,
    )


def link_counter(output: Path, *, arch: str, plugin_api: int, workdir: Path) -> None:
    """Compiles the QEMU plugin that counts instructions, for a host of architecture `arch`."""
    link_plugin(NATIVE / "count.c", output, arch=arch, plugin_api=plugin_api, workdir=workdir)


def link_plugin(source: Path, output: Path, *, arch: str, plugin_api: int, workdir: Path) -> None:
    """Compiles a QEMU plugin that needs no C library.

    Args:
        source: One C file; it finds QEMU's version of the interface as API_VERSION.
        output: The library to write.
        arch: Architecture of the host.
        plugin_api: What API_VERSION is.
        workdir: An existing folder for what is made on the way.
    """
    compiled = workdir / "plugin.o"
    run_zig(
        "cc",
        *("-target", f"{arch}-linux", "-ffreestanding", "-fPIC", "-O2", "-fno-stack-protector"),
        *("-fno-sanitize=undefined", f"-DAPI_VERSION={plugin_api}", "-c", source, "-o", compiled),
        cache_dir=workdir,
    )
    run_zig("ld.lld", "-shared", "-o", output, compiled, cache_dir=workdir)


def _headers() -> tuple[Path, Path]:
    spec = importlib.util.find_spec("tvm_ffi")
    if spec is None or not spec.submodule_search_locations:
        raise TargetUnavailable("apache-tvm-ffi, whose headers the runner needs, is not installed", remedy=REMEDY)
    package = Path(spec.submodule_search_locations[0])
    return package / "include", package / "3rdparty" / "dlpack" / "include"
