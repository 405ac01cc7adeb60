"""The derivatives of the compiled loss, as batch kernels."""

import numpy as np
import tensorflow as tf

from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.kernels.curved import curvature_at_outputs
from keras_influence.engine.kernels.kernel import Kernels, kernel
from keras_influence.engine.kernels.loops import (
    LOOPS,
    RECURRENT,
    over_vectors,
    prefers_loop,
    work_alone,
)
from keras_influence.engine.kernels.outputs import filled
from keras_influence.engine.kernels.unrecorded import Unrecorded
from keras_influence.engine.loss.compiled import CompiledLoss, Weighting
from keras_influence.engine.loss.terms import rows_of


class Objective(CompiledLoss):
    """The compiled loss of one model with its derivatives, batch by batch.

    Kernels return sums over the batch: added up over batches and divided by n they give the
    quantity of all n examples as one batch, whatever the batch sizes are. Their argument
    `weight` is a `Weighting`, which belongs to a data set and a quantity: see `facts.Facts`.
    Nothing of the data is kept here.

    Args:
        model: a built and compiled Keras model. Held weakly.
        variables: the variables that make up θ.
        reading, added: see `CompiledLoss`.

    Attributes:
        looked_at: on which examples and weights the user's own code was looked at last, with differences and without.
    """

    def __init__(self, model, variables, reading=None, added="mixed"):
        super().__init__(model, variables, reading, added)
        self.kernels = Kernels(Weighting, prefers_loop(model))
        self._loops = work_alone(model) == RECURRENT
        # In another process, the model, which nobody else holds there; see `journey`.
        self.held = None
        self._made, self.looked_at = {}, {}

    # ---- what others make of it

    def made(self, kind):
        """`kind(self)`, made once: what it has traced serves all who ask for it."""
        if kind not in self._made:
            self._made[kind] = kind(self)
        return self._made[kind]

    def has_made(self, kind):
        """Whether it has been asked for."""
        return kind in self._made

    def forget(self):
        """Trace everything anew when it is next asked for, and what others have made of this too."""
        self.kernels.forget()
        self._made, self.looked_at = {}, {}

    def variables_read(self):
        """The variables that the loss reads besides the model's, once it has been computed."""
        own = {id(v.value) for v in self.model().variables}
        read = self.kernels.variables(type(self).value_and_gradient)
        return [v for v in read if id(v) not in own]

    # ---- first derivatives

    @kernel()
    def losses(self, batch, weight):
        """Σ_k s_ik e_ik of each example, (b,), and what layers add for it."""
        if self.adds_by_example:
            theta = self.parameters.tensors()
            return self._of_each(lambda i: self.alone(theta, batch, i, weight), batch)
        omega = self.ones(batch)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(omega)
            total = self.examples(self.parameters.tensors(), omega, batch, weight)
        return filled([tape.gradient(total, omega)], [omega])[0]

    @kernel()
    def counts(self, batch, weight):
        """(terms, 3) what each term's divisor is made of; see `terms.Term`."""
        with self.at(self.parameters.tensors()):
            model, batch, y_pred = self.called(batch)
            terms = self.reading.terms(model, batch, y_pred)
        return tf.stack([tf.cast(term.counts, self.parameters.dtype) for term in terms])

    @kernel("omega", "vector")
    def value_and_gradient(self, batch, weight, omega, shift):
        """The batch's part of n L and its gradient as one vector, (1 + p,).

        With weights ω of the examples, at θ + shift: for everything that is compared.
        """
        value, gradient = self._gradient(self.parameters.shifted(shift), omega, batch, weight)
        return tf.concat([value[None], gradient], 0)

    def at_ones(self, batch, weight, shift=None):
        """The batch's part of n L, a float, and its gradient, (p,) float64, with all ω one, at θ + shift."""
        shift = tf.zeros([self.parameters.size], self.parameters.dtype) if shift is None else shift
        about = batch, weight, np.ones(size_of(batch)), shift
        found = self.value_and_gradient(*about).numpy().astype(np.float64)
        return float(found[0]), found[1:]

    @kernel()
    def example_gradients(self, batch, weight):
        """∇ of each example by itself, (b, p), without the regulariser."""
        return self._of_each(lambda i: self._alone(batch, i, weight), batch)

    def _of_each(self, function, batch):
        """`function(i)` of each example i of the batch, one after another, stacked."""
        rows = tf.range(rows_of(batch))
        return tf.map_fn(function, rows, fn_output_signature=self.parameters.dtype)

    def _alone(self, batch, i, weight):
        """∇ of example i by itself, (p,)."""
        theta = self.parameters.tensors()
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(theta)
            value = self.alone(theta, batch, i, weight)
        return self.parameters.flatten(tape.gradient(value, theta))

    def _gradient(self, theta, omega, batch, weight):
        with self.recorded(persistent=False) as tape:
            tape.watch(theta)
            value = self.value(theta, omega, batch, weight)
        return value, self.parameters.flatten(tape.gradient(value, theta))

    def called(self, batch):
        """As of `CompiledLoss`. Where a trace shows that the model loops, others are made for that."""
        if tf.executing_eagerly():
            return super().called(batch)
        graph = tf.compat.v1.get_default_graph()
        before = len(graph.get_operations())
        found = super().called(batch)
        if any(op.type in LOOPS for op in graph.get_operations()[before:]):
            self._loops = self.kernels.loop = True
        return found

    def recorded(self, persistent=True):
        """A tape, or what stands for one where a kernel is traced of a model with loops."""
        if self._loops and not tf.executing_eagerly():
            return Unrecorded()
        return tf.GradientTape(persistent=persistent, watch_accessed_variables=False)

    # ---- second derivatives, for each row of a (k, p) matrix

    @kernel("vectors")
    def hvp(self, batch, weight, vectors):
        """∂²/∂θ² of the batch's part of n L times each row, (k, p)."""
        omega = self.ones(batch)
        product = self._second_derivative(lambda theta: self.value(theta, omega, batch, weight))
        return over_vectors(product or tf.zeros_like, vectors, self.kernels.loop)

    def gauss_newton(self, batch, weight, vectors):
        """(Jᵀ (∂²/∂z²) J + ∂²(a A + b R)/∂θ²) times each row, (k, p), with z of `outputs`."""
        return self.products_and_scores(batch, weight, vectors)[0]

    @kernel("vectors")
    def products_and_scores(self, batch, weight, vectors):
        """`gauss_newton`, and what it knows on the way: ⟨∂ℓ_j/∂z_j, J_j v⟩, (k, b).

        That is what `scores` gives where an example's loss depends on θ by its outputs alone.
        """
        curvature = curvature_at_outputs(self, batch, weight)
        rest = self._second_derivative(lambda theta: self.rest(theta, batch, weight))

        def product(v):
            bent, scores = curvature(v)
            return (bent + rest(v) if rest else bent), scores

        return over_vectors(product, vectors, self.kernels.loop, outputs=2)

    def _second_derivative(self, scalar):
        """v ↦ (∂²scalar/∂θ²) v, by reverse over reverse; None where θ is not in it."""
        theta = self.parameters.tensors()
        with self.recorded() as outer:
            outer.watch(theta)
            with self.recorded(persistent=False) as inner:
                inner.watch(theta)
                value = scalar(theta)
            slopes = inner.gradient(value, theta)
            gradient = self.parameters.flatten(slopes)
        if all(slope is None for slope in slopes):
            return None

        def product(v):
            return self.parameters.flatten(outer.gradient(gradient, theta, output_gradients=v))

        return product

    # ---- scores

    @kernel("vectors")
    def scores(self, batch, weight, vectors):
        """⟨∇_j, s⟩ for each example j and each row s, (b, k): ∂/∂ω ⟨∂(n L)/∂θ, s⟩."""
        if self.adds_by_example:
            return self._of_each(
                lambda i: tf.linalg.matvec(vectors, self._alone(batch, i, weight)), batch
            )
        theta, omega = self.parameters.tensors(), self.ones(batch)
        with self.recorded() as outer:
            outer.watch(omega)
            gradient = self._gradient(theta, omega, batch, weight)[1]

        def product(s):
            return filled([outer.gradient(gradient, omega, output_gradients=s)], [omega])[0]

        return tf.transpose(over_vectors(product, vectors, self.kernels.loop))

    @kernel("vectors")
    def input_gradients(self, batch, weight, vectors):
        """∂/∂x of `scores`, (k, b, all features) for the floating inputs in flat order."""
        theta = self.parameters.tensors()
        x, *rest = batch if isinstance(batch, tuple) else (batch,)  # Of inputs alone.
        inputs = [t for t in tf.nest.flatten(x) if t.dtype.is_floating]
        with self.recorded() as outer:
            outer.watch(inputs)
            omega = self.ones(batch)
            with self.recorded(persistent=False) as tape:
                tape.watch(theta)
                # What layers add for example i depends on no other's input.
                value = self.value(theta, omega, (x, *rest), weight)
            gradient = self.parameters.flatten(tape.gradient(value, theta))

        def product(s):
            slopes = filled(outer.gradient(gradient, inputs, output_gradients=s), inputs)
            return tf.concat([tf.reshape(t, [rows_of(batch), -1]) for t in slopes], 1)

        return over_vectors(product, vectors, self.kernels.loop)
