"""Smoothness of a training run: how far its derivative predicts what other data do to it."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_influence import _keras
from keras_influence.agreement import orders_agree, pearson, sizes_agree, slope

if TYPE_CHECKING:
    from keras_influence.questions.scores import InfluenceScores

# Adam's ε below which a weight with hardly a gradient takes steps as large as any other.
_TINY_EPSILON = 1e-5
_KINKED = ("relu", "relu6", "leaky_relu", "hard_sigmoid", "hard_swish", "hard_tanh", "threshold")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Smoothness:
    """What scores predict for random removals, and what the run does without these examples.

    Attributes:
        predicted, actual: (trials, n_test) changes of each test loss, or target.
        left_out: number of examples that were left out at a time, of `n_train`.
        pearson: correlation of predicted and actual, over all of them.
        slope: of actual on predicted; 1 where sizes are right.
        smooth: whether predictions can be trusted, in size too.
        advice: what to change about the training, in words; empty if `smooth`.
    """

    predicted: np.ndarray
    actual: np.ndarray
    left_out: int
    n_train: int
    pearson: float
    slope: float
    smooth: bool
    advice: tuple[str, ...]

    @classmethod
    def of(
        cls, model: Any, scores: InfluenceScores, groups: list[np.ndarray], actual: np.ndarray
    ) -> Smoothness:
        """From the scores, the examples that were left out together, and what happened."""
        predicted = np.stack([np.asarray(scores)[:, group].sum(1) for group in groups])
        correlation, steepness = pearson(predicted, actual), slope(predicted, actual)
        smooth = sizes_agree(correlation, steepness)
        return cls(
            predicted=predicted,
            actual=actual,
            left_out=len(groups[0]),
            n_train=scores.n_train,
            pearson=correlation,
            slope=steepness,
            smooth=smooth,
            advice=() if smooth else tuple(_advice(model)),
        )

    def __repr__(self) -> str:
        trials, tests = self.actual.shape
        lines = [
            f"Smoothness: {trials} runs without {self.left_out} of {self.n_train} examples each, "
            f"seen on {tests} test examples",
            f"  Pearson {self.pearson:.3f}, slope {self.slope:.2f} of actual on predicted changes.",
            *textwrap.wrap(self._verdict(), 96, initial_indent="  ", subsequent_indent="  "),
        ]
        for line in self.advice:
            lines += textwrap.wrap(line, 96, initial_indent="  - ", subsequent_indent="    ")
        return "\n".join(lines)

    def _verdict(self) -> str:
        if self.smooth:
            return (
                "The run is smooth in its data: scores predict removals of this size, in size too."
            )
        if orders_agree(self.pearson):
            return (
                "The run is not quite smooth in its data: trust the order of scores more than "
                "their sizes, or ask about fewer examples at a time. A smoother run would have:"
            )
        return (
            "The run is NOT smooth in its data: its derivative says little about removals of this "
            "size. A smoother run would have:"
        )


def random_groups(n: int, fraction: float, trials: int, seed: int) -> list[np.ndarray]:
    """Random parts of n examples, at least one each."""
    if fraction >= 1:
        raise ValueError(f"`fraction` should be below 1. Received: fraction={fraction}")
    rng, size = np.random.default_rng(seed), max(1, round(fraction * n))
    return [rng.choice(n, size, replace=False) for _ in range(trials)]


def without(n: int, group: np.ndarray) -> np.ndarray:
    """Weights that leave a group out, (n,)."""
    weights = np.ones(n)
    weights[group] = 0
    return weights


def _advice(model: Any) -> list[str]:
    """What makes a run smoother, of what this one has (Engstrom et al. 2025, section 4)."""
    layers, optimizer = _keras.layers_of(model), model.optimizer
    found = [
        "a lower learning rate: steps that nearly diverge make much of small differences; "
        "or a warm-up, and a decay to zero",
        "larger batches, or fewer epochs",
    ]
    if getattr(optimizer, "epsilon", 1.0) < _TINY_EPSILON and "Adam" in type(optimizer).__name__:
        found.append(
            f"{type(optimizer).__name__}(epsilon=1e-4) in place of {optimizer.epsilon:g}: weights "
            "with hardly a gradient then take small steps"
        )
    kinked = [layer.name for layer in layers if _has_kink(layer)]
    if kinked:
        found.append(
            f"gelu, silu or tanh in place of relu, average in place of max pooling ({', '.join(kinked[:3])})"
        )
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers):
        found.append(
            "BatchNormalization before the activation, in larger batches; or LayerNormalization"
        )
    return found


def _has_kink(layer: Any) -> bool:
    activation = getattr(getattr(layer, "activation", None), "__name__", "")
    name = type(layer).__name__
    return activation in _KINKED or "ReLU" in name or "MaxPool" in name
