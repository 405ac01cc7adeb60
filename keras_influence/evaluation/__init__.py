"""Are the scores true? Each question is answered by training models again.

    leave_one_out    predicted against actual change of test losses, example by example
    subset_outputs   the outputs of models trained on random subsets, kept in a folder
    lds              linear datamodelling score of any attribution matrix against those
    mislabel_curve   wrong labels found against labels checked
    removal_curve    what taking out the strongest proponents does, against random ones
    verify           a short check of one's own model, with a verdict in words

The user's model is never trained or assigned to: all training happens on copies.
"""

from keras_influence.evaluation.datamodels import LDS, lds
from keras_influence.evaluation.left_out import LeaveOneOut, leave_one_out
from keras_influence.evaluation.mislabelled import MislabelCurve, mislabel_curve, plant_wrong_labels
from keras_influence.evaluation.removal import RemovalCurve, removal_curve
from keras_influence.evaluation.subsets import SubsetOutputs, subset_outputs
from keras_influence.evaluation.verification import Verification, verify

__all__ = [
    "LDS",
    "LeaveOneOut",
    "MislabelCurve",
    "RemovalCurve",
    "SubsetOutputs",
    "Verification",
    "leave_one_out",
    "lds",
    "mislabel_curve",
    "plant_wrong_labels",
    "removal_curve",
    "subset_outputs",
    "verify",
]
