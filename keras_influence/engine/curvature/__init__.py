"""Curvature of the training objective, as linear operators."""

from keras_influence.engine.curvature.curvature import GaussNewton, Hessian

__all__ = ["GaussNewton", "Hessian"]
