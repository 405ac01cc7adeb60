"""The derivatives of the compiled loss, as batch kernels.

With `capture`, which looks at single layers, the only place with gradient tapes.
"""

import keras
import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.kernels.kernel import kernel, over_vectors, prefers_loop
from keras_influence.engine.loss.compiled import CompiledLoss, rows_of


class Objective(CompiledLoss):
    """The compiled loss of one model with its derivatives, batch by batch.

    Kernels return sums over the batch: added up over batches and divided by n they
    give the quantity of all n examples as one batch, whatever the batch sizes are.
    Their argument `weight` multiplies every ω; see `CompiledLoss.weight_in`.

    Args:
        model: a built and compiled Keras model. Held weakly.
        variables: the variables that make up θ.
        smooth: let the smooth versions of the hinge losses stand in for them.
    """

    def __init__(self, model, variables, smooth=False):
        super().__init__(model, variables, smooth)
        self.kernels = {}
        self.contraction = None
        self.checked = {}
        self._target = None
        self._loop = prefers_loop(model)

    # ---- first derivatives

    @kernel
    def losses(self, batch, weight):
        """Loss of each example, (b,): b · ∂L/∂ω; of length 0 if the loss ignores ω."""
        omega = self._omega(batch, weight)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(omega)
            loss, _ = self._loss(self.parameters.tensors(), omega, batch)
        gradient = tape.gradient(loss, omega)
        return tf.zeros([0]) if gradient is None else self._size(batch) * gradient

    @kernel
    def gradient(self, batch, weight):
        """b · ∂L/∂θ, (p,)."""
        theta = self.parameters.tensors()
        return self._size(batch) * self._flat_gradient(theta, self._omega(batch, weight), batch)

    @kernel
    def value_and_gradient(self, batch, weight):
        """b · L and b · ∂L/∂θ as one vector, (1 + p,)."""
        theta = self.parameters.tensors()
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(theta)
            loss, _ = self._loss(theta, self._omega(batch, weight), batch)
        gradient = self.parameters.flatten(tape.gradient(loss, theta))
        return self._size(batch) * tf.concat([loss[None], gradient], 0)

    @kernel
    def example_gradients(self, batch, weight):
        """∇ℓ(z) of each example by itself, (b, p), without the regulariser."""

        def loss_of(theta, one):
            return self._loss(theta, self._omega(one), one)[0] - self._regulariser(theta, one)

        return weight * self._one_by_one(loss_of, batch)

    def target_gradients(self, batch, target):
        """∇t(x, y, y_pred) of each example by itself, (b, p), for a user's function t."""
        if self._target is not target:
            self._target = target
            self.kernels = {k: v for k, v in self.kernels.items() if k[0] != "_target_gradients"}
        return self._target_gradients(batch)

    @kernel
    def _target_gradients(self, batch, weight):
        def value_of(theta, one):
            x, y, _ = keras.utils.unpack_x_y_sample_weight(one)
            with self._at(theta):
                value = self._target(x, y, _keras.call_model(self._model(), x))
            return tf.cast(value, self.parameters.dtype)

        return weight * self._one_by_one(value_of, batch)

    def eager_targets(self, batch, target):
        """t(x, y, y_pred) of a batch, as `target` returns it."""
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        with self._at(self.parameters.tensors()):
            return target(x, y, _keras.call_model(self._model(), x))

    def _one_by_one(self, scalar, batch):
        """∂scalar/∂θ for each example as a batch of one, (b, p)."""

        def gradient_of(index):
            one = tf.nest.map_structure(lambda t: t[index : index + 1], batch)
            theta = self.parameters.tensors()
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(theta)
                value = scalar(theta, one)
            return self.parameters.flatten(tape.gradient(value, theta))

        rows = tf.range(rows_of(batch))
        return tf.map_fn(gradient_of, rows, fn_output_signature=self.parameters.dtype)

    def _flat_gradient(self, theta, omega, batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(theta)
            loss, _ = self._loss(theta, omega, batch)
        return self.parameters.flatten(tape.gradient(loss, theta))

    # ---- second derivatives, for each row of a (k, p) matrix

    @kernel
    def hvp(self, batch, weight, vectors):
        """b · (∂²L/∂θ²) v for each row v, (k, p)."""
        omega = self._omega(batch, weight)
        product = self._second_derivative(lambda theta: self._loss(theta, omega, batch)[0])
        return self._size(batch) * over_vectors(product, vectors, self._loop)

    @kernel
    def gauss_newton(self, batch, weight, vectors):
        """b · (Jᵀ (∂²L/∂z²) J + ∂²R/∂θ²) v for each row v, (k, p), with z of `curved_outputs`."""
        curvature = self._output_curvature(batch, weight)
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

    def _output_curvature(self, batch, weight):
        """v ↦ Jᵀ (∂²L/∂z²) J v, with J = ∂z/∂θ; no second derivative of the network."""
        theta = self.parameters.tensors()
        flatten = self.parameters.flatten
        inner, outer, z, slope = self._slope(theta, self._omega(batch, weight), batch)
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

    def _slope(self, theta, omega, batch):
        """The outputs z, ∂L/∂z, and the tapes that recorded z(θ) and ∂L/∂z as functions."""
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
            outer.watch(theta)
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as inner:
                inner.watch(theta)
                loss, y_pred = self._loss(theta, omega, batch)
            z = curved_outputs(inner, loss, y_pred)
            slope = inner.gradient(loss, z)
        return inner, outer, z, slope

    def eager_output_curvatures(self, batch, directions=8):
        """tᵀ (∂²ℓ/∂z²) t for a few random directions t of the outputs z."""
        _, outer, z, slope = self._slope(self.parameters.tensors(), self._omega(batch), batch)
        rng = np.random.default_rng(0)
        found = []
        for _ in range(directions):
            t = [tf.constant(rng.standard_normal(a.shape), a.dtype) for a in z]
            bent = _filled(outer.gradient(slope, z, output_gradients=t), z)
            found.append(sum(float(tf.reduce_sum(a * b)) for a, b in zip(t, bent)))
        return np.array(found)

    @kernel
    def scores(self, batch, weight, vectors):
        """∇ℓ(zᵢ)ᵀ s for each example i and each row s, (b, k): b · ∂/∂ω ⟨∂L/∂θ, s⟩."""
        theta = self.parameters.tensors()
        omega = self._omega(batch)
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
            outer.watch(omega)
            gradient = self._flat_gradient(theta, weight * omega, batch)

        def product(s):
            return outer.gradient(gradient, omega, output_gradients=s)

        return self._size(batch) * tf.transpose(over_vectors(product, vectors, self._loop))

    @kernel
    def input_gradients(self, batch, weight, vectors):
        """∂/∂x of `scores`, a list of (k, b, ...) for the floating inputs in flat order."""
        theta = self.parameters.tensors()
        x, *rest = batch
        inputs = [t for t in tf.nest.flatten(x) if t.dtype.is_floating]
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
            outer.watch(inputs)
            omega = self._omega(batch)
            full = self._flat_gradient(theta, weight * omega, (x, *rest))
            # An activity regulariser depends on x, but is no part of an example's loss.
            gradient = full - self._flat_gradient(theta, 0 * omega, (x, *rest))

        def product(s):
            slopes = outer.gradient(gradient, inputs, output_gradients=s)
            return tf.concat(
                [tf.reshape(t, [rows_of(batch), -1]) for t in _filled(slopes, inputs)], 1
            )

        return self._size(batch) * over_vectors(product, vectors, self._loop)


def curved_outputs(tape, loss, y_pred):
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
