"""Arguments that cannot be used are refused by name, before anything is trained."""

import numpy as np
import pytest

from keras_influence import evaluation
from tests.retraining import least_squares

BAD = {
    "indices range": ("leave_one_out", {"indices": [40]}, ValueError, "`indices`"),
    "indices kind": ("leave_one_out", {"indices": [0.5]}, TypeError, "`indices`"),
    "scores shape": (
        "leave_one_out",
        {"indices": [0], "scores": np.ones((3, 4))},
        ValueError,
        "`scores`",
    ),
    "scores nan": ("removal_curve", {"scores": np.full((3, 40), np.nan)}, ValueError, "`scores`"),
    "fit": ("leave_one_out", {"indices": [0], "fit": 3}, TypeError, "`fit`"),
    "seeds none": ("leave_one_out", {"indices": [0], "seeds": ()}, ValueError, "`seeds`"),
    "seeds number": ("removal_curve", {"seeds": 3}, TypeError, "`seeds`"),
    "seeds twice": ("removal_curve", {"seeds": (1, 1)}, ValueError, "`seeds`"),
    "tol": ("leave_one_out", {"indices": [0], "tol": 0}, ValueError, "`tol`"),
    "max_iter": ("leave_one_out", {"indices": [0], "max_iter": 0}, ValueError, "`max_iter`"),
    "proximal": ("leave_one_out", {"indices": [0], "proximal": -1}, ValueError, "`proximal`"),
    "proximal fit": (
        "leave_one_out",
        {"indices": [0], "proximal": 1.0, "fit": least_squares},
        ValueError,
        "`proximal`",
    ),
    "target": ("leave_one_out", {"indices": [0], "target": 1}, TypeError, "`target`"),
    "unknown": ("leave_one_out", {"indices": [0], "dampng": 1}, TypeError, "`damping`"),
    "class_weight": ("removal_curve", {"class_weight": [1]}, TypeError, "`class_weight`"),
    "variables": ("leave_one_out", {"indices": [0], "variables": 3}, TypeError, "`variables`"),
    "no matrix": ("subset_outputs", {"damping": 0.1}, TypeError, "`damping` is an unexpected"),
    "verify tol": ("verify", {"tol": 0}, ValueError, "`tol`"),
    "damping": ("verify", {"damping": -1}, ValueError, "`damping`"),
    "removals": ("verify", {"removals": -1}, ValueError, "`removals`"),
    "verbose": ("leave_one_out", {"indices": [0], "verbose": 7}, ValueError, "`verbose`"),
    "counts kind": ("removal_curve", {"counts": [0.5]}, TypeError, "`counts`"),
    "counts range": ("removal_curve", {"counts": [40]}, ValueError, "`counts`"),
    "repeats": ("removal_curve", {"repeats": 0}, ValueError, "`repeats`"),
    "fraction": ("subset_outputs", {"fraction": 1.0}, ValueError, "`fraction`"),
    "subsets": ("subset_outputs", {"subsets": 1}, ValueError, "`subsets`"),
    "wrong": ("mislabel_curve", {"wrong": [50]}, ValueError, "`wrong`"),
    "rankings": ("mislabel_curve", {"wrong": [0], "rankings": {"a": [1]}}, ValueError, "`rankings"),
    "rankings kind": ("mislabel_curve", {"wrong": [0], "rankings": [1]}, TypeError, "`rankings`"),
    "planted fraction": ("mislabel_curve", {"fraction": 0}, ValueError, "`fraction`"),
}


@pytest.mark.parametrize(("name", "options", "error", "words"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused(ridge, name, options, error, words):
    model, train, test = ridge
    arguments = (train,) if name == "mislabel_curve" else (test, train)
    with pytest.raises(error, match=words):
        getattr(evaluation, name)(model, *arguments, **{"verbose": 0, **options})
