"""Curvature of the full training objective, as operators over batches of data."""

import numpy as np

from keras_influence.engine.curvature.certificate import certify, certify_added, certify_own
from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.layers.assembled import assembled
from keras_influence.engine.layers.finite import check_gradients
from keras_influence.engine.layers.footprint import examples_together, vectors_together
from keras_influence.engine.layers.network import Network
from keras_influence.engine.loss.refusals import computing
from keras_influence.engine.passes.passes import total
from keras_influence.errors import NotFiniteError
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.sweeps import row_norms

_HUGE = 1e10
_ANEW = 1_000_003
# How far a matrix's products may be from those of its curvature, in roots of the rounding of a number.
_SAME = 3


class Average:
    """Products with a curvature as means over batches of data.

    Args:
        kind: a class of `Curvature`.
        ground: the `Ground`.
        train: all of the training data, as `Batches`.
        footprint: what one example takes, `Footprint`.
    """

    def __init__(self, kind, ground, train, footprint):
        self._kind, self._ground, self._train = kind, ground, train
        self._moving, self._numbers = footprint.moving, footprint.numbers

    def __call__(self, rows, batches, count, weight):
        """Σ_B C_B v / count for each row v, with the batches weighted by a `Weighting` of `Facts`."""
        dtype = np.dtype(self._ground.objective.parameters.dtype.as_numpy_dtype)
        rows = np.ascontiguousarray(rows, dtype)
        self.certify()
        # One batch is no sum: it takes no detour through float64.
        alone = len(batches) == 1 and dtype.itemsize >= 4
        about = self._kind, rows, weight, self._moving, alone
        product = total(products, self._ground, batches, *about)
        product = np.divide(product, float(count), out=product if product.flags.writeable else None)
        # Of huge vectors, as an iteration that grows has them, a product may overflow.
        if not np.isfinite(product).all() and np.abs(rows).max() < _HUGE:
            # A ValueError that names the first example whose gradient is not finite, if any.
            own = self._ground.facts.own()
            check_gradients(self._ground.objective, self._train, own)
            raise NotFiniteError
        return product.astype(dtype, copy=False)

    def certify(self):
        """Look once at what layers and losses of the user's own do on all of the data."""
        ground, kind = self._ground, self._kind
        if kind not in ground.certified:
            ground.certified.add(kind)
            together = examples_together(self._numbers, ground.objective.parameters.dtype.size)
            certify_own(ground, self._train, together, kind.differences)


class Curvature(LinearOperator):
    """A curvature matrix of the loss of n training examples, as one batch.

    Args:
        ground: the `Ground`: the loss, what holds for it on the training data, and a few of them.
        batches: the `Batches` of the training data.
        footprint: what one example takes, `Footprint`.
        progress: as `Progress`, shows what takes long.

    Attributes:
        network: what the layers know of it, `Network`.
        kernel: the method of `Objective` that gives a batch's part of n C v.
        differences: whether it is the derivative of the gradient along a vector.
    """

    kernel: str
    differences = False

    def __init__(self, ground, batches, footprint, progress):
        self._ground, self._batches, self._progress = ground, batches, progress
        self._footprint = footprint
        parameters, self.n = ground.objective.parameters, batches.n
        self.size, self.dtype = parameters.size, np.dtype(parameters.dtype.as_numpy_dtype)
        self._average = Average(type(self), ground, batches, footprint)
        self.network = Network(ground, batches, footprint, progress, self._average)

    def matmat(self, rows):
        if np.ndim(rows) != 2 or np.shape(rows)[1] != self.size:
            raise ValueError(
                f"`rows` should be vectors of {self.size} numbers, (k, {self.size}). Received: "
                f"shape {np.shape(rows)}"
            )
        return self._average(rows, self._batches, self.n, self._ground.facts.train())

    def sampled(self, batch, rows):
        """C v for each row v, estimated from one minibatch."""
        self._average.certify()
        about = type(self), batch, rows, self._ground.facts.train()
        product = certified_product(self._ground, *about).numpy()
        product /= size_of(batch)
        return product

    def contributed(self, group, rows):
        """What some of the examples contribute to C v."""
        return self._average(rows, group, self.n, self._ground.facts.examples())

    def samples(self, batch_size, seed):
        if batch_size >= self.n:
            yield from super().samples(batch_size, seed)
        for batch in self._batches.sampler(batch_size, seed):
            yield _Sample(self, batch)

    def without(self, group):
        """The curvature with the examples of `group` (a `Batches`) taken out, n unchanged."""
        return _Without(self, group)


class Hessian(Curvature):
    """∇²L(θ), regularisers included. Indefinite away from a minimum."""

    kernel = "hvp"
    differences = True


class GaussNewton(Curvature):
    """Jᵀ (∇²_z ℓ) J plus the regulariser's Hessian, z the model's outputs or logits.

    Positive semi-definite for losses that are convex in z, and equal to the
    Hessian for generalised linear models (Schraudolph 2002; Martens 2020, §8).
    """

    kernel = "gauss_newton"

    def vectors_to_write(self):
        way = self.network.worth.assembling()
        return float(self.size) if way is None else way.vectors

    def written_out(self):
        """As of any operator; where that costs less by the contributions of single examples."""
        way, taken = self.network.worth.assembling(), 0.0
        if way is not None:
            about = self._ground, self._batches, self._footprint, way.numbers, self._progress
            matrix, passes = assembled(*about)
            taken += passes
            if matrix is not None:
                matrix /= self.n
                np.einsum("ii->i", matrix)[:] += self.network.regulariser()
                taken += self.share
                if self._gives_products(matrix):
                    return matrix, taken
        matrix, passes = super().written_out()
        return matrix, passes + taken

    def _gives_products(self, matrix):
        """Whether it does; not where a regulariser acts on several weights together."""
        rows = np.random.default_rng(_ANEW).standard_normal((2, self.size)).astype(self.dtype)
        products = self.matmat(rows)
        miss, allowed = row_norms(products - rows @ matrix), _SAME * np.finfo(self.dtype).eps ** 0.5
        return bool((miss <= allowed * row_norms(products)).all())


def products(ground, run, kind, rows, weight, moving, alone):
    """A pass: Σ_B n C_B v for each row v, (k, p); in float64, if there is a sum.

    Args:
        kind: a class of `Curvature`.
        moving: in a `Footprint`.
        alone: whether there is one batch in all: its product is given as it is, if it is one.
    """
    sums = None if alone else np.zeros(rows.shape, np.float64)
    with computing("train"):
        for batch in run:
            width = vectors_together(moving, rows.dtype.itemsize, size_of(batch), rows.shape[1])
            for start in range(0, len(rows), width):
                block = rows[start : start + width]
                # A view of the tensor's memory, where `numpy()` would copy it.
                product = np.asarray(certified_product(ground, kind, batch, block, weight))
                if sums is None and len(block) == len(rows):
                    return product
                sums = np.zeros(rows.shape, product.dtype) if sums is None else sums
                sums[start : start + width] += product
    return sums


def certified_product(ground, kind, batch, rows, weight):
    """The batch's part of n C v for each row v, by a kernel that has been certified."""
    kernel = getattr(ground.objective, kind.kernel)
    many = len(rows) > 1
    if (kind, many) not in ground.certified:
        ground.certified.add((kind, many))
        train = ground.facts.train()
        certify(ground.objective, ground.few, train, kernel, many, kind.differences)
        if ground.facts.adds and not kind.differences and certify_added not in ground.certified:
            ground.certified.add(certify_added)
            added = ground.facts.added_alone()
            certify_added(ground.objective, ground.few, added, kernel)
    return kernel(batch, weight, rows)


class _Sample(LinearOperator):
    """The estimate of a `Curvature` from one minibatch."""

    def __init__(self, whole, batch):
        self._whole, self._batch = whole, batch
        self.size, self.dtype = whole.size, whole.dtype
        self.share = size_of(batch) / whole.n

    def matmat(self, rows):
        """As `Average` over this one batch, without its detour through float64."""
        rows = np.ascontiguousarray(rows, self.dtype)
        return self._whole.sampled(self._batch, rows)


class _Without(LinearOperator):
    """A `Curvature` less what some of its examples contribute."""

    def __init__(self, whole, group):
        self._whole, self._group = whole, group
        self.size, self.dtype = whole.size, whole.dtype

    def matmat(self, rows):
        return self._whole.matmat(rows) - self._whole.contributed(self._group, rows)
