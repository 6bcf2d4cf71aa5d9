"""From TIR functions to machine code: TVM's passes for CPUs, and for our own kernels only those that they need.

TVM's pipeline is made for kernels that its schedules write: nested blocks, symbolic offsets, GPUs. Ours are plain loops
over flat buffers, and what is left to simplify in them LLVM simplifies in a fraction of the time.
"""

from __future__ import annotations

from typing import Any

PIPELINE = "fleetc"
"""Under which name TVM knows the pipeline."""
OWN = "fleetc.kernel"
"""Attribute of our kernels."""


def register_pipeline() -> str:
    """Makes the pipeline known to TVM; gives its name."""
    from tvm.s_tir.pipeline import finalize_device_passes, finalize_host_passes
    from tvm.tirx.compilation_pipeline import register_tir_pipeline

    register_tir_pipeline(PIPELINE, lambda: (_pipeline(), finalize_host_passes, finalize_device_passes))
    return PIPELINE


def _pipeline() -> Any:
    import tvm
    from tvm.s_tir.pipeline import default_s_tir_pipeline

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]  # TVM is untyped
    def run(module: Any, _: Any) -> Any:
        own, others = tvm.IRModule({}, attrs=module.attrs), tvm.IRModule({}, attrs=module.attrs)
        for variable, function in module.functions_items():
            (own if OWN in (function.attrs or {}) else others)[variable] = function
        lowered = default_s_tir_pipeline()[0](others)
        lowered.update(_own_passes()(own))
        return lowered

    return run


def _own_passes() -> Any:
    import tvm
    from tvm import s_tir, tirx

    return tvm.transform.Sequential(
        [
            s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
            s_tir.transform.ConvertBlocksToOpaque(),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.FlattenBuffer(),
            # Makes one buffer of vectors of each that is only read and written in vectors.
            tirx.transform.StorageRewrite(),
            tirx.transform.StmtSimplify(),
            tirx.transform.VerifyMemory(),
            tirx.transform.AnnotateEntryFunc(),
            tirx.transform.SplitHostDevice(),
            tirx.transform.MakePackedAPI(),
        ]
    )
