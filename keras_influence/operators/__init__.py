"""Symmetric linear operators: what solvers see of a model and its data."""

from keras_influence.operators.base import LinearOperator
from keras_influence.operators.curvature import GaussNewton, Hessian
from keras_influence.operators.damped import Damped
from keras_influence.operators.dense import Dense
from keras_influence.operators.metered import Metered

__all__ = ["Damped", "Dense", "GaussNewton", "Hessian", "LinearOperator", "Metered"]
