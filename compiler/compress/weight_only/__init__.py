"""Weights in few bits with activations in float: blocks, formats chosen by measured sensitivity under a byte limit."""

from __future__ import annotations

from compiler.compress.weight_only.choose import Budget, choose_weights
from compiler.compress.weight_only.plan import WeightChoice, WeightPlan
from compiler.compress.weight_only.quantize import WeightOptions, fit_weights, measure_weights
from compiler.compress.weight_only.round_activations import round_activations, round_cache

__all__ = [
    "Budget",
    "WeightChoice",
    "WeightOptions",
    "WeightPlan",
    "choose_weights",
    "fit_weights",
    "measure_weights",
    "round_activations",
    "round_cache",
]
