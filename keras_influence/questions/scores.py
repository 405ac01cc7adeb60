"""InfluenceScores: the answer, with its sign, its unit and the evidence for it."""

from __future__ import annotations

import dataclasses
import json
import os
import textwrap
from typing import Any

import numpy as np

from keras_influence import storage
from keras_influence.version import __version__


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Training examples in order, for each test example.

    Attributes:
        indices: (n_test, k) positions in the training data.
        values: (n_test, k) their scores.
    """

    indices: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True, repr=False)
class InfluenceScores:
    """Predicted change of each test loss if a training example were left out.

    `values[i, j] = ∇ℓ(test_i)ᵀ (H + λI)⁻¹ ∇ℓ(train_j) / n`, which is -1/n times
    Koh and Liang's I_up,loss (2017, eq. 2), to first order

        ℓ(test_i, trained without train_j) - ℓ(test_i)

    Positive: leaving train_j out would raise the loss, so it is helpful, a
    proponent. Negative: harmful, an opponent.

    Attributes:
        values: (n_test, n_train), in units of the loss.
        residual: (n_test,) relative residual of each solve, on the full data.
        iterations: (n_test,) iterations of each solve.
        converged: (n_test,) whether `residual` is within the solver's tolerance.
        passes: passes over the training data that the solve took, all test examples together.
        solver: configuration of the solver that was used.
        details: what else the solver says, e.g. LiSSA's scale.
        curvature: "hessian" or "gauss_newton", whichever was used; "none" for `TracIn`, whose
            values are a sum along training in the same sign and unit.
        damping: λ.
        reason: why this solver and this curvature, where they were chosen automatically.
        target: what `values` predict the change of: "test loss", or a function's name.
        parameters: names of the weights that count as θ.
    """

    values: np.ndarray
    residual: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray
    solver: dict[str, Any]
    curvature: str
    damping: float
    passes: float = 0.0
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    reason: str = ""
    target: str = "test loss"
    parameters: tuple[str, ...] = ()

    @property
    def n_test(self) -> int:
        return self.values.shape[0]

    @property
    def n_train(self) -> int:
        return self.values.shape[1]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.values if dtype is None else self.values.astype(dtype)
        return array.copy() if copy and array is self.values else array

    def __len__(self) -> int:
        return self.n_test

    def top(self, k: int = 5) -> Ranking:
        """The `k` strongest proponents of each test example, strongest first."""
        return self._ranking(-self.values, k)

    def bottom(self, k: int = 5) -> Ranking:
        """The `k` strongest opponents of each test example, strongest first."""
        return self._ranking(self.values, k)

    def _ranking(self, keys: np.ndarray, k: int) -> Ranking:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"`k` should be an integer >= 1. Received: k={k!r}")
        k = min(int(k), self.n_train)
        nearest = np.argpartition(keys, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(keys, nearest, 1), axis=1, kind="stable")
        indices = np.take_along_axis(nearest, order, 1)
        return Ranking(indices, np.take_along_axis(self.values, indices, 1))

    def __repr__(self) -> str:
        best = np.unravel_index(self.values.argmax(), self.values.shape)
        worst = np.unravel_index(self.values.argmin(), self.values.shape)
        loss = self.target == "test loss"
        signs = (
            ("helpful, a proponent", "harmful, an opponent")
            if loss
            else ("leaving j out raises it", "leaving j out lowers it")
        )
        unit = "the loss" if loss else f"`{self.target}`"
        about = f"{len(self.parameters)} weights: {', '.join(self.parameters)}"
        return "\n".join(
            [
                f"InfluenceScores: {self.n_test} test x {self.n_train} training examples",
                f"  values[i, j]  predicted change of {self.target} i if training example j were",
                f"                left out, in units of {unit}",
                f"  positive      {signs[0]}; strongest: {self._entry(best)}",
                f"  negative      {signs[1]}; strongest: {self._entry(worst)}",
                f"  about         {textwrap.shorten(about, 70, placeholder=', ...')}",
                *self._evidence(),
            ]
        )

    def _evidence(self) -> list[str]:
        solver = self.solver["class_name"]
        if self.curvature == "none":
            return [f"  summed by     {solver} over {self.passes:.0f} checkpoints, no curvature"]
        worst = f"largest relative residual {self.residual.max():.1e}"
        solved = f"{int(self.converged.sum())} of {self.n_test} solves converged, {worst}"
        if self.details.get("approximation"):
            solved = f"an approximation: {worst}"
        return [
            f"  solved with   {solver}, curvature {self.curvature!r}, damping {self.damping:g}",
            f"  certified     {solved}, {self.passes:.4g} passes over the data",
        ]

    def _entry(self, index: Any) -> str:
        i, j = (int(a) for a in index)
        return f"values[{i}, {j}] = {self.values[i, j]:+.3g}"

    # ---- keeping

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one `.npz` file, without pickle.

        Args:
            path: file name; `.npz` is added if it is missing.
        """
        settings = {f: getattr(self, f) for f in _SETTINGS}
        text = as_json({"version": __version__, **settings})
        arrays = {f: getattr(self, f) for f in _ARRAYS}
        storage.write_arrays(path, {"settings": np.array(text), **arrays})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> InfluenceScores:
        """Read scores that `save` wrote.

        Args:
            path: the name that `save` was given.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or does not hold influence scores.
        """
        arrays = storage.read_arrays(path, "InfluenceScores.save", ["settings", *_ARRAYS])
        saved = json.loads(str(arrays["settings"]))
        settings = {f: saved[f] for f in _SETTINGS}
        settings["parameters"] = tuple(settings["parameters"])
        return cls(**{f: arrays[f] for f in _ARRAYS}, **settings)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`: one row per test example, one column per training example."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas() needs pandas: pip install pandas") from error
        frame = pandas.DataFrame(self.values)
        frame.index.name, frame.columns.name = "test", "train"
        return frame

    def plot(self, test: Any = None, train: Any = None, **options: Any) -> Any:
        """A gallery: test examples beside their strongest proponents and opponents.

        See `keras_influence.report.gallery.gallery` for the arguments.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        from keras_influence.report import gallery as plotting

        return plotting.gallery(self, test, train, **options)


_ARRAYS = ("values", "residual", "iterations", "converged")
_SETTINGS = (
    "solver",
    "curvature",
    "damping",
    "passes",
    "details",
    "reason",
    "target",
    "parameters",
)


def as_json(value: Any) -> str:
    """Settings as JSON text; NumPy's scalars count as numbers."""
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
