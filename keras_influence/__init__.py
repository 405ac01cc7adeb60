"""Influence functions for Keras: which training examples made my model predict this?"""

from keras_influence.api import hvp, influence, inverse_hvp, self_influence
from keras_influence.callbacks import InfluenceCallback
from keras_influence.errors import (
    ConvergenceWarning,
    CurvatureWarning,
    DivergenceError,
    NegativeCurvatureError,
    ObjectiveWarning,
    SolverError,
)
from keras_influence.models import InfluenceMixin, InfluenceModel
from keras_influence.scores import InfluenceScores
from keras_influence.solvers import CG, NCG, Direct, LiSSA
from keras_influence.version import __version__

__all__ = [
    "CG",
    "ConvergenceWarning",
    "CurvatureWarning",
    "Direct",
    "DivergenceError",
    "InfluenceCallback",
    "InfluenceMixin",
    "InfluenceModel",
    "InfluenceScores",
    "LiSSA",
    "NCG",
    "NegativeCurvatureError",
    "ObjectiveWarning",
    "SolverError",
    "__version__",
    "hvp",
    "influence",
    "inverse_hvp",
    "self_influence",
]
