"""One step of Keras's training as a function of its state.

On TensorFlow Keras's optimizers write to `tf.Variable`s, so `stateless_apply` is refused there.
Their arithmetic is in methods that all backends share; a twin of an optimizer takes those.
"""

import contextlib
import functools
import threading

import keras
import tensorflow as tf
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.backend.tensorflow.optimizer import TFOptimizer
from keras.src.losses import loss as loss_module
from keras.src.optimizers.base_optimizer import BaseOptimizer

from keras_influence._keras.losses import twin_of


def loss_in_training(model, x, y, sample_weight):
    """The loss of a batch as `fit` computes it, a scalar."""
    options = {"training": True} if model._call_has_training_arg else {}
    y_pred = model(x, **options)
    with _weights_by_example():
        return model._compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
        )


def class_with_train_step(model):
    """The name of the class of the user's that gives a model its `train_step`; "" where it is Keras's."""
    giver = next(cls for cls in type(model).__mro__ if "train_step" in vars(cls))
    return "" if giver.train_step is keras.Model.train_step else giver.__name__


@contextlib.contextmanager
def _weights_by_example():
    """One weight for each example is for all steps of a sequence; Keras wants them as (b, 1)."""
    original, owner = loss_module.squeeze_or_expand_to_same_rank, threading.get_ident()

    def fitted(x1, x2, expand_rank_1=True):
        if threading.get_ident() == owner and len(x1.shape) > len(x2.shape) == 1:
            x2 = tf.reshape(x2, [-1] + [1] * (len(x1.shape) - 1))
        return original(x1, x2, expand_rank_1)

    loss_module.squeeze_or_expand_to_same_rank = fitted
    try:
        yield
    finally:
        loss_module.squeeze_or_expand_to_same_rank = original


def learning_rate_of(optimizer):
    """The variable that holds the learning rate, or None where a schedule gives it."""
    rate = optimizer._learning_rate
    return rate if isinstance(rate, keras.Variable) else None


def schedule_of(optimizer):
    """The schedule of the learning rate, or None."""
    rate = optimizer._learning_rate
    return rate if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else None


def averages_of(optimizer):
    """The moving averages of the weights that `fit` ends with, in their order; None without."""
    if not optimizer.use_ema:
        return None
    return list(zip(optimizer._trainable_variables, optimizer._model_variables_moving_average))


def stateless(optimizer):
    """A twin of a built optimizer for use in a `StatelessScope`; it shares all variables.

    `twin.apply(gradients, variables)` writes to the scope what the optimizer would to variables.
    """
    twin = twin_of(optimizer)
    keys = {id(v): optimizer._var_key(v) for v in optimizer._trainable_variables}
    twin.__class__ = _stateless_class(type(optimizer))
    vars(twin)["_keys"] = keys
    return twin


@functools.cache
def _stateless_class(cls):
    # Among the bases it comes after the optimizer's own classes, and before TensorFlow's.
    return type(cls.__name__, (cls, _Stateless), {})


class _Stateless(TFOptimizer):
    """Methods that all backends share in place of those that are about `tf.Variable`s."""

    assign = BaseOptimizer.assign
    assign_add = BaseOptimizer.assign_add
    assign_sub = BaseOptimizer.assign_sub
    _apply_weight_decay = BaseOptimizer._apply_weight_decay
    _backend_update_step = BaseOptimizer._backend_update_step
    _backend_increment_gradient_accumulators = (
        BaseOptimizer._backend_increment_gradient_accumulators
    )
    _overwrite_model_variables_with_average_value = (
        BaseOptimizer._overwrite_model_variables_with_average_value
    )

    def _var_key(self, variable):
        return self._keys[id(variable)]

    def _backend_apply_gradients(self, grads, trainable_variables):
        """As Keras's, whose conditions keep what they assign to themselves."""
        steps = self.gradient_accumulation_steps
        if steps:
            sums = [
                self._accumulated_gradients[self._get_variable_index(v)]
                for v in trainable_variables
            ]
            _either(
                (self._iterations + 1) % steps == 0,
                lambda: self._update_by_mean(grads, sums, trainable_variables),
                lambda: self._backend_increment_gradient_accumulators(grads, sums),
            )
        else:
            self._update(grads, trainable_variables)
        if self.use_ema:
            self._update_model_variables_moving_average(self._trainable_variables)
        if self.use_ema and self.ema_overwrite_frequency:
            _either(
                (self.iterations + 1) % self.ema_overwrite_frequency == 0,
                lambda: self._overwrite_model_variables_with_average_value(
                    self._trainable_variables
                ),
                lambda: None,
            )

    def _update_by_mean(self, grads, sums, trainable_variables):
        steps = self.gradient_accumulation_steps
        self._update([(g + s) / steps for g, s in zip(grads, sums)], trainable_variables)
        self._backend_reset_gradient_accumulators()

    def _update(self, grads, trainable_variables):
        grads = self._clip_gradients(grads)
        self._apply_weight_decay(trainable_variables)
        self._backend_update_step(grads, trainable_variables, self.learning_rate)


def decays(optimizer, variable):
    """Whether an optimizer that has a decay of weights lets this one decay."""
    return bool(optimizer._use_weight_decay(variable))


def _either(condition, yes, no):
    """Do both, and let the scope keep what the one of them assigned that was to be done."""
    values = get_stateless_scope().state_mapping
    before = dict(values)
    yes()
    done = dict(values)
    values.clear()
    values.update(before)
    no()
    for key in {*done, *values}:
        if done[key] is not values[key]:
            values[key] = tf.where(condition, done[key], values[key])
