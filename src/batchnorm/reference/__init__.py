"""Batch normalization in NumPy and float64: the readable truth that tests compare with and the docs quote.

It imports neither torch nor anything else of this library. Every line of arithmetic carries the shape of what
it gives, and the equation it implements.
"""

from .activation import ACTIVATIONS, Activation
from .evaluation import backward_evaluation, forward_evaluation, scale_and_shift
from .families import (
    batch_norm_axes,
    group_norm_axes,
    instance_norm_axes,
    layer_norm_axes,
    standardize_over,
)
from .ghost import GhostSaved, ghost_backward, ghost_batches, ghost_forward, ghost_update_running
from .moments import Moments, empty_moments, merge, moments, pooled_moments, welford_update
from .population import average_of_batches, law_of_total_variance, variance_between_means
from .renorm import RenormSaved, renorm_backward, renorm_corrections, renorm_forward
from .running import (
    batch_weights,
    cumulative_momentum,
    keras_update,
    momentum_from_keras,
    momentum_to_keras,
    update_running,
)
from .standardize import scale_to_unit_interval, standardize, unstandardize
from .transform import (
    Gradients,
    Saved,
    backward,
    backward_by_chain_rule,
    forward,
    gradient_sums,
    identity_parameters,
)

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "GhostSaved",
    "Gradients",
    "Moments",
    "RenormSaved",
    "Saved",
    "average_of_batches",
    "backward",
    "backward_by_chain_rule",
    "backward_evaluation",
    "batch_norm_axes",
    "batch_weights",
    "cumulative_momentum",
    "empty_moments",
    "forward",
    "forward_evaluation",
    "ghost_backward",
    "ghost_batches",
    "ghost_forward",
    "ghost_update_running",
    "gradient_sums",
    "group_norm_axes",
    "identity_parameters",
    "instance_norm_axes",
    "keras_update",
    "law_of_total_variance",
    "layer_norm_axes",
    "merge",
    "moments",
    "momentum_from_keras",
    "momentum_to_keras",
    "pooled_moments",
    "renorm_backward",
    "renorm_corrections",
    "renorm_forward",
    "scale_and_shift",
    "scale_to_unit_interval",
    "standardize",
    "standardize_over",
    "unstandardize",
    "update_running",
    "variance_between_means",
    "welford_update",
]
