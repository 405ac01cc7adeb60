"""One step of training as a compiled function of its state, and its derivative backwards.

    s(t+1) = step(s(t), ω(t))          s: weights, moving statistics, the optimizer's variables
    a(t)   = a(t+1) ∂step/∂s           for each row of cotangents a
    d(t)   = a(t+1) ∂step/∂ω           ω: one more weight for each example of the step's batch

The step is Keras's own: the model at training=True, `compute_loss`, the optimizer. What has no
derivative (seeds, counters) and what others set (the learning rate) is `given` beside the state.
"""

import keras
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.kernels import primitives
from keras_influence.engine.kernels.loops import NOT_VECTORISED, over_vectors, prefers_loop
from keras_influence.engine.kernels.missing import nodes_of, not_differentiable
from keras_influence.engine.parameters import Parameters


class TrainingStep:
    """The step that `model.fit` repeats, compiled as `fit` compiles it.

    Nothing of the model changes: variables are read, never assigned.

    Args:
        model: a built and compiled model whose optimizer is built.

    Attributes:
        state: the variables that make up s, as `Parameters`: trainable ones come first.
        weights: how many numbers of s are the model's own; the optimizer's come after them.
        given: the variables beside it.
    """

    def __init__(self, model):
        self._model = model
        self._optimizer = _keras.stateless(model.optimizer)
        self._count = len(model.trainable_variables)
        own = [*model.trainable_variables, *_kept_variables(model)]
        rate = _keras.learning_rate_of(model.optimizer)
        self.state = Parameters([v for v in (*own, *model.optimizer.variables) if _smooth(v, rate)])
        self.weights = Parameters(v for v in own if _smooth(v, rate)).size
        self.given = [v for v in (*own, *model.optimizer.variables) if not _smooth(v, rate)]
        self._loop = prefers_loop(model)
        self._compiled = {}

    def now(self):
        """The state as it is, (s,)."""
        return self.state.flatten(self.state.tensors()).numpy()

    def given_now(self):
        """The values beside it as they are, a list of arrays."""
        return [v.numpy() for v in self.given]

    def run(self, state, given, batch, omega):
        """The state and what is given after a step with weights ω, as tensors."""
        return self._call("run", state, given, batch, omega)

    def back(self, state, given, batch, cotangents):
        """A step with all ω = 1, and what it does to (k, s) cotangents of the state after it.

        Returns:
            `(state after, (k, s) cotangents of the state before, (k, b) of ω)`, tensors.

        Raises:
            NotDifferentiableError: TensorFlow lacks a derivative.
        """
        kind = "one" if len(cotangents) == 1 else "many"
        try:
            return self._call(kind, state, given, batch, cotangents)
        except NOT_VECTORISED:
            if self._loop or kind == "one":
                raise
        self._loop = True
        try:
            return self._call(kind, state, given, batch, cotangents)
        except Exception:
            self._loop = False  # It was not that.
            raise

    # ---- compiled

    def _call(self, kind, state, given, batch, vectors):
        flat = tf.nest.flatten(batch)
        shapes = tuple(tuple(t.shape[1:]) for t in flat)
        key = (kind, self._loop, shapes, repr(tf.nest.map_structure(lambda _: 0, batch)))
        if key not in self._compiled:
            self._compiled[key] = self._compile(kind, batch)
        dtype = self.state.dtype
        vectors = tf.cast(vectors, dtype)
        given = [tf.cast(g, v.dtype) for g, v in zip(given, self.given)]
        return self._compiled[key](tf.cast(state, dtype), given, flat, vectors)

    def _compile(self, kind, batch):
        function = self._run if kind == "run" else self._back
        vectors = {"run": [None], "one": [1, self.state.size], "many": [None, self.state.size]}
        flat = tf.nest.flatten(batch)
        skeleton = tf.nest.map_structure(lambda _: 0, batch)

        def trace(state, given, flat, vectors):
            with primitives.replaced():
                return function(state, given, tf.nest.pack_sequence_as(skeleton, flat), vectors)

        try:
            with _keras.lock:
                return tf.function(
                    trace, autograph=False, jit_compile=bool(self._model.jit_compile)
                ).get_concrete_function(
                    tf.TensorSpec([self.state.size], self.state.dtype),
                    [tf.TensorSpec(v.shape, v.dtype) for v in self.given],
                    [tf.TensorSpec([None, *t.shape[1:]], t.dtype) for t in flat],
                    tf.TensorSpec(vectors[kind], self.state.dtype),
                )
        except LookupError as error:
            raise not_differentiable(error) from error

    def _run(self, state, given, batch, omega):
        values = self.state.cut(state)
        mapping = [*zip(self.state.variables, values), *zip(self.given, given)]
        x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
        model, theta = self._model, values[: self._count]
        with _keras.standing_at(model, mapping) as scope:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(theta)
                loss = _keras.loss_in_training(model, x, y, _weighted(weight, omega))
                loss = self._optimizer.scale_loss(loss)
            # Rows of embeddings stay `IndexedSlices`: where one comes twice, Keras's optimizers
            # square each part, not the sum.
            gradients = tape.gradient(loss, theta)
            self._optimizer.apply(gradients, model.trainable_variables)
            after = self.state.flatten([scope.get_current_value(v) for v in self.state.variables])
            return after, [scope.get_current_value(v) for v in self.given]

    def _back(self, state, given, batch, cotangents):
        omega = tf.ones([tf.shape(tf.nest.flatten(batch)[0])[0]], self.state.dtype)
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch([state, omega])
            after, _ = self._run(state, given, batch, omega)

        def pulled(cotangent):
            parts = tape.gradient(
                after, [state, omega], cotangent, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            return tf.concat(parts, 0)

        loop = self._loop or _branches(tf.compat.v1.get_default_graph())
        rows = over_vectors(pulled, cotangents, loop)
        return after, rows[:, : self.state.size], rows[:, self.state.size :]


def _branches(graph):
    """Whether there is control flow in it, on which a vectorised map founders loudly."""
    kinds = {node.op.removeprefix("Stateless") for node in nodes_of(graph)}
    return not kinds.isdisjoint({"If", "While"})


def _smooth(variable, rate):
    return tf.as_dtype(variable.dtype).is_floating and variable is not rate


def _kept_variables(model):
    """What layers keep beside their trainable weights and change while training."""
    without = {id(v) for v in (*model.metrics_variables, *model.trainable_variables)}
    frozen = {id(v) for v in _keras.frozen_variables(model)}
    for v in model.non_trainable_variables:
        # A frozen layer's weights stay as they are, and may be many; its seeds do not.
        if id(v) not in without and not (id(v) in frozen and tf.as_dtype(v.dtype).is_floating):
            yield v


def _weighted(weight, omega):
    """Sample weights times ω."""
    if weight is None:
        return tf.cast(omega, keras.config.floatx())

    def times(w):
        shape = tf.concat([tf.shape(omega), tf.ones([w.shape.rank - 1], tf.int32)], 0)
        return w * tf.cast(tf.reshape(omega, shape), w.dtype)

    return tf.nest.map_structure(times, weight)
