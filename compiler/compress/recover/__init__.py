"""Recovery: a pruned model learns anew, from the original and unlabelled data, what it gave before the cut.

network_of (teacher, student) → choose_way → train, with checkpoints → with_weights

PyTorch is optional and imported when `recover` is called. Distillation: Hinton et al., Distilling the Knowledge in a
Neural Network, 2015; that teacher and student see the same strongly varied and mixed inputs: Beyer et al., Knowledge
distillation: a good teacher is patient and consistent, 2022; values inside as further targets: Romero et al., FitNets,
2015.
"""

from compiler.compress.recover.recipe import Recipe, Recovered
from compiler.compress.recover.recover import Metric, check_torch, recover
from compiler.compress.recover.taps import choose_taps

__all__ = ["Metric", "Recipe", "Recovered", "check_torch", "choose_taps", "recover"]
