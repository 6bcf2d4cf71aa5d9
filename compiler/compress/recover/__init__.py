"""Recovery: knowledge distillation from the original model to the pruned one, on unlabelled data.

network_of (teacher, student) → choose_config → train, with checkpoints → with_weights

PyTorch is optional and imported when `recover` is called. Distillation: Hinton et al., Distilling the Knowledge in a
Neural Network, 2015; the same strongly augmented and mixed inputs for teacher and student: Beyer et al., Knowledge
distillation: a good teacher is patient and consistent, 2022; intermediate features as further targets: Romero et al.,
FitNets, 2015.
"""

from compiler.compress.recover.recipe import Recipe, Recovered
from compiler.compress.recover.recover import Goal, Metric, Pair, check_torch, recover
from compiler.compress.recover.taps import choose_taps

__all__ = ["Goal", "Metric", "Pair", "Recipe", "Recovered", "check_torch", "choose_taps", "recover"]
