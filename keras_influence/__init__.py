"""Influence functions for Keras: which training examples made my model predict this?"""

try:
    import keras as _keras_package
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "tensorflow":
        raise
    raise ImportError(
        'keras_influence needs TensorFlow: pip install "keras-influence[cpu]", or '
        '"keras-influence[tensorflow]" for the full build.'
    ) from error

if _keras_package.backend.backend() != "tensorflow":
    raise ImportError(
        "keras_influence works with Keras on TensorFlow. Set the environment variable "
        "KERAS_BACKEND=tensorflow before Keras is imported. "
        f"The backend is now {_keras_package.backend.backend()!r}."
    )

from keras_influence import evaluation
from keras_influence.callbacks import InfluenceCallback
from keras_influence.engine.data.in_order import in_order
from keras_influence.engine.kernels.whole_set import WholeSet
from keras_influence.engine.loss.smooth import SmoothHinge
from keras_influence.errors import (
    ConvergenceWarning,
    CurvatureWarning,
    DivergenceError,
    NegativeCurvatureError,
    ObjectiveWarning,
    SolverError,
    StaleError,
)
from keras_influence.evaluation.verification import verify
from keras_influence.linalg.solvers import (
    ASTRA,
    CG,
    EKFAC,
    MINRES,
    NCG,
    Arnoldi,
    Auto,
    Direct,
    LiSSA,
    Nystrom,
    TwoLevel,
    Woodbury,
)
from keras_influence.models import InfluenceMixin, InfluenceModel
from keras_influence.questions.explainer import Explainer, load_prepared, prepare
from keras_influence.questions.groups import group_influence, parameter_influence, with_change
from keras_influence.questions.influence import influence
from keras_influence.questions.inputs import input_influence
from keras_influence.questions.label_issues import LabelIssues, find_label_issues
from keras_influence.questions.losses import losses
from keras_influence.questions.products import hvp, inverse_hvp, operator
from keras_influence.questions.replay.replay import Replay
from keras_influence.questions.replay.several import replay_influence
from keras_influence.questions.reporting import write_report
from keras_influence.questions.representer import representer_influence
from keras_influence.questions.scores import InfluenceScores
from keras_influence.questions.self_influence import (
    AveragedSelfInfluence,
    averaged_self_influence,
    self_influence,
)
from keras_influence.questions.source import source_influence
from keras_influence.questions.spectrum import hessian_eigenvalues, hessian_trace
from keras_influence.questions.top import TopInfluence, top_influence
from keras_influence.questions.tracin import TracIn
from keras_influence.questions.trak import trak_influence
from keras_influence.version import __version__

__all__ = [
    "ASTRA",
    "Arnoldi",
    "Auto",
    "AveragedSelfInfluence",
    "CG",
    "ConvergenceWarning",
    "CurvatureWarning",
    "Direct",
    "DivergenceError",
    "EKFAC",
    "Explainer",
    "InfluenceCallback",
    "InfluenceMixin",
    "InfluenceModel",
    "InfluenceScores",
    "LabelIssues",
    "LiSSA",
    "MINRES",
    "NCG",
    "NegativeCurvatureError",
    "Nystrom",
    "ObjectiveWarning",
    "Replay",
    "SmoothHinge",
    "SolverError",
    "StaleError",
    "TopInfluence",
    "TracIn",
    "TwoLevel",
    "WholeSet",
    "Woodbury",
    "__version__",
    "averaged_self_influence",
    "evaluation",
    "find_label_issues",
    "group_influence",
    "hessian_eigenvalues",
    "hessian_trace",
    "hvp",
    "in_order",
    "influence",
    "input_influence",
    "inverse_hvp",
    "load_prepared",
    "losses",
    "operator",
    "parameter_influence",
    "prepare",
    "replay_influence",
    "representer_influence",
    "self_influence",
    "source_influence",
    "top_influence",
    "trak_influence",
    "verify",
    "with_change",
    "write_report",
]
