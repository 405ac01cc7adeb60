"""Contributions of single examples to a Gauss-Newton matrix, G = Σ g gᵀ, and their inverse.

With m of them as the rows of J the damped matrix is Jᵀ J + λI, and by Woodbury's identity

    (Jᵀ J + λI)⁻¹ = (I - Jᵀ (J Jᵀ + λI)⁻¹ J) / λ

takes a matrix of m × m instead of p × p.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.sparse

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.factors.kronecker import in_one_piece
from keras_influence.linalg.sweeps import row_norms

# Numbers in the largest array that a product makes: vectors are taken so many at a time.
_NUMBERS = 2**24
# Multiplications of a product of dense matrices in the time of one of sparse ones.
_SLOWER = 50
# A damping that is less than so many units of rounding of the largest eigenvalue is not seen; and steps
# after which that is known well enough.
_LOST, _STEPS = 100, 10


@dataclasses.dataclass(frozen=True)
class Outer:
    """The part in one layer of rows that are products there: a δᵀ of each.

    Attributes:
        positions: (K, O) in θ.
        inputs: a of each row, (m, K).
        deltas: δ of each row, (m, O).
    """

    positions: Array
    inputs: Array
    deltas: Array

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.inputs.nbytes + self.deltas.nbytes

    def gram(self) -> Array:
        """Inner products of the rows, (m, m)."""
        product = self.inputs @ self.inputs.T
        step = max(1, _NUMBERS // len(product))
        for start in range(0, len(product), step):
            some = slice(start, start + step)
            product[some] *= self.deltas[some] @ self.deltas.T
        return product

    def products(self, v: Array) -> Array:
        """Inner products with each of (k, K·O) vectors, (k, m)."""
        found = np.empty((len(v), len(self.inputs)), v.dtype)
        for some in self._slices(len(v)):
            part = v[some].reshape(-1, *self.positions.shape).transpose(1, 0, 2)
            turned = self.inputs @ part.reshape(len(part), -1)
            turned = turned.reshape(len(turned), -1, self.deltas.shape[1])
            found[some] = np.einsum("mko,mo->km", turned, self.deltas)
        return found

    def combined(self, coefficients: Array) -> Array:
        """The rows' combinations with (k, m) coefficients, (k, K·O)."""
        height, width = self.positions.shape
        found = np.empty((len(coefficients), height, width), coefficients.dtype)
        for some in self._slices(len(coefficients)):
            scaled = coefficients[some].T[:, :, None] * self.deltas[:, None]
            turned = self.inputs.T @ scaled.reshape(len(scaled), -1)
            found[some] = turned.reshape(height, -1, width).transpose(1, 0, 2)
        return found.reshape(len(coefficients), -1)

    def above(self, others: Sequence["Outer"]) -> "Outer":
        """These rows, and below them others."""
        inputs = np.concatenate([part.inputs for part in (self, *others)])
        deltas = np.concatenate([part.deltas for part in (self, *others)])
        return Outer(self.positions, inputs, deltas)

    def times(self, number: float) -> "Outer":
        """The rows times a number."""
        return dataclasses.replace(self, deltas=self.deltas * self.deltas.dtype.type(number))

    def stretched(self, scale: Array) -> "Outer":
        """The rows with each position of θ times a number, one for all outputs of an input."""
        by_input = scale[self.positions].mean(1).astype(self.inputs.dtype)
        return dataclasses.replace(self, inputs=self.inputs * by_input)

    def astype(self, dtype: npt.DTypeLike) -> "Outer":
        """The same in another precision."""
        arrays = (a.astype(dtype, copy=False) for a in (self.inputs, self.deltas))
        return Outer(self.positions, *arrays)

    def _slices(self, count: int) -> Iterator[slice]:
        step = max(1, _NUMBERS // (len(self.inputs) * self.deltas.shape[1]))
        return (slice(start, start + step) for start in range(0, count, step))


class _Written:
    """The part in some positions of rows that are written out, `rows` (m, q)."""

    rows: Any

    def gram(self) -> Array:
        """Inner products of the rows, (m, m)."""
        product = self.rows @ self.rows.T
        return product.toarray() if scipy.sparse.issparse(product) else product

    def products(self, v: Array) -> Array:
        """Inner products with each of (k, q) vectors, (k, m)."""
        return (self.rows @ v.T).T

    def combined(self, coefficients: Array) -> Array:
        """The rows' combinations with (k, m) coefficients, (k, q)."""
        return (self.rows.T @ coefficients.T).T


@dataclasses.dataclass(frozen=True)
class Formed(_Written):
    """Rows that are written out as an array.

    Attributes:
        positions: (q,) in θ.
        rows: (m, q).
    """

    positions: Array
    rows: Array

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.rows.nbytes

    def above(self, others: Sequence["Formed"]) -> "Formed":
        """These rows, and below them others."""
        return Formed(self.positions, np.concatenate([part.rows for part in (self, *others)]))

    def times(self, number: float) -> "Formed":
        """The rows times a number."""
        return Formed(self.positions, self.rows * self.rows.dtype.type(number))

    def stretched(self, scale: Array) -> "Formed":
        """The rows with each position of θ times a number."""
        scale = scale[self.positions].astype(self.rows.dtype)
        return Formed(self.positions, self.rows * scale)

    def astype(self, dtype: npt.DTypeLike) -> "Formed":
        """The same in another precision."""
        return Formed(self.positions, self.rows.astype(dtype, copy=False))


@dataclasses.dataclass(frozen=True)
class Sparse(_Written):
    """Rows that are written out where they are not zero, as SciPy's `csr_matrix` holds them.

    Attributes:
        positions: (q,) in θ.
        data, indices, indptr: of the (m, q) matrix.
    """

    positions: Array
    data: Array
    indices: Array
    indptr: Array

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.data.nbytes + self.indices.nbytes

    @functools.cached_property
    def rows(self) -> Any:
        """The matrix."""
        shape = len(self.indptr) - 1, self.positions.size
        return scipy.sparse.csr_matrix((self.data, self.indices, self.indptr), shape)

    def gram(self) -> Array:
        """Inner products of the rows, (m, m)."""
        # Each column by itself, as a product of sparse matrices takes it, or all as a dense one.
        used, columns, counts = np.unique(self.indices, return_inverse=True, return_counts=True)
        if _SLOWER * (counts.astype(float) ** 2).sum() < len(self) ** 2 * len(used):
            return super().gram()
        shape = len(self), len(used)
        rows = scipy.sparse.csr_matrix((self.data, columns, self.indptr), shape).tocsc()
        product, step = np.zeros((len(self),) * 2, self.data.dtype), max(1, _NUMBERS // len(self))
        for start in range(0, len(used), step):
            part = rows[:, start : start + step].toarray()
            product += part @ part.T
        return product

    def above(self, others: Sequence["Sparse"]) -> "Sparse":
        """These rows, and below them others."""
        whole = scipy.sparse.vstack([part.rows for part in (self, *others)], "csr")
        return Sparse(self.positions, whole.data, whole.indices, whole.indptr)

    def times(self, number: float) -> "Sparse":
        """The rows times a number."""
        return dataclasses.replace(self, data=self.data * self.data.dtype.type(number))

    def stretched(self, scale: Array) -> "Sparse":
        """The rows with each position of θ times a number."""
        scale = scale[self.positions[self.indices]].astype(self.data.dtype)
        return dataclasses.replace(self, data=self.data * scale)

    def astype(self, dtype: npt.DTypeLike) -> "Sparse":
        """The same in another precision."""
        return dataclasses.replace(self, data=self.data.astype(dtype, copy=False))


Rows: TypeAlias = Outer | Formed | Sparse


def stacked(pieces: Sequence[Any]) -> Rows:
    """Rows of one kind, some below the others."""
    first = pieces[0]
    return first if len(pieces) == 1 else first.above(pieces[1:])


@dataclasses.dataclass(frozen=True)
class ContributionsFactor:
    """The damped matrix of some contributions, zero outside of them.

    With a regulariser whose Hessian is the diagonal r, in the coordinates in which r + λ is one.

    Attributes:
        parts: of the rows J; together they hold each position once at most.
        cholesky: (m, m) lower Cholesky factor of J Jᵀ + λI.
        damping: λ, or 1 in such coordinates; more where that would be lost to rounding.
        scale: (p,) the roots of 1 / (r + λ); empty without regulariser.
        whole: whether the contributions are all that there are.
    """

    parts: tuple[Rows, ...]
    cholesky: Array
    damping: float
    scale: Array
    whole: bool = False

    @classmethod
    def of(
        cls, parts: tuple[Rows, ...], damping: float, regulariser: Array, whole: bool = False
    ) -> "ContributionsFactor":
        """Of (m, p) rows with λ > 0 and (p,) a regulariser's diagonal, in their precision."""
        scale = np.zeros(0)
        if regulariser.any():
            scale, damping = (np.maximum(regulariser, 0) + damping) ** -0.5, 1.0
            parts = tuple(part.stretched(scale) for part in parts)
        first, *others = parts
        gram = first.gram()
        for part in others:
            gram += part.gram()
        # Less than this is lost beside the largest of the contributions: what is divided by it is rounding.
        damping = max(damping, _LOST * np.finfo(gram.dtype).eps * _largest(gram))
        gram[np.diag_indices(len(gram))] += damping
        cholesky = scipy.linalg.cholesky(gram, lower=True, overwrite_a=True)
        return cls(parts, cholesky, damping, scale, whole)

    def precondition(self, rows: Array) -> Array:
        """The matrix's inverse times (k, p) rows."""
        x = rows * self.scale if self.scale.size else rows / rows.dtype.type(self.damping)
        products = self._products(x)
        coefficients = scipy.linalg.cho_solve((self.cholesky, True), products.T).T
        for part, where in zip(self.parts, self._places):
            x[:, where] -= part.combined(coefficients)
        return x * self.scale if self.scale.size else x

    def refined(self, rows: Array) -> Array:
        """The same, less most of what rounding does to it.

        Directions in which the matrix is far above λ come out as differences of what is divided by
        λ. The products alone lose nothing, and tell what is left.
        """
        x = self.precondition(rows)
        left = rows - self._image(x)
        closer = x + self.precondition(left)
        # Where there is nothing but rounding it leads away.
        better = row_norms(rows - self._image(closer)) < row_norms(left)
        x[better] = closer[better]
        return x

    def _image(self, x: Array) -> Array:
        """The matrix times (k, p) rows."""
        x = x / self.scale if self.scale.size else x
        products, image = self._products(x), x * x.dtype.type(self.damping)
        for part, where in zip(self.parts, self._places):
            image[:, where] += part.combined(products)
        return image / self.scale if self.scale.size else image

    def _products(self, x: Array) -> Array:
        """J times (k, p) rows, (k, m)."""
        found = np.zeros((len(x), len(self.cholesky)), x.dtype)
        for part, where in zip(self.parts, self._places):
            found += part.products(x[:, where])
        return found

    @functools.cached_property
    def _places(self) -> list[slice | Array]:
        return [in_one_piece(part.positions.ravel()) for part in self.parts]

    def astype(self, dtype: npt.DTypeLike) -> "ContributionsFactor":
        """The same in another precision."""
        parts = tuple(part.astype(dtype) for part in self.parts)
        cholesky, scale = (a.astype(dtype, copy=False) for a in (self.cholesky, self.scale))
        return ContributionsFactor(parts, cholesky, self.damping, scale, self.whole)


def _largest(gram: Array) -> float:
    """The largest eigenvalue of a positive semi-definite matrix, about: by powers of it."""
    v, length = np.ones(len(gram), gram.dtype), 0.0
    v += np.random.default_rng(0).standard_normal(len(v)).astype(v.dtype)
    for _ in range(_STEPS):
        v = gram @ (v / np.linalg.norm(v))
        length = float(np.linalg.norm(v))
        if not length > 0:
            break
    return length
