"""InfluenceScores: the answer, with its sign, its unit and the evidence for it."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_influence.questions.ranking import Ranking, ranked
from keras_influence.questions.result_file import read_result, write_result
from keras_influence.questions.several import check_alike
from keras_influence.questions.words import about_line, evidence_lines, meaning_lines


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class InfluenceScores:
    """Predicted change of each test loss if a training example were left out.

    `values[i, j] = ∇ℓ(test_i)ᵀ (H + λI)⁻¹ ∇ℓ(train_j) / n`, which is -1/n times
    Koh and Liang's I_up,loss (2017, eq. 2), to first order

        ℓ(test_i, trained without train_j) - ℓ(test_i)

    Positive: leaving train_j out would raise the loss, so it is helpful, a
    proponent. Negative: harmful, an opponent.

    Attributes:
        values: (n_test, n_train), in units of the loss. An array, or a `zarr.Array` that is read
            from the disk as it is indexed; see `open`.
        residual: (n_test,) relative residual of each solve, on the full data; see `EKFAC` for its.
        iterations: (n_test,) iterations of each solve.
        converged: (n_test,) whether `residual` is within the solver's tolerance.
        passes: passes over the training data that the solve took, all test examples together.
        solver: configuration of the solver that was used.
        details: what else the solver says, e.g. LiSSA's scale.
        curvature: "hessian" or "gauss_newton", whichever was used; "none" where no system was
            solved, as of `TracIn`, `Replay` or SOURCE, in the same sign and unit.
        damping: λ.
        reason: why this solver and this curvature, where they were chosen automatically.
        target: what `values` predict the change of: "test loss", or a function's name.
        parameters: names of the weights that count as θ.
        error: (n_test, n_train) standard error of `values` where they are the mean of several
            models' scores; None of one model's. See `averaged`.
    """

    values: Any
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
    error: np.ndarray | None = None

    @property
    def n_test(self) -> int:
        return self.values.shape[0]

    @property
    def n_train(self) -> int:
        return self.values.shape[1]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.asarray(self.values, dtype)
        return array.copy() if copy and array is self.values else array

    def __len__(self) -> int:
        return self.n_test

    def top(self, k: int = 5) -> Ranking:
        """The `k` strongest proponents of each test example, strongest first."""
        return ranked(self.values, k, proponents=True)

    def bottom(self, k: int = 5) -> Ranking:
        """The `k` strongest opponents of each test example, strongest first."""
        return ranked(self.values, k, proponents=False)

    def __repr__(self) -> str:
        first = f"InfluenceScores: {self.n_test} test x {self.n_train} training examples"
        return "\n".join([first, *meaning_lines(self), about_line(self), *evidence_lines(self)])

    # ---- of several models, and beside self-influence

    @classmethod
    def averaged(cls, parts: Iterable[InfluenceScores]) -> InfluenceScores:
        """The mean of several models' scores of the same examples, with its standard error.

        Models that differ in their seeds alone, of `influence`, `TracIn` or `Replay`: what they
        agree on is about the data. `influence([model, ...], test, train)` does this itself.

        Args:
            parts: two `InfluenceScores` or more.

        Raises:
            ValueError: there are fewer, or they are of other numbers of examples or targets.
            TypeError: they are something else.
        """
        parts = list(parts)
        check_alike(parts, InfluenceScores)
        values = np.stack([np.asarray(part) for part in parts])
        return dataclasses.replace(
            parts[0],
            values=values.mean(0),
            error=values.std(0, ddof=1) / np.sqrt(len(parts)),
            residual=np.max([part.residual for part in parts], 0),
            iterations=np.max([part.iterations for part in parts], 0),
            converged=np.all([part.converged for part in parts], 0),
            passes=sum(part.passes for part in parts),
            details={**parts[0].details, "models": len(parts)},
        )

    def relative(self, self_influence: Any) -> InfluenceScores:
        """Scores over the root of each training example's self-influence (ℓ-RelatIF).

        Outliers and wrong labels have a large influence on nearly everything; relative to
        what they have on themselves, examples that are like the test example come first (Barshan et
        al. 2020, section 4).

        Args:
            self_influence: (n_train,) array of `keras_influence.self_influence` with the same
                settings.

        Returns:
            `InfluenceScores` with values[i, j] / √self_influence[j]; zero where that is zero.

        Raises:
            ValueError: it has another shape, or negative entries.
        """
        size = np.asarray(self_influence, np.float64)
        if size.shape != (self.n_train,) or not (size >= 0).all():
            raise ValueError(
                f"`self_influence` should be {self.n_train} numbers >= 0, one for each training "
                "example, as of keras_influence.self_influence with the same settings. Received: "
                f"shape {size.shape}, smallest {size.min() if size.size else 'none'}"
            )
        root = np.sqrt(size)
        factor = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
        return dataclasses.replace(
            self,
            values=np.asarray(self) * factor,
            error=None if self.error is None else self.error * factor,
            details={**self.details, "relative": True},
        )

    # ---- keeping

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one `.npz` file, without pickle.

        Args:
            path: file name; `.npz` is added if it is missing.

        Raises:
            OSError: the folder of `path` does not exist, or there is a folder of that name.
        """
        error = {} if self.error is None else {"error": self.error}
        write_result(path, self, {"values": np.asarray(self.values), **error})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> InfluenceScores:
        """Read scores that `save` wrote.

        Args:
            path: the name that `save` was given.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or does not hold influence scores.
        """
        evidence, arrays = read_result(path, "InfluenceScores.save", ["values"])
        return cls(arrays["values"], error=arrays.get("error"), **evidence)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> InfluenceScores:
        """Scores that `influence(..., store=path)` wrote, read from there as they are asked for.

        `values` is a `zarr.Array`: `values[3]` or `values[:, 5:9]` read what they need, as `top`,
        `bottom` and `plot` do; `np.asarray`, `save` and `to_pandas` read everything.

        Args:
            path: the folder.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it holds no influence scores, or not all of them yet.
            ImportError: zarr is missing.
        """
        from keras_influence.questions.store_files import open_scores

        return cls(**open_scores(path))

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`: one row per test example, one column per training example."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas() needs pandas: pip install pandas") from error
        return pandas.DataFrame(np.asarray(self.values)).rename_axis(index="test", columns="train")

    def plot(self, test: Any = None, train: Any = None, **options: Any) -> Any:
        """A gallery: test examples beside their strongest proponents and opponents.

        See `keras_influence.report.gallery.gallery` for the arguments.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        from keras_influence.report import gallery as plotting

        return plotting.gallery(self, test, train, **options)

    def report(
        self,
        path: str | os.PathLike[str],
        test: Any = None,
        train: Any = None,
        **options: Any,
    ) -> pathlib.Path:
        """Write one HTML file in which the scores can be explored, without server or network.

        With `model=` it shows predictions and losses too, with `self_influence=` a list of
        suspicious labels, with `verification=` the verdict of `verify`. See
        `keras_influence.report.page.write_page` for all arguments; `model.report` makes all of it
        in one call.

        Returns:
            The file's path.

        Raises:
            ImportError, OSError: Jinja2 or Pillow is missing; `path` cannot be written to.
            ValueError, TypeError: an argument is not usable; the message names it.
        """
        from keras_influence.report.page import write_page

        return write_page(self, path, test, train, **options)

    def _repr_html_(self) -> str | None:
        """For notebooks: the strongest scores of the first test examples, with sign and unit."""
        from keras_influence.report.notebook import small_page

        return small_page(self)
