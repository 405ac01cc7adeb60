"""Explainer: every question of a curvature that is factorised once, saved and loaded."""

import copy
import json
import os
import pickle
import stat

import keras
import numpy as np
import pytest

import keras_influence as ki
from keras_influence import CG, EKFAC, Arnoldi, Auto, LiSSA, Nystrom, StaleError
from tests import truth
from tests.questions.conftest import N
from tests.questions.models import example_gradients, gauss_newton, network
from tests.truth import L2

WIDTH, SIZE = 4, 35


def model_of():
    return network(WIDTH, L2, cls=ki.InfluenceModel, seed=3)


def classifier():
    keras.utils.set_random_seed(3)
    return truth.softmax_model(4, 3, L2, ki.InfluenceModel)


# Each of them exact for a matrix of this size, with its error.
EXACT = [
    ("direct", 1e-9),
    (CG(tol=1e-10), 1e-8),
    (CG(tol=1e-10, preconditioner=Nystrom(8)), 1e-8),
    (CG(tol=1e-10, preconditioner=EKFAC()), 1e-8),
    (Nystrom(SIZE, tol=10.0), 1e-6),
    (Arnoldi(SIZE), 1e-8),
    (LiSSA(tol=1e-7), 1e-5),
]


@pytest.mark.parametrize(("method", "error"), EXACT, ids=[str(m) for m, _ in EXACT])
def test_answers_are_exact_before_and_after_a_file(method, error, train, test, tmp_path):
    """Against the Gauss-Newton matrix written out without the library."""
    model = model_of()
    a = gauss_newton(model, train[0], L2) + 0.1 * np.eye(SIZE)
    g, g_test = example_gradients(model, *train), example_gradients(model, *test)
    explainer = model.explainer(train, method=method, damping=0.1, curvature="gauss_newton")
    explainer.save(tmp_path / "factor.npz")
    loaded = model.load_explainer(train, tmp_path / "factor.npz")
    assert repr(loaded) == repr(explainer)
    v = np.linspace(-1, 1, SIZE)
    for one in (explainer, loaded):
        values = one.influence(test).values
        assert truth.relative_error(values, g_test @ np.linalg.solve(a, g.T) / N) < error
        own = np.einsum("ni,in->n", g, np.linalg.solve(a, g.T))
        assert truth.relative_error(one.self_influence(), own) < error
        assert truth.relative_error(one.inverse_hvp(v), np.linalg.solve(a, v)) < error
        assert truth.relative_error(one.hvp(v), a @ v) < 1e-9


def test_an_approximation_comes_back_from_a_file_with_an_honest_residual(train, test, tmp_path):
    model = model_of()
    a = gauss_newton(model, train[0], L2) + 0.1 * np.eye(SIZE)
    g, g_test = example_gradients(model, *train), example_gradients(model, *test)
    explainer = ki.Explainer(
        model, train, method="ekfac", damping=0.1, curvature="gauss_newton", batch_size=7
    )
    explainer.save(tmp_path / "factor.npz")
    loaded = ki.Explainer.load(model, train, tmp_path / "factor.npz")
    for one in (explainer, loaded):
        x = one.inverse_hvp(g_test.T)
        residual = np.linalg.norm(g_test.T - a @ x, axis=0) / np.linalg.norm(g_test, axis=1)
        scores = one.influence(test)
        assert scores.residual == pytest.approx(residual, rel=1e-6)
        assert truth.relative_error(scores.values, x.T @ g.T / N) < 1e-8
    assert 0.01 < residual.max() < 1


def test_every_question_has_its_closed_form(train, test):
    """A softmax regression: the Hessian, and all that follows from it, in NumPy."""
    model = classifier()
    closed, theta = truth.SoftmaxRegression(*train, 3, L2), truth.get_flat(model)
    unseen = truth.SoftmaxRegression(*test, 3, 0.0)
    a = closed.hessian(theta) + 0.1 * np.eye(15)
    g, g_test = closed.example_gradients(theta), unseen.example_gradients(theta)
    explainer = ki.Explainer(model, train, method="direct", damping=0.1, batch_size=7)
    assert (explainer.curvature, explainer.damping) == ("gauss_newton", 0.1)
    assert type(explainer.method) is ki.Direct

    group = np.array([3, 4, 11, 30])
    step = np.linalg.solve(a, g[group].sum(0) / N)
    found = explainer.group_influence(test, [group])
    assert truth.relative_error(found[:, 0], g_test @ step) < 1e-8
    change = explainer.parameter_influence(group)
    assert truth.relative_error(np.concatenate([c.ravel() for c in change]), step) < 1e-6

    part = truth.SoftmaxRegression(train[0][group], train[1][group], 3, 0.0).hessian(theta)
    newton = np.linalg.solve(a - part * len(group) / N, g[group].sum(0) / N)
    found = explainer.group_influence(test, [group], order=2)
    assert truth.relative_error(found[:, 0], g_test @ newton) < 1e-8
    change = explainer.parameter_influence(group, order=2)
    assert truth.relative_error(np.concatenate([c.ravel() for c in change]), newton) < 1e-6

    some = explainer.self_influence(indices=[9, 2])
    own = np.einsum("ni,in->n", g, np.linalg.solve(a, g.T))
    assert truth.relative_error(some, own[[9, 2]]) < 1e-8
    assert truth.relative_error(explainer.losses(), closed.losses(theta)) < 1e-9
    assert truth.relative_error(explainer.losses(test), unseen.losses(theta)) < 1e-9

    x = np.linalg.solve(a, g_test.T).T
    moved = np.einsum("tfc,nc->tnf", x.reshape(5, 5, 3)[:, :4], _residuals(closed, theta))
    weights = theta.reshape(5, 3)[:4]
    p = truth.softmax(closed.x @ theta.reshape(5, 3))
    through = np.einsum("nf,tfc->tnc", closed.x, x.reshape(5, 5, 3))
    inner = p * (through - (p * through).sum(-1, keepdims=True))
    exact = (moved + inner @ weights.T) / N
    found = explainer.input_influence(test, indices=[5, 0])
    assert truth.relative_error(found, exact[:, [5, 0]]) < 1e-8


def _residuals(closed, theta):
    return truth.softmax(closed.x @ theta.reshape(5, 3)) - closed.y


def test_what_is_prepared_is_not_computed_again(train, test, tmp_path, monkeypatch):
    model = model_of()
    options = {"method": Nystrom(20), "damping": 0.1, "curvature": "gauss_newton"}
    explainer = ki.Explainer(model, train, **options)
    explainer.save(tmp_path / "factor.npz")
    loaded = ki.Explainer.load(model, train, tmp_path / "factor.npz")

    def refuse(*_):
        raise AssertionError("factorised again")

    monkeypatch.setattr(Nystrom, "factorise", refuse)
    for one in (explainer, loaded):
        assert one.influence(test).passes == 1  # The certificate alone.
        assert one.inverse_hvp(np.ones(SIZE)).shape == (SIZE,)


def test_auto_says_its_choice_in_the_scores(train, test):
    narrow, wide = network(5), network(250)
    scores = ki.influence(narrow, test, train, method=Auto(budget=0), curvature="gauss_newton")
    assert scores.solver["class_name"] == "Direct"
    scores = ki.influence(wide, test, train, method=Auto(budget=0))
    assert scores.solver["class_name"] == "EKFAC"
    assert scores.curvature == "gauss_newton"
    assert "more than the 0 of the budget" in scores.reason
    scores = ki.influence(wide, test, train, method="auto", curvature="gauss_newton")
    assert scores.solver["class_name"] == "CG"
    assert scores.converged.all()


# ---- what was decided


@pytest.mark.parametrize("method", [CG(tol=1e-9), "direct"], ids=str)
def test_the_choice_of_a_curvature_is_made_and_saved_once(method, train, test, tmp_path, recwarn):
    """This Hessian is indefinite, and Gauss-Newton is asked for it from the start."""
    model = model_of()
    a = gauss_newton(model, train[0], L2) + 1e-3 * np.eye(SIZE)
    g, g_test = example_gradients(model, *train), example_gradients(model, *test)
    exact = g_test @ np.linalg.solve(a, g.T) / N
    explainer = ki.Explainer(model, train, method=method, damping=1e-3)
    explainer.save(tmp_path / "factor.npz")
    recwarn.clear()
    loaded = ki.Explainer.load(model, train, tmp_path / "factor.npz")
    for one in (explainer, loaded):
        scores = one.influence(test)
        assert one.curvature == scores.curvature == "gauss_newton"
        assert truth.relative_error(scores.values, exact) < 1e-6
    assert not [w for w in recwarn if w.category is ki.CurvatureWarning]


def test_a_curvature_is_kept_by_a_file(train, test, tmp_path):
    model = model_of()
    ki.Explainer(model, train, method="cg", damping=5.0, curvature="hessian").save(
        tmp_path / "factor.npz"
    )
    loaded = ki.Explainer.load(model, train, tmp_path / "factor.npz")
    assert loaded.curvature == loaded.influence(test).curvature == "hessian"


def test_nothing_of_it_changes_by_questions(train, test):
    explainer = ki.Explainer(model_of(), train, damping=5.0)
    before = explainer._case, explainer._case.plans, explainer._case.factor
    problem = dict(vars(explainer._case.problem))
    explainer.influence(test)
    explainer.self_influence()
    explainer.group_influence(test, [[1, 2]], order=2)
    assert (explainer._case, explainer._case.plans, explainer._case.factor) == before
    assert vars(explainer._case.problem) == problem


# ---- files


def test_it_remembers_its_variables_and_class_weights(train, test, tmp_path):
    model, weights = model_of(), {0: 2.0, 1: 0.5}
    head = model.get_layer("head")
    features = keras.Model(model.inputs, model.get_layer("hidden").output)
    s = np.array([weights.get(label, 1.0) for label in train[1]])
    closed = truth.SoftmaxRegression(features(train[0]).numpy(), train[1], 3, L2, s)
    unseen = truth.SoftmaxRegression(features(test[0]).numpy(), test[1], 3, 0.0)
    theta = truth.get_flat(model)[20:]
    a = closed.hessian(theta) + 0.1 * np.eye(15)
    g = s[:, None] * closed.example_gradients(theta)
    exact = unseen.example_gradients(theta) @ np.linalg.solve(a, g.T) / N
    options = {"method": "direct", "damping": 0.1, "variables": head, "class_weight": weights}
    ki.Explainer(model, train, **options).save(tmp_path / "head.npz")
    loaded = ki.Explainer.load(model, train, tmp_path / "head.npz", class_weight=weights)
    scores = loaded.influence(test)
    assert scores.parameters == ("head/kernel", "head/bias")
    assert truth.relative_error(scores.values, exact) < 1e-8
    with pytest.raises(StaleError, match="training data have changed"):
        ki.Explainer.load(model, train, tmp_path / "head.npz")


@pytest.mark.parametrize("name", ["s", "s.npz", "run.1"])
def test_a_file_is_found_by_the_name_it_was_given(name, train, tmp_path):
    model = classifier()
    explainer = model.explainer(train, method="direct")
    explainer.save(tmp_path / name)
    assert repr(model.load_explainer(train, tmp_path / name)) == repr(explainer)


def test_a_file_of_an_older_form_is_refused(train, tmp_path):
    model, path = classifier(), tmp_path / "factor.npz"
    model.explainer(train, method="ekfac").save(path)
    with np.load(path) as file:
        arrays = dict(file)
    settings = json.loads(str(arrays["settings"]))
    del settings["form"]
    np.savez(path, **arrays | {"settings": np.array(json.dumps(settings))})
    with pytest.raises(StaleError, match=r"form of such files has changed.*Make it again"):
        model.load_explainer(train, path)


def test_positions_that_follow_one_another_take_no_room_in_a_file(tmp_path):
    """What is there is two bases and the eigenvalues of each layer."""
    body = [keras.layers.Dense(50, "relu"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((60,)), *body])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    train = rng.normal(size=(200, 60)).astype("float32"), rng.integers(0, 3, 200)
    ki.Explainer(model, train, method="ekfac").save(tmp_path / "factor.npz")
    with np.load(tmp_path / "factor.npz") as file:
        numbers = sum(file[name].size for name in file.files if name != "settings")
    assert numbers == 61**2 + 50**2 + 61 * 50 + 51**2 + 3**2 + 51 * 3


def test_a_file_has_the_mode_of_any_new_file(train, tmp_path):
    before = os.umask(0o027)
    try:
        classifier().explainer(train, method="direct").save(tmp_path / "factor.npz")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "factor.npz").stat().st_mode) == 0o640


def test_numpy_numbers_as_options_are_saved(train, test, tmp_path):
    model = classifier()
    method = CG(tol=np.float64(1e-9), max_iter=np.int64(500))
    model.explainer(train, method=method, damping=np.float32(0.5)).save(tmp_path / "s")
    loaded = model.load_explainer(train, tmp_path / "s")
    assert loaded.method.get_config()["config"]["tol"] == 1e-9
    assert loaded.damping == 0.5


def _other_weights(model, x, y):
    model.layers[-1].bias.assign_add([0.1, 0, 0])
    return model, (x, y)


def _other_data(model, x, y):
    return model, (x[::-1], y)


def _other_labels(model, x, y):
    return model, (x, (y + 1) % 3)


def _other_loss(model, x, y):
    model.compile("sgd", lambda t, p: 2 * keras.losses.sparse_categorical_crossentropy(t, p))
    return model, (x, y)


def _other_reduction(model, x, y):
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(reduction="sum"))
    return model, (x, y)


def _other_regulariser(model, x, y):
    model.layers[-1].kernel_regularizer.l2 = 3 * L2
    return model, (x, y)


def _frozen(model, x, y):
    model.layers[-1].trainable = False
    return model, (x, y)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_weights, "weights have changed"),
        (_other_data, "training data have changed"),
        (_other_labels, "training data have changed"),
        (_other_loss, "loss or the architecture has changed"),
        (_other_reduction, "loss or the architecture has changed"),
        (_other_regulariser, "a regulariser.*has changed"),
        (_frozen, "lost trainable variables"),
    ],
)
def test_a_stale_file_is_refused(change, words, train, tmp_path):
    model = classifier()
    model.explainer(train, method="direct").save(tmp_path / "factor.npz")
    model, train = change(model, *train)
    with pytest.raises(StaleError, match=words):
        model.load_explainer(train, tmp_path / "factor.npz")


def test_a_stale_object_is_refused(train, test):
    model = classifier()
    explainer = model.explainer(train, method="direct")
    model.fit(*train, verbose=0)
    for question in (
        lambda: explainer.influence(test),
        lambda: explainer.self_influence(),
        lambda: explainer.group_influence(test, [[0]]),
        lambda: explainer.parameter_influence([0]),
        lambda: explainer.input_influence(test),
        lambda: explainer.hvp(np.ones(15)),
        lambda: explainer.inverse_hvp(np.ones(15)),
        lambda: explainer.losses(),
        lambda: explainer.save("unused"),
    ):
        with pytest.raises(StaleError, match=r"weights have changed.*Explainer\(model, train"):
            question()


def _compiled_anew(model):
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(), loss_weights=3.0)


def _another_activation(model):
    model.get_layer("hidden").activation = keras.activations.relu


def _another_regulariser(model):
    model.layers[-1].kernel.regularizer = keras.regularizers.L2(0.5)


def _a_frozen_layer(model):
    model.get_layer("hidden").trainable = False


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_compiled_anew, "the model was compiled anew"),
        (_another_activation, "the loss or the architecture has changed"),
        (_another_regulariser, "a regulariser"),
        (_a_frozen_layer, "other weights are trainable"),
    ],
)
def test_an_object_whose_model_changed_is_refused(change, words, asked, train, test):
    """Its weights are as they were, and it may have answered before."""
    model = network.fresh(WIDTH, L2, cls=ki.InfluenceModel, seed=3)
    explainer = model.explainer(train, method="direct", damping=0.1)
    if asked:
        explainer.influence(test)
    change(model)
    with pytest.raises(StaleError, match=rf"{words}.*Explainer\(model, train"):
        explainer.influence(test)


def test_a_file_of_another_kind_is_refused(train, tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match=r"written by Explainer.save.*other.npz"):
        classifier().load_explainer(train, tmp_path / "other.npz")


@pytest.mark.parametrize("way", [pickle.dumps, copy.deepcopy])
def test_it_is_kept_by_a_file_alone(way, train, tmp_path):
    explainer = classifier().explainer(train, method="direct")
    with pytest.raises(TypeError, match=r"`explainer.save\(path\)`.*`Explainer.load\(model"):
        way(explainer)
    with pytest.raises(
        FileNotFoundError, match="`path` should be a file written by Explainer.save"
    ):
        classifier().load_explainer(train, tmp_path / "nowhere")


def test_scores_are_no_explainer(train, test, tmp_path):
    model = classifier()
    model.influence(test, train).save(tmp_path / "scores.npz")
    with pytest.raises(ValueError, match=r"written by Explainer.save.*scores.npz"):
        model.load_explainer(train, tmp_path / "scores.npz")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused_by_name(share, train, tmp_path):
    model, path = classifier(), tmp_path / "factor.npz"
    model.explainer(train, method="direct").save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"written by Explainer.save.*factor.npz"):
        model.load_explainer(train, path)


def test_a_failed_save_leaves_the_old_file(train, tmp_path, monkeypatch):
    model = classifier()
    path = tmp_path / "factor.npz"
    model.explainer(train, method="direct").save(path)
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        model.explainer(train, method="direct", damping=1.0).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["factor.npz"]
