"""A curvature factorised once, kept for any number of test sets, saved and loaded."""

import hashlib
import json
import os
import tempfile

import numpy as np
import tensorflow as tf

from keras_influence.errors import StaleError
from keras_influence.linalg.factors import packing as state
from keras_influence.questions import api
from keras_influence.questions.session import Session
from keras_influence.version import __version__

# Right-hand sides that method="auto" counts on: preparing is for many.
_MANY = 1000
# Examples whose losses tell one architecture or loss from another.
_PROBE = 8


def prepare(
    model,
    train,
    *,
    method="auto",
    damping=0.01,
    curvature="auto",
    batch_size=None,
    class_weight=None,
    variables=None,
    verbose="auto",
):
    """Factorise the curvature of the training objective once.

    What a solver can compute before it sees a right-hand side (a Cholesky factor, leading
    eigenvectors, Kronecker factors, a preconditioner) is computed here, and not again.

    Args:
        model, train, damping, curvature, batch_size, class_weight, variables, verbose: as in
            `influence`.
        method: as in `influence`; "auto" counts on 1,000 test examples.

    Returns:
        A `Prepared`, with `influence(test)`, `self_influence()`, `inverse_hvp(v)`, `save(path)`.

    Raises:
        As `inverse_hvp`.
    """
    session = Session(
        model,
        train,
        method=method,
        damping=damping,
        curvature=curvature,
        batch_size=batch_size,
        class_weight=class_weight,
        variables=variables,
        verbose=verbose,
    )
    session.plan(_MANY)
    session.solve(np.zeros((1, session.objective.parameters.size)))
    return Prepared(session, batch_size)


def load_prepared(model, train, path, *, class_weight=None, verbose="auto"):
    """Read what `Prepared.save` wrote, for the same model and training data.

    Args:
        model: the model with the weights it had.
        train, class_weight: the training data as they were given to `prepare`.
        path: the file.
        verbose: as in `influence`.

    Returns:
        A `Prepared`, with the method, damping, curvature and variables it was made with.

    Raises:
        StaleError: the weights, the data or the loss are not those it was made for.
        ValueError: the file is not one that `Prepared.save` wrote.
    """
    with np.load(path, allow_pickle=False) as file:
        if "settings" not in file.files:
            raise ValueError(f"`path` should be a file written by Prepared.save: {path} is not.")
        settings = json.loads(str(file["settings"]))
        arrays = [file[f"array_{i}"] for i in range(settings["arrays"])]
    trainable = model.trainable_variables
    if max(settings["variables"]) >= len(trainable):
        raise StaleError("the model has lost trainable variables", path)
    session = Session(
        model,
        train,
        method=settings["method"],
        damping=settings["damping"],
        curvature=settings["curvature"],
        batch_size=settings["batch_size"],
        class_weight=class_weight,
        variables=[trainable[i] for i in settings["variables"]],
        verbose=verbose,
    )
    _compare(settings["fingerprint"], fingerprint(session), path)
    session.used = settings["used"]
    session.factors = {k: state.unpack(v, arrays) for k, v in settings["factors"].items()}
    return Prepared(session, settings["batch_size"])


class Prepared:
    """The factorised curvature of one model on one training set; see `prepare`.

    It belongs to the weights that the model had: after further training its methods raise a
    `StaleError`.
    """

    def __init__(self, session, batch_size):
        self._session = session
        self._batch_size = batch_size
        self._weights = _weights(session.model)

    @property
    def method(self):
        """The solver."""
        return self._session.solver

    @property
    def damping(self):
        """λ."""
        return self._session.damping

    def influence(self, test, *, target=None):
        """As `keras_influence.influence`, with the solve's factorisation made already."""
        return api.explain(self._current(), test, target, self._batch_size)

    def self_influence(self):
        """As `keras_influence.self_influence`."""
        return api.self_influences(self._current())

    def inverse_hvp(self, v):
        """(H + λI)⁻¹ v, in the form of `v`; see `keras_influence.inverse_hvp`."""
        return api.inverse(self._current(), v)

    def save(self, path):
        """Write the factorisation, with a fingerprint of weights, data and options.

        Args:
            path: file name; its directory must exist. Written whole or not at all.
        """
        session, arrays = self._current(), []
        parameters = [id(v) for v in session.objective.parameters.variables]
        positions = {id(v): i for i, v in enumerate(session.model.trainable_variables)}
        settings = {
            "version": __version__,
            "method": session.solver.get_config(),
            "damping": session.damping,
            "curvature": session.curvature,
            "used": session.used,
            "batch_size": self._batch_size,
            "variables": [positions[i] for i in parameters],
            "fingerprint": fingerprint(session),
            "factors": {k: state.pack(v, arrays) for k, v in session.factors.items()},
            "arrays": len(arrays),
        }
        named = {f"array_{i}": array for i, array in enumerate(arrays)}
        _write(path, settings=np.array(json.dumps(settings)), **named)

    def __repr__(self):
        s = self._session
        return (
            f"Prepared({s.solver}, curvature={s.used!r}, damping={s.damping:g}, "
            f"{s.objective.parameters.size} parameters, {s.train.n} training examples)"
        )

    def _current(self):
        if _weights(self._session.model) != self._weights:
            raise StaleError("the weights have changed", "this object")
        return self._session


def fingerprint(session):
    """What a factorisation depends on: checksums of weights and data, and a few losses."""
    data = [hashlib.sha256() for _ in tf.nest.flatten(session.train.head(1))]
    for batch in session.train:
        for checksum, leaf in zip(data, tf.nest.flatten(batch)):
            checksum.update(np.ascontiguousarray(leaf.numpy()).tobytes())
    return {
        "weights": _weights(session.model),
        "data": [checksum.hexdigest() for checksum in data],
        "losses": session.objective.losses(session.train.head(_PROBE)).numpy().tolist(),
    }


def _weights(model):
    checksum = hashlib.sha256()
    for variable in model.weights:
        checksum.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return checksum.hexdigest()


def _compare(saved, now, path):
    if saved["weights"] != now["weights"]:
        raise StaleError("the weights have changed", path)
    if saved["data"] != now["data"]:
        raise StaleError("the training data have changed", path)
    # Not to the last bit: another machine sums in another order.
    if not np.allclose(saved["losses"], now["losses"], rtol=1e-3, atol=1e-6):
        raise StaleError("the loss or the architecture has changed", path)


def _write(path, **arrays):
    path = os.fspath(path)
    folder = os.path.dirname(os.path.abspath(path))
    handle, temporary = tempfile.mkstemp(suffix=".npz", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
