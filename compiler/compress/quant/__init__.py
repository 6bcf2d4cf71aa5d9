"""Quantization: observe what a model computes, choose formats and scales, apply them as Q/DQ."""

from __future__ import annotations

from compiler.compress.quant.apply import apply
from compiler.compress.quant.calibration import CalibrationStats, check_calibration, check_coverage
from compiler.compress.quant.choose import choose, observed_values
from compiler.compress.quant.observe import Observations, observations_from_bytes, observe
from compiler.compress.quant.options import QuantOptions
from compiler.compress.quant.plan import LayerQuant, QuantPlan, TensorQuant, plan_from_dict
from compiler.compress.quant.prepare import prepare
from compiler.compress.quant.quantize import Calibrated, Quantized, calibrate, can_balance, quantize
from compiler.compress.quant.sensitivity import LayerError, measure_sensitivity
from compiler.passes.quantized import is_quantized

__all__ = [
    "Calibrated",
    "CalibrationStats",
    "LayerError",
    "LayerQuant",
    "Observations",
    "QuantOptions",
    "QuantPlan",
    "Quantized",
    "TensorQuant",
    "apply",
    "calibrate",
    "can_balance",
    "check_calibration",
    "check_coverage",
    "choose",
    "is_quantized",
    "measure_sensitivity",
    "observations_from_bytes",
    "observe",
    "observed_values",
    "plan_from_dict",
    "prepare",
    "quantize",
]
