"""The named lists of passes, read aloud."""

from __future__ import annotations

from compiler.errors import InternalError
from compiler.graph import Pass
from compiler.passes.convert_to_half import convert_precision
from compiler.passes.fold_constants import FOLD_CONSTANTS
from compiler.passes.fold_input_normalization import FOLD_INPUT_NORMALIZATION
from compiler.passes.fuse_activations import FUSE_ACTIVATIONS
from compiler.passes.fuse_attention import FUSE_ATTENTION
from compiler.passes.fuse_conv_affine import FUSE_CONV_AFFINE
from compiler.passes.fuse_conv_bn import FUSE_CONV_BN
from compiler.passes.fuse_gelu import FUSE_GELU
from compiler.passes.fuse_layer_normalization import FUSE_LAYER_NORMALIZATION
from compiler.passes.fuse_matmul_add import FUSE_MATMUL_ADD
from compiler.passes.fuse_pad import FUSE_PAD
from compiler.passes.infer_shapes import INFER_SHAPES
from compiler.passes.merge_casts import MERGE_CASTS
from compiler.passes.merge_duplicates import MERGE_DUPLICATES
from compiler.passes.merge_reshapes import MERGE_RESHAPES
from compiler.passes.merge_transposes import MERGE_TRANSPOSES
from compiler.passes.remove_dead_nodes import REMOVE_DEAD_NODES
from compiler.passes.remove_identities import REMOVE_IDENTITIES
from compiler.passes.remove_training_leftovers import REMOVE_TRAINING_LEFTOVERS
from compiler.passes.simplify_onnxsim import SIMPLIFY_ONNXSIM

PORTABLE: tuple[Pass, ...] = (
    SIMPLIFY_ONNXSIM,  # first: it works on the graph as exported, and what it makes is compared with that graph
    REMOVE_DEAD_NODES,
    INFER_SHAPES,  # before everything that asks for types and shapes
    REMOVE_TRAINING_LEFTOVERS,
    FOLD_CONSTANTS,  # before the patterns, which want their constants as initializers
    REMOVE_IDENTITIES,
    MERGE_CASTS,
    MERGE_RESHAPES,
    MERGE_TRANSPOSES,
    MERGE_DUPLICATES,  # before the patterns, which want to be a value's only reader
    FUSE_GELU,  # the patterns of many nodes come before those of two, which would take pieces out of them
    FUSE_LAYER_NORMALIZATION,
    FUSE_ATTENTION,
    FUSE_ACTIVATIONS,
    FOLD_INPUT_NORMALIZATION,  # before fuse-pad: a convolution without padding takes Sub, one with padding cannot
    FUSE_CONV_BN,
    FUSE_CONV_AFFINE,
    FUSE_PAD,
    FUSE_MATMUL_ADD,
    FOLD_CONSTANTS,  # again: what rules left of weights and shapes
    REMOVE_IDENTITIES,
    MERGE_DUPLICATES,
    REMOVE_DEAD_NODES,  # after every pass that leaves constants nobody reads
    INFER_SHAPES,  # last: the border model has every type and shape in it
)
"""From the imported model to the border model, float32 throughout."""

FP16: tuple[Pass, ...] = (convert_precision("fp16"), MERGE_CASTS, REMOVE_DEAD_NODES, INFER_SHAPES)
"""From a float32 border model to one that computes in fp16; Casts of the model's own may now stand next to ours."""

BF16: tuple[Pass, ...] = (convert_precision("bf16"), MERGE_CASTS, REMOVE_DEAD_NODES, INFER_SHAPES)
"""The same in bf16."""


def precision_passes(precision: str) -> tuple[Pass, ...]:
    """The passes that bring a float32 border model to a precision: `fp32`, `fp16` or `bf16`.

    Raises:
        InternalError: No list has that name; the plan offers only these.
    """
    named: dict[str, tuple[Pass, ...]] = {"fp32": (), "fp16": FP16, "bf16": BF16}
    if precision not in named:
        raise InternalError(f"there is no list of passes for the precision '{precision}'")
    return named[precision]
