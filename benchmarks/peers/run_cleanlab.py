"""How cleanlab 2 ranks labels by how wrong they look, from out-of-fold predictions.

    ENVIRONMENTS/cleanlab/bin/python run_cleanlab.py LABELS.npz RESULT.npz

LABELS.npz has `labels` (n,) and `predictions` (n, classes) of models that did not see the example.
RESULT.npz has one array (n,) for each way to rank, largest = most suspicious.
"""

import sys

import cleanlab
import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

METHODS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")


def main(source, target):
    given = np.load(source)
    labels, predictions = given["labels"], given["predictions"]
    found = {
        method: 1 - get_label_quality_scores(labels, predictions, method=method)
        for method in METHODS
    }
    # The examples that confident learning calls wrong come before all others.
    called = find_label_issues(labels, predictions, n_jobs=1)
    found["confident_learning"] = called + found["self_confidence"]
    np.savez(target, version=np.array(cleanlab.__version__), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
