"""The objective L(θ, ω; batch) of a compiled model, and its derivatives as batch kernels.

This is the only file with gradient tapes. Everything is a derivative of

    L(θ, ω; batch) = compute_loss(x, y, model(x, training=False), sample_weight = ω · w)

where w are the user's sample weights and ω, all ones, is one extra weight per
example. L is linear in ω, so ∂L/∂ωᵢ is what example i adds to the loss of its
batch, for any loss, number of outputs or regulariser, without a look inside.
"""

import functools
import weakref

import keras
import tensorflow as tf

from keras_influence import _keras
from keras_influence.parameters import Parameters
from keras_influence.vectorize import over_vectors, prefers_loop


def _kernel(function):
    """Compile `function(self, batch, *vectors)` once for each structure of batch."""

    @functools.wraps(function)
    def run(self, batch, *vectors):
        flat = tf.nest.flatten(batch)
        many = bool(vectors) and vectors[0].shape[0] > 1
        key = (function.__name__, many, self._structure(batch, flat))
        if key not in self._kernels or not self._kernels[key].accepts(flat):
            known = self._kernels[key].specs if key in self._kernels else [None] * len(flat)
            self._kernels[key] = _Kernel(self, function, batch, flat, known, many)
        return self._kernels[key](flat, *vectors)

    return run


class _Kernel:
    """A compiled kernel for batches of any size; other axes relax only when seen to vary."""

    def __init__(self, objective, function, batch, flat, known, many):
        self.specs = [_relaxed(tensor, spec) for tensor, spec in zip(flat, known)]
        structure = tf.nest.map_structure(lambda _: None, batch)
        vector_spec = tf.TensorSpec([None if many else 1, objective.parameters.size],
                                    objective.parameters.dtype)  # fmt: skip

        def trace(flat, *vectors):
            with _keras.exact_moments():
                return function(objective, tf.nest.pack_sequence_as(structure, flat), *vectors)

        count = function.__code__.co_argcount - 2
        signature = [self.specs, *[vector_spec] * count]
        self._compiled = tf.function(trace, autograph=False).get_concrete_function(*signature)

    def accepts(self, flat):
        return all(s.shape.is_compatible_with(t.shape) for s, t in zip(self.specs, flat))

    def __call__(self, flat, *vectors):
        return self._compiled(flat, *[tf.convert_to_tensor(v) for v in vectors])


def _relaxed(tensor, known):
    shape = [None, *tensor.shape[1:]]
    if known is not None:
        shape = [a if a == b else None for a, b in zip(shape, known.shape)]
    return tf.TensorSpec(shape, tensor.dtype)


class Objective:
    """The compiled loss of one model as a function of its parameters, batch by batch.

    All results are sums over the batch, so that adding them up over batches and
    dividing by n gives the full-data quantity whatever the batch sizes are.
    Nothing of the model changes: variables are read, never assigned.

    Args:
        model: a built and compiled Keras model. Held weakly.
        variables: the variables that make up θ.
    """

    def __init__(self, model, variables):
        self._model = weakref.ref(model)
        self.parameters = Parameters(variables)
        self._loop = prefers_loop(model)
        self._kernels = {}

    def _structure(self, batch, flat):
        skeleton = tf.nest.map_structure(lambda _: 0, batch)
        return (repr(skeleton), tuple((t.dtype, t.shape.rank) for t in flat))

    # ---- the one scalar

    def _loss(self, theta, omega, batch):
        """L as a scalar tensor, and the model output it came from."""
        model = self._model()
        x, y, w = keras.utils.unpack_x_y_sample_weight(batch)
        with self._at(theta):
            y_pred = _keras.call_model(model, x)
            weight = _times_omega(omega, w, y_pred, _keras.has_default_loss(model))
            loss = _keras.compute_loss(model, x, y, y_pred, weight)
        return tf.cast(loss, self.parameters.dtype), y_pred

    def _regulariser(self, theta, batch):
        """R(θ): what the loss still is when every example has weight zero."""
        model = self._model()
        x, y, w = keras.utils.unpack_x_y_sample_weight(batch)
        with self._at(theta):
            y_pred = tf.nest.map_structure(tf.stop_gradient, _keras.call_model(model, x))
            weight = _times_omega(0 * self._ones(batch), w, y_pred, _keras.has_default_loss(model))
            loss = _keras.compute_loss(model, x, y, y_pred, weight)
        return tf.cast(loss, self.parameters.dtype)

    def _at(self, theta):
        """The model with the values `theta`, and no variable assigned while it runs."""
        values = {id(v): value for v, value in zip(self.parameters.variables, theta)}
        mapping = [(v, values.get(id(v), v.value)) for v in self._model().trainable_variables]
        return keras.StatelessScope(mapping, collect_losses=True)

    def _ones(self, batch):
        return tf.ones([_batch_size(batch)], self.parameters.dtype)

    def _size(self, batch):
        return tf.cast(_batch_size(batch), self.parameters.dtype)

    # ---- kernels: first derivatives

    @_kernel
    def losses(self, batch):
        """Loss of each example, (b,): b · ∂L/∂ω."""
        return self._example_losses(batch)

    def eager_losses(self, batch):
        """As `losses`, without compiling; None if the loss does not depend on ω."""
        losses = self._example_losses(batch)
        return None if losses is None else losses.numpy()

    def _example_losses(self, batch):
        omega = self._ones(batch)
        theta = self.parameters.tensors()
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(omega)
            loss, _ = self._loss(theta, omega, batch)
        gradient = tape.gradient(loss, omega)
        return None if gradient is None else self._size(batch) * gradient

    @_kernel
    def gradient(self, batch):
        """b · ∂L/∂θ, (p,)."""
        theta = self.parameters.tensors()
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(theta)
            loss, _ = self._loss(theta, self._ones(batch), batch)
        return self._size(batch) * self.parameters.flatten(tape.gradient(loss, theta))

    @_kernel
    def example_gradients(self, batch):
        """∇ℓ(z) of each example by itself, (b, p), without the regulariser."""

        def gradient_of(index):
            one = tf.nest.map_structure(lambda t: t[index : index + 1], batch)
            theta = self.parameters.tensors()
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(theta)
                loss = self._loss(theta, self._ones(one), one)[0] - self._regulariser(theta, one)
            return self.parameters.flatten(tape.gradient(loss, theta))

        return tf.map_fn(
            gradient_of, tf.range(_batch_size(batch)), fn_output_signature=self.parameters.dtype
        )

    # ---- kernels: second derivatives, for each row of a (k, p) matrix

    @_kernel
    def hvp(self, batch, vectors):
        """b · (∂²L/∂θ²) v for each row v, (k, p)."""
        product = self._second_derivative(lambda theta: self._loss(theta, self._ones(batch), batch)[0])
        return self._size(batch) * over_vectors(product, vectors, self._loop)

    @_kernel
    def gauss_newton(self, batch, vectors):
        """b · (Jᵀ (∂²L/∂z²) J + ∂²R/∂θ²) v for each row v, (k, p), with z of `_outputs`."""
        curvature = self._output_curvature(batch)
        regulariser = self._second_derivative(lambda theta: self._regulariser(theta, batch))

        def product(v):
            return curvature(v) + regulariser(v)

        return self._size(batch) * over_vectors(product, vectors, self._loop)

    def _second_derivative(self, scalar):
        """v ↦ (∂²scalar/∂θ²) v, by reverse over reverse."""
        theta = self.parameters.tensors()
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
            outer.watch(theta)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(theta)
                value = scalar(theta)
            gradient = self.parameters.flatten(inner.gradient(value, theta))

        def product(v):
            return self.parameters.flatten(outer.gradient(gradient, theta, output_gradients=v))

        return product

    def _output_curvature(self, batch):
        """v ↦ Jᵀ (∂²L/∂z²) J v, with J = ∂z/∂θ; no second derivative of the network."""
        theta = self.parameters.tensors()
        flatten = self.parameters.flatten
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
            outer.watch(theta)
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as inner:
                inner.watch(theta)
                loss, y_pred = self._loss(theta, self._ones(batch), batch)
            z = _outputs(inner, loss, y_pred)
            slope = inner.gradient(loss, z)
        # J v is the derivative of the linear map u ↦ Jᵀu, paired with v.
        with tf.GradientTape(persistent=True) as dual:
            u = [tf.zeros_like(t) for t in z]
            dual.watch(u)
            pulled = flatten(inner.gradient(z, theta, output_gradients=u))

        def product(v):
            pushed = _filled(dual.gradient(pulled, u, output_gradients=v), u)
            bent = _filled(outer.gradient(slope, z, output_gradients=pushed), z)
            return flatten(inner.gradient(z, theta, output_gradients=bent))

        return product

    @_kernel
    def scores(self, batch, vectors):
        """∇ℓ(zᵢ)ᵀ s for each example i and each row s, (b, k): b · ∂/∂ω ⟨∂L/∂θ, s⟩."""
        theta = self.parameters.tensors()
        omega = self._ones(batch)
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
            outer.watch(omega)
            gradient = self._flat_gradient(batch, omega, theta)

        def product(s):
            return outer.gradient(gradient, omega, output_gradients=s)

        return self._size(batch) * tf.transpose(over_vectors(product, vectors, self._loop))

    def _flat_gradient(self, batch, omega, theta):
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(theta)
            loss, _ = self._loss(theta, omega, batch)
        return self.parameters.flatten(inner.gradient(loss, theta))


def _batch_size(batch):
    return tf.shape(tf.nest.flatten(batch)[0])[0]


def _outputs(tape, loss, y_pred):
    """The tensors z at which the loss is curved: outputs, or logits where Keras takes those.

    Keras's cross-entropies step back from a softmax or sigmoid output to its
    logits; the output itself then has no gradient. At the logits the loss is
    convex, and the Gauss-Newton matrix of a generalised linear model is its Hessian.
    """
    z = []
    for output in tf.nest.flatten(y_pred):
        for candidate in (output, getattr(output, "_keras_logits", None)):
            if candidate is not None and tape.gradient(loss, candidate) is not None:
                z.append(candidate)
                break
    return z


def _filled(gradients, like):
    return [tf.zeros_like(t) if g is None else g for g, t in zip(gradients, like)]


def _times_omega(omega, w, y_pred, default_loss):
    """ω times the user's sample weights, shaped so that Keras broadcasts it per example."""
    if w is not None:
        return tf.nest.map_structure(lambda t: t * _expanded(omega, t.shape.rank, t.dtype), w)
    if not default_loss:
        return omega
    # A loss drops the last axis of the output; Keras does not broadcast (b,) over (b, t).
    return tf.nest.map_structure(lambda t: _expanded(omega, t.shape.rank - 1, omega.dtype), y_pred)


def _expanded(omega, rank, dtype):
    return tf.cast(tf.reshape(omega, [-1] + [1] * (rank - 1)), dtype)
