"""Replay: influence as the exact derivative of a training run (Engstrom et al. 2025)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from keras_influence.progress import Progress
from keras_influence.questions.blocks import Target
from keras_influence.questions.evidence import without_solve
from keras_influence.questions.replay.recorder import Recorder
from keras_influence.questions.replay.run import Run
from keras_influence.questions.replay.run_end import RunEnd
from keras_influence.questions.replay.smoothness import Smoothness, random_groups, without
from keras_influence.questions.scores import InfluenceScores
from keras_influence.underflow import to_zero
from keras_influence.validate import check_number

# Bytes of the vectors that go back through a run together, and how often each is held.
_MEMORY, _COPIES = 1e9, 4


class Replay(Recorder):
    """Record a training so that it can be differentiated: leave-one-out of the run itself.

        replay = Replay(x, y, batch_size=100)
        model.fit(replay.data, epochs=20, callbacks=[replay])
        scores = replay.influence(test)

    With ω_j one more factor of training example j's sample weight in every step of the run,

        values[i, j] = - ∂ℓ(test_i, θ_end(ω)) / ∂ω_j   at ω = 1,

    which is to first order how much higher test loss i would be, had the same run (same start,
    order, and random numbers) gone without train_j: positive = helpful, in units of the loss, as in
    `influence`. No minimum and no curvature is assumed; the whole path counts, with BatchNormalization
    in training mode, dropout, momentum, schedules, weight decay. It is exact as a derivative, and
    what that is worth for a removal depends on how smooth the run is: see `smoothness`.

    The reverse-mode derivative goes back through all steps (Engstrom et al. 2025; Ilyas and
    Engstrom 2025). Each step is Keras's own, compared with where `fit` went. It costs about two
    trainings for one test example, and less for each of many.

    Args:
        x, y, sample_weight: the training data, as in `model.fit`: arrays, tensors, nested ones.
        batch_size: examples in a step.
        seed: of the order of the examples, which is another one in each epoch.
        class_weight: dict from class index to weight, in place of that of `fit`.
        folder: where to keep the states between steps, empty or new; `load` reads them in another
            process, and a call that was killed goes on there. None: in memory.
        budget: bytes that the states may take: by default 1e9 in memory, 1e10 in `folder`. What
            does not fit is run again from the states that do, where a step needs it.

    Attributes:
        data: what `fit` is to be given, a `tf.data.Dataset`.
    """

    @to_zero
    def influence(
        self, test: Any, target: Target | None = None, *, verbose: int | Literal["auto"] = "auto"
    ) -> InfluenceScores:
        """How each test loss would change if the run had gone without a training example.

        Args:
            test, target: as in `keras_influence.influence`.
            verbose: 0 is silent, 1 shows a progress bar, "auto" shows one for long work.

        Returns:
            `InfluenceScores` with columns in the order of `x`, and `curvature="none"`: no linear
            system was solved. `details` has the number of steps, how many of them the call ran
            forwards and backwards, and `rounding`, the largest difference between where a step
            led and where `fit` went, as a part of the way.

        Raises:
            ValueError: there is no recorded training, the model no longer has the weights that it
                left, or the steps do not lead to where `fit` went.
        """
        run, end = self._asked(test, target)
        size = max(1, int(_MEMORY // (_COPIES * run.step.now().nbytes)))
        together, blocks = end.together(self._order.batch_size), -(-end.test.n // size)
        bar = Progress(verbose).stage(f"Back through {run.stop} steps", blocks * run.stop)
        values = np.concatenate(
            [
                run.back(rows, together, lambda done, i=i: bar(i * run.stop + done))  # type: ignore[misc]
                for i, rows in enumerate(end.gradients(size))
            ]
        )
        bar.close()
        run.forget()
        if not values.any():
            raise ValueError(_without_effect(run, type(self.model.optimizer).__name__))
        about = self._recording.about
        config = {"batch_size": about["batch_size"], "seed": about["seed"]}
        return InfluenceScores(
            values=-values,
            details=run.details(),
            **without_solve(len(values), "Replay", config, target, self.model.trainable_variables),
        )

    @to_zero
    def losses(
        self,
        test: Any,
        weights: Any = None,
        target: Target | None = None,
        *,
        verbose: int | Literal["auto"] = "auto",
    ) -> np.ndarray:
        """Test losses after the run is done once more with other weights of the examples: the truth.

        Args:
            test, target: as in `influence`.
            weights: (n,) factors of the sample weights: 0 leaves an example out. Default: all 1.
            verbose: as in `influence`.

        Returns:
            (n_test,) array of losses, or of `target`. The model stays as it is.

        Raises:
            As `influence`.
        """
        run, end = self._asked(test, target)
        n = self._order.n
        omega = np.ones(n) if weights is None else np.asarray(weights, np.float64)
        if omega.shape != (n,) or not np.isfinite(omega).all():
            raise ValueError(
                f"`weights` should be {n} finite numbers, one for each training example. "
                f"Received: shape {omega.shape}"
            )
        step = Progress(verbose).stage(f"{run.stop} steps", run.stop)
        outputs = end.outputs(run.end(omega, step))
        step.close()
        return outputs

    @to_zero
    def smoothness(
        self,
        test: Any,
        target: Target | None = None,
        *,
        fraction: float = 0.01,
        trials: int = 8,
        seed: int = 0,
        scores: InfluenceScores | None = None,
        verbose: int | Literal["auto"] = "auto",
    ) -> Smoothness:
        """How linear the run is in its data: what scores predict, beside what happens.

        The run is done again `trials` times, each without another random part of the training
        examples. Where predictions fail, what to change about the training is said in words.

        Args:
            test, target: as in `influence`; a few dozen test examples tell more than one.
            fraction: the part of the training examples that is left out at a time.
            trials: number of runs.
            seed: of the random parts.
            scores: those of `influence` for the same test and target, if they are there.
            verbose: as in `influence`.

        Returns:
            A `Smoothness`; print it.

        Raises:
            As `influence`.
        """
        check_number("trials", trials, low=1, integer=True)
        check_number("fraction", fraction, strict=True)
        if scores is None:
            scores = self.influence(test, target, verbose=verbose)
        run, end = self._asked(test, target)
        groups = random_groups(self._order.n, fraction, trials, seed)
        shown = Progress(verbose).over(groups, f"{trials} runs without some examples", trials)
        base = end.outputs(run.end())
        actual = [end.outputs(run.end(without(self._order.n, group))) - base for group in shown]
        return Smoothness.of(self.model, scores, groups, np.stack(actual))

    def _asked(self, test: Any, target: Target | None) -> tuple[Run, RunEnd]:
        """The run that led to the weights that the model has, and test losses at its end."""
        run = self._run()
        return run, RunEnd(self.model, run.step, test, target, run.averaged)


def _without_effect(run: Run, optimizer: str) -> str:
    """What to say of a run whose derivative by all sample weights is zero."""
    if run.weighs():
        return (
            "Sample weights have an effect on steps of this run, but the derivative of where it ends is "
            "zero, as it is where an optimizer goes by the signs of gradients. Received: the optimizer "
            f"{optimizer}. Train with another one, such as Adam or SGD, or take `losses(test, weights)`, "
            "which runs the training again without some examples."
        )
    return (
        "No sample weight has an effect on this run: `compute_loss` ignores "
        "`sample_weight`, or the loss is one that layers add by `add_loss`. Let "
        "`compute_loss` weigh the examples."
    )
