"""Symmetric linear operators: what solvers see of a model and its data."""

from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.operators.damped import Damped, undamped
from keras_influence.linalg.operators.dense import Dense
from keras_influence.linalg.operators.layered import layered
from keras_influence.linalg.operators.metered import Metered
from keras_influence.linalg.operators.restricted import Restricted

__all__ = ["Damped", "Dense", "LinearOperator", "Metered", "Restricted", "layered", "undamped"]
