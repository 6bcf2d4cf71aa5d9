"""Machine code of kernels, each an object file of its own: compiled side by side, and once for all builds of a cache.

A kernel is named by a digest of what it computes, so that the same one has the same name in every model, and its object
file can be taken from the cache. The library of a model is linked of them and of the virtual machine's code.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from compiler.target import available_cpus, installed_version, scratch_folder, write_atomic
from targets.arm_tvm.graph import tir_passes
from targets.arm_tvm.graph.tir_passes import register_pipeline
from targets.arm_tvm.options import Options

FOLDER = "kernels"
"""Of the cache."""
DIGEST_CHARACTERS = 32
"""Of a kernel's digest in its name: 128 bits."""


def compile_kernels(
    modules: Mapping[str, Any], options: Options, *, workdir: Path, cache_dir: Path
) -> tuple[Path, ...]:
    """Object files, in link order, of Relax modules whose `main` calls only kernels; kernels are shared.

    Args:
        modules: Name that the virtual machine shall have for `main` → the module, weights as parameters of it.
        options: What to compile for.
        workdir: An existing folder for the object files.
        cache_dir: Where those of kernels are kept for other builds.
    """
    import tvm
    from tvm import relax, tirx
    from tvm.relax.backend.cpu_generic import pipeline as cpu

    target = tvm.target.Target(options.target)
    # The second half of TVM's CPU pipeline; `_fuse` runs the first, before weights become parameters.
    rest = tvm.transform.Sequential([*cpu.dataflow_lower_passes(target), *cpu.finalize_passes(target)])
    with target:
        lowered = [rest(name_kernels(module, name)) for name, module in modules.items()]
    kernels = {
        gv.name_hint: part
        for module in lowered
        for gv, part in module.functions_items()
        if isinstance(part, tirx.PrimFunc)
    }
    objects = compile_objects(kernels, options, workdir=workdir, cache_dir=cache_dir)
    builder = relax.ExecBuilder()
    for module in lowered:
        relax.vm_build._vmcodegen(builder, module)
    executable = relax.vm_build._vmlink(builder, target, _empty_kernel(), tir_pipeline=register_pipeline())
    return (*objects, *write_objects(executable, options, workdir))


def _empty_kernel() -> Any:
    """For TVM to link: the virtual machine looks for kernels in its library only where it was linked with one."""
    import tvm
    from tvm import tirx

    function = tirx.PrimFunc([], tirx.Evaluate(0)).with_attrs({"global_symbol": "nothing", "s_tir": True})
    return tvm.IRModule({"nothing": function})


def write_objects(executable: Any, options: Options, workdir: Path) -> tuple[Path, ...]:
    """Object files of what TVM has compiled, in link order."""
    objects: list[Path] = []

    def collect(_: str, files: list[str], **__: Any) -> None:
        objects.extend(map(Path, files))

    collect.get_target_triple = lambda: options.mtriple  # type: ignore[attr-defined]  # asked of a model without kernels
    executable.export_library("model.so", fcompile=collect, workspace_dir=str(workdir))
    return tuple(objects)


def name_kernels(module: Any, main: str = "main") -> Any:
    """The Relax module with its kernels named by what they compute.

    Args:
        module: `main` and the kernels that it calls.
        main: What `main` is to be named.
    """
    import tvm
    from tvm import relax, tirx

    builder, names = relax.BlockBuilder(), {}
    for variable, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc):
            plain = function.without_attr("global_symbol")
            digest = hashlib.sha256(tvm.ir.save_json(plain).encode()).hexdigest()
            name = f"{variable.name_hint.split('_')[0]}_{digest[:DIGEST_CHARACTERS]}"
            # The builder gives equal kernels one name.
            names[variable.name_hint] = builder.add_func(plain, name)
    named, renamer = builder.get().with_attrs(module.attrs), _renamer(names)
    for variable, function in module.functions_items():
        if not isinstance(function, tirx.PrimFunc):
            renamed = renamer.visit_expr(function)
            is_main = variable.name_hint == "main"
            named[main if is_main else variable] = renamed.with_attr("global_symbol", main) if is_main else renamed
    return named


def compile_objects(
    functions: Mapping[str, Any], options: Options, *, workdir: Path, cache_dir: Path
) -> tuple[Path, ...]:
    """Object files of kernels, in their order.

    Args:
        functions: Name of a kernel, as `name_kernels` gives it → the kernel.
        options: What to compile for.
        workdir: An existing folder for the object files.
        cache_dir: Where they are kept for other builds.
    """
    register_pipeline()

    def make(name: str) -> Path:
        kept = cache_dir / FOLDER / f"{_digest(name, functions[name], options)}.o"
        if not kept.is_file():
            _compile_into(kept, name, functions[name], options)
        return Path(shutil.copyfile(kept, workdir / f"{name}.o"))

    # TVM and LLVM compile without Python's lock.
    with ThreadPoolExecutor(available_cpus()) as pool:
        return tuple(pool.map(make, functions))


def _digest(name: str, function: Any, options: Options) -> str:
    """Of all that a kernel's object file depends on."""
    import tvm_ffi

    parts = {
        "name": name,
        "function": tvm_ffi.structural_hash(function),  # the name has a digest of what it was before TVM's last passes
        "target": options.target,
        "tvm": installed_version("apache-tvm"),
        # A change of the passes between a kernel and its machine code must not find old objects.
        "passes": hashlib.sha256(Path(tir_passes.__file__).read_bytes()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _compile_into(path: Path, name: str, function: Any, options: Options) -> None:
    import tvm

    target = tvm.target.Target(options.target)
    library = tvm.tirx.build(tvm.IRModule({name: function}), target=target, pipeline=tir_passes.PIPELINE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder() as folder:
        made = folder / path.name
        library.write_to_file(str(made), "o")
        write_atomic(path, made.read_bytes())  # other builds may write the same file


def _renamer(names: Mapping[str, Any]) -> Any:
    from tvm.relax.expr_functor import PyExprMutator, mutator

    @mutator
    class Renamer(PyExprMutator):  # type: ignore[misc]  # TVM is untyped
        """Replaces the names of kernels where they are called."""

        def visit_global_var_(self, op: Any) -> Any:
            return names.get(op.name_hint, op)

    return Renamer()
