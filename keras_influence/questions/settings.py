"""The arguments that all questions share, documented and checked in this one place.

method: `"auto"` weighs the costs (see `Auto`): the dense matrix, preconditioned CG, or EK-FAC
    where an exact answer would take too long. `"cg"`, `"direct"`, `"lissa"`, `"minres"`, `"ncg"`
    reach the answer; `"nystrom"`, `"arnoldi"`, `"ekfac"`, `"astra"` are made for many right-hand
    sides. Or a solver with options such as `CG(tol=1e-8)`, or its config. All are for the same
    system.
damping: λ >= 0; `"auto"`: a tenth of the mean eigenvalue of the curvature, plus what
    outweighs its most negative one; or `"training"`: 1 / (learning rate x steps) of the SGD that
    trained the model, which is how far a training that was stopped early saw.
curvature: `"hessian"`, ∇²L of the compiled loss with its regularisers; `"gauss_newton"`,
    Jᵀ(∇²ℓ)J plus the regularisers' Hessian; or, where an answer may come from either, `"auto"`:
    Gauss-Newton wherever it is defined and positive definite with this damping, else the Hessian, with
    a warning. "auto" also takes the hinge losses in their smooth version (see `SmoothHinge`), for
    all derivatives, with a warning.
batch_size: examples per batch, for arrays; by default as many as a modest amount of memory holds
    the layers' outputs of. Memory and speed depend on it, the result does not. A dataset brings its own,
    of which small ones are joined.
class_weight: dict from class index to weight, as in `model.fit`.
variables: which trainable weights are θ: a layer, a list of layers and variables, or a function
    of a variable that returns a bool. Default all.
verbose: 0 is silent, 1 shows a progress bar, "auto" shows one for long work.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypedDict, TypeVar

from keras_influence.engine.problem import CURVATURES, Problem
from keras_influence.linalg import solvers
from keras_influence.progress import Progress
from keras_influence.underflow import to_zero
from keras_influence.validate import check_batch_size, check_class_weight, check_number

Function = TypeVar("Function", bound=Callable[..., Any])
Kind = TypeVar("Kind", bound="Settings")


class DataArguments(TypedDict, total=False):
    """Keyword arguments about the data and θ; see `Settings`."""

    batch_size: int | None
    class_weight: dict[int, float] | None
    variables: Any


class MatrixArguments(DataArguments, total=False):
    """Keyword arguments of questions about one matrix; see `Settings`."""

    damping: float | Literal["auto", "training"]
    curvature: str


class SpectrumArguments(MatrixArguments, total=False):
    """Keyword arguments of long questions about one matrix; see `Settings`."""

    verbose: int | Literal["auto"]


class SettingsArguments(SpectrumArguments, total=False):
    """Keyword arguments of questions that take a solve; see `Settings`."""

    method: Any


class LayerArguments(TypedDict, total=False):
    """Keyword arguments of questions about the last layer; see `Settings`."""

    batch_size: int | None
    class_weight: dict[int, float] | None
    verbose: int | Literal["auto"]


class PathArguments(DataArguments, total=False):
    """Keyword arguments of questions about the path of training; see `Settings`."""

    verbose: int | Literal["auto"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments that questions share, checked when they are made.

    The defaults are those of `influence`; what each means stands at the top of this module.

    Raises:
        ValueError, TypeError: an argument is not usable; the message names it.
    """

    method: Any = "auto"
    damping: float | Literal["auto", "training"] = 0.01
    curvature: str = "auto"
    batch_size: int | None = None
    class_weight: dict[int, float] | None = None
    variables: Any = None
    verbose: int | Literal["auto"] = "auto"

    curvatures: ClassVar[tuple[str, ...]] = ("auto", *CURVATURES)
    # Fields that stay as they are: no argument of the functions that take this class.
    fixed: ClassVar[tuple[str, ...]] = ()
    # Whether the question is about a minimum of the loss, and not about the path of training.
    minimum: ClassVar[bool] = True

    def __post_init__(self) -> None:
        solvers.get(self.method)
        if not (isinstance(self.damping, str) and self.damping in ("auto", "training")):
            if isinstance(self.damping, str):
                raise TypeError(
                    "`damping` should be a number >= 0, 'auto' or 'training'. "
                    f"Received: damping={self.damping!r}"
                )
            check_number("damping", self.damping)
        if not isinstance(self.curvature, str) or self.curvature not in self.curvatures:
            raise ValueError(
                f"`curvature` should be one of {sorted(self.curvatures)}. "
                f"Received: curvature={self.curvature!r}"
            )
        check_batch_size(self.batch_size)
        check_class_weight(self.class_weight)
        Progress(self.verbose)

    @classmethod
    def of(cls: type[Kind], arguments: Mapping[str, Any], **defaults: Any) -> Kind:
        """Settings from a function's keyword arguments.

        Args:
            arguments: what the function was given.
            **defaults: where they differ from this class's own.

        Raises:
            TypeError: an argument is not known; the message lists those that are.
        """
        known = cls.arguments()
        for name in arguments:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean `{near[0]}`?" if near else ""
                raise TypeError(
                    f"`{name}` is an unexpected keyword argument.{hint} "
                    f"The settings here are: {', '.join(known)}."
                )
        return cls(**{**defaults, **arguments})

    @classmethod
    def arguments(cls) -> list[str]:
        """Names of the fields that a function with these settings takes."""
        return [f.name for f in dataclasses.fields(cls) if f.name not in cls.fixed]

    @property
    def solver(self) -> Any:
        """`method` as a solver, or an `Auto`."""
        return solvers.get(self.method)

    def problem(self, model: Any, train: Any) -> Problem:
        """The `Problem` of a model and its training data with these settings.

        Raises:
            TypeError: it is a list of models; the message says what takes one.
        """
        if isinstance(model, (list, tuple)):
            raise TypeError(
                "`model` should be one model here. A list is taken by `influence` (whose scores rank "
                "by `.top(k)`), `self_influence`, `averaged_self_influence` and `trak_influence`. "
                f"Received: a {type(model).__name__} of {len(model)}"
            )
        return Problem(
            model,
            train,
            batch_size=self.batch_size,
            class_weight=self.class_weight,
            variables=self.variables,
            smooth=self.curvature == "auto",
            verbose=self.verbose,
            minimum=self.minimum,
        )


@dataclasses.dataclass(frozen=True)
class InverseSettings(Settings):
    """Of `inverse_hvp`, which is about one matrix: it has to be named."""

    method: Any = "cg"
    curvature: str = "hessian"
    curvatures: ClassVar[tuple[str, ...]] = tuple(CURVATURES)


@dataclasses.dataclass(frozen=True)
class SpectrumSettings(InverseSettings):
    """Of questions about the spectrum of one matrix: nothing is solved."""

    damping: float | Literal["auto", "training"] = 0.0
    fixed: ClassVar[tuple[str, ...]] = ("method",)


@dataclasses.dataclass(frozen=True)
class MatrixSettings(SpectrumSettings):
    """Of products with one matrix: there is nothing long to show."""

    fixed: ClassVar[tuple[str, ...]] = ("method", "verbose")


@dataclasses.dataclass(frozen=True)
class PathSettings(Settings):
    """Of questions about the path of training: no matrix at all."""

    curvature: str = "hessian"
    fixed: ClassVar[tuple[str, ...]] = ("method", "damping", "curvature")
    minimum: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class LayerSettings(PathSettings):
    """Of questions about the last layer, which is θ."""

    fixed: ClassVar[tuple[str, ...]] = (*PathSettings.fixed, "variables")
    minimum: ClassVar[bool] = True


def takes(kind: type[Settings]) -> Callable[[Function], Function]:
    """Let `inspect.signature` show the settings of a function with `**settings` one by one.

    It is a question then, in which numbers may underflow.
    """

    def shown(function: Function) -> Function:
        function = to_zero(function)
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        fields = {field.name: field for field in dataclasses.fields(kind)}
        settings = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=fields[name].default,
                annotation=fields[name].type,
            )
            for name in kind.arguments()
        ]
        function.__signature__ = signature.replace(parameters=[*own, *settings])  # type: ignore[attr-defined]
        return function

    return shown
