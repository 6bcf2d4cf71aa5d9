"""The plugin contract: what a target offers, and the child process it works in; each target talks to its own boards.

The names below are all that a target may import from fleetc; everything else may change. Each is imported when it is
first used, so that listing targets loads no graph library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.artifact import Artifact, Evidence
    from compiler.errors import (
        CompilerError,
        DataError,
        FleetError,
        StorageError,
        TargetUnavailable,
        ToolchainFailed,
        UnsupportedModel,
        combine,
    )
    from compiler.fleet import Range
    from compiler.fleet.detect import detect_profile, host_isa, missing_isa
    from compiler.fleet.machine import available_cpus
    from compiler.fleet.profile import Cpu, HardwareProfile, load_profile, validate_options
    from compiler.model.decoder import Decoder, find_decoder, is_decoder
    from compiler.model.frontend.extract import extract_prefix
    from compiler.model.graph import Pass, PassResult, graph_digest
    from compiler.model.numerics import Array, Arrays
    from compiler.model.onnx_runtime import OnnxRuntimeSession, onnx_runtime_errors, onnx_runtime_operators
    from compiler.model.save import save_model
    from compiler.model.spec import TensorSpec
    from compiler.passes.decompose_operators import DecomposeOperators
    from compiler.passes.decompose_quantized import DECOMPOSE_QUANTIZED
    from compiler.passes.pipelines import load_passes
    from compiler.passes.probe import run_unoptimized
    from compiler.passes.quantized import is_quantized, rounded_value
    from compiler.passes.shift_quantized import SHIFT_QUANTIZED
    from compiler.passes.unroll_loops import UnrollLoops
    from compiler.passes.values import constant_of, record_origin, scalar_of
    from compiler.store.atomic import write_atomic
    from compiler.store.scratch import scratch_folder
    from compiler.target.capability import (
        Capability,
        OpRule,
        PrecisionRule,
        Refusal,
        op_key,
        raise_refusals,
        refuse_unsupported,
    )
    from compiler.target.runner import (
        CountsInstructions,
        HasNote,
        KeepsCache,
        KnowsWhereItRuns,
        LayerTime,
        ReportsPeakMemory,
        Runner,
        StaysLoaded,
        TimesLayers,
        TimesProcessor,
        TimesRuns,
        WeighsRuns,
    )
    from compiler.target.scheme import BITS_KEY, BlockFormat, OpScheme, QuantScheme, TensorFormat, WeightChoices
    from compiler.target.target import (
        API_VERSION,
        Backend,
        HasAlternatives,
        HoldsToIsa,
        Measurer,
        Prepares,
        Target,
        TargetPlan,
        Tunes,
        find_target,
        installed_version,
        list_targets,
    )
    from compiler.tune import Choice, DeviceType, Measurement, Tunable, profile_device

_PLACES = {
    "API_VERSION": "compiler.target.target",
    "Array": "compiler.model.numerics",
    "Arrays": "compiler.model.numerics",
    "Artifact": "compiler.artifact.artifact",
    "BITS_KEY": "compiler.target.scheme",
    "Backend": "compiler.target.target",
    "BlockFormat": "compiler.target.scheme",
    "Capability": "compiler.target.capability",
    "Choice": "compiler.tune",
    "CompilerError": "compiler.errors",
    "CountsInstructions": "compiler.target.runner",
    "Cpu": "compiler.fleet.profile",
    "DECOMPOSE_QUANTIZED": "compiler.passes.decompose_quantized",
    "DataError": "compiler.errors",
    "Decoder": "compiler.model.decoder",
    "DecomposeOperators": "compiler.passes.decompose_operators",
    "DeviceType": "compiler.tune",
    "Evidence": "compiler.artifact.artifact",
    "FleetError": "compiler.errors",
    "HardwareProfile": "compiler.fleet.profile",
    "HasAlternatives": "compiler.target.target",
    "HasNote": "compiler.target.runner",
    "HoldsToIsa": "compiler.target.target",
    "KeepsCache": "compiler.target.runner",
    "KnowsWhereItRuns": "compiler.target.runner",
    "LayerTime": "compiler.target.runner",
    "Measurement": "compiler.tune",
    "Measurer": "compiler.target.target",
    "OnnxRuntimeSession": "compiler.model.onnx_runtime",
    "OpRule": "compiler.target.capability",
    "OpScheme": "compiler.target.scheme",
    "Pass": "compiler.model.graph",
    "PassResult": "compiler.model.graph",
    "PrecisionRule": "compiler.target.capability",
    "Prepares": "compiler.target.target",
    "QuantScheme": "compiler.target.scheme",
    "Range": "compiler.fleet.fleet",
    "Refusal": "compiler.target.capability",
    "ReportsPeakMemory": "compiler.target.runner",
    "Runner": "compiler.target.runner",
    "SHIFT_QUANTIZED": "compiler.passes.shift_quantized",
    "StaysLoaded": "compiler.target.runner",
    "StorageError": "compiler.errors",
    "Target": "compiler.target.target",
    "TargetPlan": "compiler.target.target",
    "TargetUnavailable": "compiler.errors",
    "TensorFormat": "compiler.target.scheme",
    "TensorSpec": "compiler.model.spec",
    "TimesLayers": "compiler.target.runner",
    "TimesProcessor": "compiler.target.runner",
    "TimesRuns": "compiler.target.runner",
    "ToolchainFailed": "compiler.errors",
    "Tunable": "compiler.tune",
    "Tunes": "compiler.target.target",
    "UnrollLoops": "compiler.passes.unroll_loops",
    "UnsupportedModel": "compiler.errors",
    "WeighsRuns": "compiler.target.runner",
    "WeightChoices": "compiler.target.scheme",
    "available_cpus": "compiler.fleet.machine",
    "combine": "compiler.errors",
    "constant_of": "compiler.passes.values",
    "detect_profile": "compiler.fleet.detect",
    "extract_prefix": "compiler.model.frontend.extract",
    "find_decoder": "compiler.model.decoder",
    "find_target": "compiler.target.target",
    "graph_digest": "compiler.model.graph",
    "host_isa": "compiler.fleet.detect",
    "installed_version": "compiler.target.target",
    "is_decoder": "compiler.model.decoder",
    "is_quantized": "compiler.passes.quantized",
    "list_targets": "compiler.target.target",
    "load_passes": "compiler.passes.pipelines",
    "load_profile": "compiler.fleet.profile",
    "missing_isa": "compiler.fleet.detect",
    "onnx_runtime_errors": "compiler.model.onnx_runtime",
    "onnx_runtime_operators": "compiler.model.onnx_runtime",
    "op_key": "compiler.target.capability",
    "profile_device": "compiler.tune",
    "raise_refusals": "compiler.target.capability",
    "refuse_unsupported": "compiler.target.capability",
    "record_origin": "compiler.passes.values",
    "rounded_value": "compiler.passes.quantized",
    "run_unoptimized": "compiler.passes.probe",
    "save_model": "compiler.model.save",
    "scalar_of": "compiler.passes.values",
    "scratch_folder": "compiler.store.scratch",
    "validate_options": "compiler.fleet.profile",
    "write_atomic": "compiler.store.atomic",
}

__all__ = [
    "API_VERSION",
    "BITS_KEY",
    "DECOMPOSE_QUANTIZED",
    "SHIFT_QUANTIZED",
    "Array",
    "Arrays",
    "Artifact",
    "Backend",
    "BlockFormat",
    "Capability",
    "Choice",
    "CompilerError",
    "CountsInstructions",
    "Cpu",
    "DataError",
    "Decoder",
    "DecomposeOperators",
    "DeviceType",
    "Evidence",
    "FleetError",
    "HardwareProfile",
    "HasAlternatives",
    "HasNote",
    "HoldsToIsa",
    "KeepsCache",
    "KnowsWhereItRuns",
    "LayerTime",
    "Measurement",
    "Measurer",
    "OnnxRuntimeSession",
    "OpRule",
    "OpScheme",
    "Pass",
    "PassResult",
    "PrecisionRule",
    "Prepares",
    "QuantScheme",
    "Range",
    "Refusal",
    "ReportsPeakMemory",
    "Runner",
    "StaysLoaded",
    "StorageError",
    "Target",
    "TargetPlan",
    "TargetUnavailable",
    "TensorFormat",
    "TensorSpec",
    "TimesLayers",
    "TimesProcessor",
    "TimesRuns",
    "ToolchainFailed",
    "Tunable",
    "Tunes",
    "UnrollLoops",
    "UnsupportedModel",
    "WeighsRuns",
    "WeightChoices",
    "available_cpus",
    "combine",
    "constant_of",
    "detect_profile",
    "extract_prefix",
    "find_decoder",
    "find_target",
    "graph_digest",
    "host_isa",
    "installed_version",
    "is_decoder",
    "is_quantized",
    "list_targets",
    "load_passes",
    "load_profile",
    "missing_isa",
    "onnx_runtime_errors",
    "onnx_runtime_operators",
    "op_key",
    "profile_device",
    "raise_refusals",
    "record_origin",
    "refuse_unsupported",
    "rounded_value",
    "run_unoptimized",
    "save_model",
    "scalar_of",
    "scratch_folder",
    "validate_options",
    "write_atomic",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'compiler.target' has no attribute '{name}'")
    return getattr(import_module(_PLACES[name]), name)
