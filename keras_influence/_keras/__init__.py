"""The seams with Keras: every use of a non-public name stands in this room."""

from keras.src.backend import Variable
from keras.src.models.functional import Functional
from keras.src.models.model import functional_init_arguments
from keras.src.trainers.data_adapters import get_data_adapter

from keras_influence._keras.held import leave_out_changing, values_of
from keras_influence._keras.layers import (
    adds_losses,
    holding,
    holding_rows,
    inputs_of,
    layers_of,
    leaves_of,
    losses_added_by,
)
from keras_influence._keras.live import call_model, frozen_variables, lock, standing_at
from keras_influence._keras.losses import (
    LossCall,
    added_losses,
    build_compiled_loss,
    calls_as_keras_does,
    calls_of_compiled_loss,
    compute_loss,
    has_compiled_loss,
    has_default_loss,
    has_losses_of_keras,
    has_regularisers,
    loss_state,
    loss_values,
    only_uses_losses,
    options_of,
    regularisers,
    takes_logits,
    twin_of,
    uses_loss,
    weighted_values,
)
from keras_influence._keras.parts import empty, has_parts, parts_of, put_together
from keras_influence._keras.randomness import global_generators_kept
from keras_influence._keras.tensors import (
    carried_by,
    carry,
    logits_of,
    mask_of,
    set_logits,
    set_mask,
)
from keras_influence._keras.training import (
    averages_of,
    class_with_train_step,
    learning_rate_of,
    loss_in_training,
    schedule_of,
    stateless,
)

__all__ = [
    "Functional",
    "LossCall",
    "Variable",
    "added_losses",
    "adds_losses",
    "averages_of",
    "build_compiled_loss",
    "class_with_train_step",
    "call_model",
    "calls_as_keras_does",
    "calls_of_compiled_loss",
    "carried_by",
    "carry",
    "compute_loss",
    "empty",
    "frozen_variables",
    "functional_init_arguments",
    "get_data_adapter",
    "global_generators_kept",
    "has_compiled_loss",
    "has_default_loss",
    "has_losses_of_keras",
    "has_parts",
    "has_regularisers",
    "holding",
    "holding_rows",
    "inputs_of",
    "layers_of",
    "learning_rate_of",
    "leave_out_changing",
    "leaves_of",
    "lock",
    "logits_of",
    "loss_in_training",
    "loss_state",
    "loss_values",
    "losses_added_by",
    "mask_of",
    "only_uses_losses",
    "options_of",
    "parts_of",
    "put_together",
    "regularisers",
    "schedule_of",
    "set_logits",
    "set_mask",
    "standing_at",
    "stateless",
    "takes_logits",
    "twin_of",
    "uses_loss",
    "values_of",
    "weighted_values",
]
