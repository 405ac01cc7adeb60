"""InfluenceCallback: influence scores as training goes on."""

import pathlib

import keras
import numpy as np

from keras_influence.checksums import fingerprint_of_weights
from keras_influence.engine.data import batches as data
from keras_influence.engine.kernels.targets import check_callable
from keras_influence.engine.kernels.whole_set import WholeSet
from keras_influence.errors import SolverError, warn
from keras_influence.questions.blocks import read_test
from keras_influence.questions.influence import influence
from keras_influence.questions.self_influence import self_influence
from keras_influence.questions.settings import Settings
from keras_influence.report.page import check_packages
from keras_influence.report.tensorboard import Board
from keras_influence.validate import check_folder, check_number

# Training examples whose self-influence goes into TensorBoard's histogram: one solve each.
_SAMPLE = 256


class InfluenceCallback(keras.callbacks.Callback):
    """Compute influence scores when `fit` ends, and every few epochs if asked.

    Training is left untouched: weights, metrics, optimizer and random state
    are as without the callback. The data are read once before it begins, so that what is wrong
    with them does not wait for its end.

    A second `fit` that goes on with the same optimizer, or with the weights that the first one left,
    goes on counting epochs: history and files are added to. Any other begins anew, with a warning,
    and is refused where `folder` holds the scores of another training.

    Where the weights allow no scores, as after training has diverged or beside negative curvature, a warning
    says so, and `fit` goes on and ends as it would have.

    Args:
        test: examples to explain, as in `influence`.
        train: the training data in a fixed order, as in `influence`.
        every: also compute after each `every`-th epoch. None: only at the end.
        folder: if given, scores are also written there, as `epoch_0005.npz`.
        log_dir: if given, TensorBoard can show from there, by epoch: the gallery of
            `InfluenceScores.plot`, a histogram of the self-influence of 256 training
            examples (all, if there are fewer), and the solves' residuals (log10) and passes.
            Needs tensorboard and matplotlib.
        report: also write an HTML file to explore to `folder`, as `epoch_0005.html`: see
            `InfluenceScores.report`. TensorBoard names it. Needs Jinja2 and Pillow.
        **options: passed to `keras_influence.influence`: `target` and its settings.

    Attributes:
        history: dict from the number of finished epochs to `InfluenceScores`.
        scores: the newest `InfluenceScores`, or None. After `fit` they are those of the weights
            that it left, also where another callback restored earlier ones.

    Raises:
        ImportError: a package that `log_dir` or `report` needs is missing.
        ValueError, TypeError: an argument is not usable; the message names it.
    """

    def __init__(self, test, train, every=None, folder=None, log_dir=None, report=False, **options):
        super().__init__()
        check_number("every", every, low=1, integer=True, optional=True)
        if report and folder is None:
            raise ValueError("`report` is written to `folder`: give a `folder` too.")
        if report:
            check_packages()
        self._settings = {k: v for k, v in options.items() if k != "target"}
        # What is wrong should not wait for the end of training.
        Settings.of(self._settings)
        if not isinstance(options.get("target"), (WholeSet, type(None))):
            check_callable(options["target"])
        for name, examples in (("test", test), ("train", train)):
            if isinstance(examples, tuple):
                data.read(examples, None, name)
        check_folder("folder", folder)
        check_folder("log_dir", log_dir)
        self._test = test
        self._train = train
        self._every = every
        self._folder = None if folder is None else pathlib.Path(folder)
        self._report = report
        self._board = None if log_dir is None else Board(log_dir)
        self._options = options
        self._begin_anew()

    def _begin_anew(self, optimizer=None):
        self._optimizer = optimizer
        self._epochs = 0
        self._left = None
        self.history = {}

    @property
    def scores(self):
        if self._stale():
            self._compute()
        return self.history[max(self.history)] if self.history else None

    def _stale(self):
        """Whether another callback has changed the weights after this one, and no training since.

        `EarlyStopping(restore_best_weights=True)` does, at the very end, where it comes later.
        """
        if self._left is None:
            return False
        steps, weights = self._left
        return self._steps() == steps and fingerprint_of_weights(self.model.weights) != weights

    def _steps(self):
        return int(self.model.optimizer.iterations)

    def on_train_begin(self, logs=None):
        self._looked, self._before = False, None
        self._look()
        if self._goes_on():
            self._optimizer = self.model.optimizer
            if self._stale():
                self._compute()
            return
        if self._folder is not None and any(self._folder.glob("epoch_*.npz")):
            raise ValueError(
                f"`folder` already holds the scores of another training: {self._folder}. "
                "Choose another one, or delete them."
            )
        if self.history:
            warn(
                "InfluenceCallback forgets its history: this training does not go on with the model "
                "of the one before it. Take a new InfluenceCallback for each training to keep both.",
                UserWarning,
            )
        self._begin_anew(self.model.optimizer)

    def on_train_batch_end(self, batch, logs=None):
        self._look()

    def _look(self):
        """Say what is wrong with the data: at once, or of a model that is not built yet after a batch."""
        if not self._looked and self.model.built:
            self._looked = True
            problem = Settings.of(self._settings).problem(self.model, self._train)
            read_test(problem, self._test, self._options.get("target"))

    def _goes_on(self):
        """Whether training goes on with the optimizer or the weights of the one before it."""
        if self._optimizer is self.model.optimizer:
            return True
        left = self._left
        return left is not None and fingerprint_of_weights(self.model.weights) == left[1]

    def on_epoch_begin(self, epoch, logs=None):
        if self._before is None:
            # Zero where `initial_epoch` goes on counting itself.
            self._before = max(0, self._epochs - epoch)

    def on_epoch_end(self, epoch, logs=None):
        self._epochs = self._before + epoch + 1
        if self._every and self._epochs % self._every == 0:
            self._compute()

    def on_train_end(self, logs=None):
        if self._epochs not in self.history or self._changed():
            self._compute()

    def _changed(self):
        return self._left is None or fingerprint_of_weights(self.model.weights) != self._left[1]

    def _compute(self):
        self._left = self._steps(), fingerprint_of_weights(self.model.weights)
        if not _are_finite(self.model.trainable_variables):
            warn(
                f"InfluenceCallback has no scores for epoch {self._epochs}: training has diverged, some "
                "weights are NaN or infinite.",
                UserWarning,
            )
            return
        try:
            scores = influence(self.model, self._test, self._train, **self._options)
            sample = self._board and self._self_influence(scores.n_train)
        except (SolverError, ValueError) as error:  # A long training is not lost for that.
            warn(f"InfluenceCallback has no scores for epoch {self._epochs}: {error}", UserWarning)
            return
        self.history[self._epochs] = scores
        written = None
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            scores.save(self._folder / f"epoch_{self._epochs:04d}.npz")
            if self._report:
                written = self._folder / f"epoch_{self._epochs:04d}.html"
                scores.report(written, self._test, self._train, model=self.model)
        if self._board is not None:
            figure = scores.plot(_arrays(self._test), _arrays(self._train))
            self._board.write(self._epochs, scores, sample, figure, written)

    def _self_influence(self, n):
        indices = np.unique(np.linspace(0, n - 1, _SAMPLE).astype(int))
        return self_influence(self.model, self._train, indices=indices, **self._settings)


def _are_finite(variables):
    return all(np.isfinite(v.numpy()).all() for v in variables)


def _arrays(examples):
    """What a gallery can show: arrays. Of a dataset it shows positions only."""
    return examples if isinstance(examples, tuple) else None
