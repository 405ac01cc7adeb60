"""Models of random subsets against closed forms, and a folder that resumes."""

import json

import numpy as np
import pytest

from keras_influence import evaluation
from tests import truth
from tests.retraining import Counted, least_squares, ridge_losses
from tests.truth import L2


def test_subset_outputs_are_those_of_models_of_the_subsets(ridge):
    model, train, test = ridge
    for fit in (None, least_squares):
        found = evaluation.subset_outputs(
            model, test, train, fit=fit, subsets=3, seeds=(0, 1), tol=1e-8, verbose=0
        )
        assert found.outputs.shape == (3, 1 if fit is None else 2, 3)
        assert (found.masks.sum(1) == 20).all()
        assert len(np.unique(found.masks, axis=0)) == 3
        for mask, outputs in zip(found.masks, found.outputs):
            expected = ridge_losses(tuple(t[mask] for t in train), test)
            assert truth.relative_error(outputs[0], expected) < 1e-5


def test_subset_outputs_resume(ridge, tmp_path):
    model, train, test = ridge
    settings = {"subsets": 4, "seeds": (0, 1), "verbose": 0}
    whole = evaluation.subset_outputs(model, test, train, fit=Counted(), **settings)
    cut = Counted(fail_at=6)
    with pytest.raises(RuntimeError, match="power cut"):
        evaluation.subset_outputs(model, test, train, fit=cut, folder=tmp_path, **settings)
    rest = Counted()
    resumed = evaluation.subset_outputs(model, test, train, fit=rest, folder=tmp_path, **settings)
    assert rest.calls == 8 - 5
    assert (resumed.outputs == whole.outputs).all()
    assert (resumed.masks == whole.masks).all()
    again = Counted()
    more = evaluation.subset_outputs(
        model, test, train, fit=again, folder=tmp_path, subsets=5, seeds=(0, 1), verbose=0
    )
    assert again.calls == 2
    assert (more.outputs[:4] == whole.outputs).all()
    assert not list(tmp_path.glob("*.partial"))


def test_seeds_matter_and_repeat(ridge):
    model, train, test = ridge
    found = evaluation.subset_outputs(
        model, test, train, fit=Counted(), subsets=2, seeds=(0, 1), verbose=0
    ).outputs
    again = evaluation.subset_outputs(
        model, test, train, fit=Counted(), subsets=2, seeds=(1, 0), verbose=0
    ).outputs
    assert (found == again[:, ::-1]).all()
    assert (found[:, 0] != found[:, 1]).all()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("train", "train"),
        ("fraction", "fraction"),
        ("seed", "seed"),
        ("model", "model"),
        ("fit", "fit"),
        ("target", "target"),
        ("test", "test"),
    ],
)
def test_a_folder_of_other_settings_is_refused(ridge, tmp_path, change, word):
    model, train, test = ridge
    settings = {"fit": least_squares, "subsets": 2, "seeds": (0,), "folder": tmp_path, "verbose": 0}
    evaluation.subset_outputs(model, test, train, **settings)
    if change == "train":
        train = (train[0] + 1, train[1])
    elif change == "test":
        test = (test[0] + 1, test[1])
    elif change == "model":
        model = truth.ridge_model(4, 2 * L2)
    else:
        settings[change] = {
            "fraction": 0.4,
            "seed": 1,
            "fit": Counted(),
            "target": lambda x, y, p: p[:, 0],
        }[change]
    with pytest.raises(ValueError, match=f"`folder` holds results of other settings: {word}"):
        evaluation.subset_outputs(model, test, train, **settings)


def test_a_new_model_of_the_same_kind_resumes(ridge, tmp_path):
    """Names that Keras counts up in a process are no change of the model."""
    _, train, test = ridge
    for calls in (2, 0):
        fit = Counted()
        evaluation.subset_outputs(
            truth.ridge_model(4, L2),
            test,
            train,
            fit=fit,
            subsets=2,
            seeds=(0,),
            folder=tmp_path,
            verbose=0,
        )
        assert fit.calls == calls
    assert "train" in json.loads((tmp_path / "settings.json").read_text())
