"""Matrices whose answers are known, for the tests of this room."""

import inspect

import numpy as np
import scipy.sparse.linalg

from keras_influence.linalg.factors.blocks import Block, Channels
from keras_influence.linalg.factors.kronecker import Kronecker
from keras_influence.linalg.factors.positions import Positions
from keras_influence.linalg.factors.written import Formed
from keras_influence.linalg.operators import Dense


def spectral(eigenvalues, seed=0):
    """A dense symmetric matrix with these eigenvalues, and its eigenvectors as columns."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(len(eigenvalues),) * 2))[0]
    return (q * eigenvalues) @ q.T, q


def dense_solve(matrix, rows, damping=0.0):
    """(matrix + λI)⁻¹ times each row, by LAPACK."""
    return np.linalg.solve(matrix + damping * np.eye(len(matrix)), rows.T).T


class Watched(Dense):
    """A matrix that remembers how many rows each of its products had."""

    def __init__(self, matrix):
        super().__init__(matrix)
        self.widths = []

    def matmat(self, rows):
        self.widths.append(len(rows))
        return super().matmat(rows)


class Layers(Dense):
    """A matrix with two layers' blocks, diagonal in a Kronecker basis, and five positions more.

    Attributes:
        layers: the layers' `Block`s; the second one's inputs are indices.
        blocks: these, and one with the diagonal of the rest.
        rest: positions that are in no layer.
        matrix: the (23, 23) matrix.

    Args:
        coupling: size of the entries that are in no block.
        kind: a class like `Network`, the default.
    """

    def __init__(self, rng, coupling=0.0, kind=None):
        order = rng.permutation(23)
        self.rest = np.sort(order[18:])
        self.layers = (
            _block(rng, "one", order[:12].reshape(3, 4)),
            _block(rng, "two", order[12:18].reshape(2, 3), indices=True),
        )
        noise = rng.normal(size=(23, 23)) * coupling
        self.matrix = noise + noise.T
        for block in self.layers:
            part = block.positions.array.ravel()
            q_inputs = block.q_inputs if block.q_inputs.size else np.eye(block.positions.shape[0])
            q = np.kron(q_inputs, block.q_outputs)
            self.matrix[np.ix_(part, part)] = (q * block.eigenvalues.ravel()) @ q.T
        self.matrix[np.ix_(self.rest, self.rest)] = spectral(np.linspace(0.5, 2, 5))[0]
        self.cover(self.layers)
        super().__init__(self.matrix)
        self.network = (kind or Network)(self)

    def cover(self, layers):
        """Have these layers for blocks, and all other positions in the rest."""
        self.layers = layers
        covered = [block.positions.array.ravel() for block in layers]
        self.rest = np.setdiff1d(np.arange(23), np.concatenate(covered) if covered else [])
        diagonal = np.diag(self.matrix)[self.rest][:, None]
        ones = np.ones((len(self.rest), 1, 1))
        about = {"by_example": False, "outside": True}
        self.blocks = (
            *layers,
            Channels("rest", Positions.of(self.rest[:, None]), ones, diagonal, **about),
        )


class Network:
    """What is known of the layers of `Layers`, as of 100 examples."""

    n = 100

    def __init__(self, operator):
        self._operator = operator

    def kronecker(self, pseudo_gradients, seed):
        return self._operator.blocks

    def layers_are_worth_it(self):
        return bool(self._operator.layers)

    def contributions_worth_it(self):
        return None

    def regulariser(self):
        return np.zeros(23)

    def contributions(self, most, nbytes):
        values, vectors = np.linalg.eigh(self._operator.matrix)
        rows = (vectors * np.sqrt(np.maximum(values, 0))).T[::-1]
        return (Formed(Positions.of(np.arange(23)), rows[:most]),)

    def coupling(self, blocks, chosen, draws, seed):
        basis = Kronecker(self._operator.blocks, 0.0).turned(np.eye(23)).T[chosen]
        return basis @ self._operator.matrix @ basis.T


def _block(rng, name, positions, indices=False):
    k, o = positions.shape
    q_inputs, q_outputs = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (k, o))
    q_inputs = np.zeros((0, 0)) if indices else q_inputs
    return Block(name, Positions.of(positions), q_inputs, q_outputs, rng.uniform(0.5, 2, (k, o)))


def relative(tolerance):
    """The argument of SciPy's `cg` for a relative tolerance: `tol` before SciPy 1.12."""
    names = inspect.signature(scipy.sparse.linalg.cg).parameters
    return {"rtol" if "rtol" in names else "tol": tolerance}
