"""What is made once: choices by cost, and factorisations that are kept."""

import keras
import numpy as np
import pytest

import keras_influence as ki
from keras_influence import CG, EKFAC, Arnoldi, Auto, Direct, LiSSA, Nystrom, StaleError
from tests import truth

layers = keras.layers
N = 40


def _classifier(regulariser=1e-2, width=None):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    h = layers.Dense(width, "tanh")(inputs) if width else inputs
    l2 = keras.regularizers.L2(regulariser)
    outputs = layers.Dense(3, activation="softmax", kernel_regularizer=l2)(h)
    model = ki.InfluenceModel(inputs, outputs)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@pytest.fixture
def train(rng):
    return rng.normal(size=(N, 4)), rng.integers(0, 3, N)


@pytest.fixture
def test(rng):
    return rng.normal(size=(5, 4)), rng.integers(0, 3, 5)


# ---- method="auto"


def test_auto_says_its_choice_in_the_scores(train, test):
    model = _classifier(width=5)
    scores = model.influence(test, train, method=Auto(budget=0), curvature="gauss_newton")
    assert scores.solver["class_name"] == "Direct"
    model = _classifier(width=250)
    scores = model.influence(test, train, method=Auto(budget=0))
    assert scores.solver["class_name"] == "EKFAC"
    assert scores.curvature == "gauss_newton"
    assert "more than the budget of 0" in scores.reason
    scores = model.influence(test, train, method="auto", curvature="gauss_newton")
    assert scores.solver["class_name"] == "CG"
    assert scores.converged.all()


# ---- damping="auto"


def test_automatic_damping_is_a_tenth_of_the_mean_eigenvalue(train, test):
    model = _classifier(regulariser=0.5)
    dense = model.hvp(np.eye(15), train)
    mean = np.trace(dense) / 15
    scores = model.influence(test, train, damping="auto")
    # Ten random vectors: the trace of a 15 x 15 matrix is known to a few per cent.
    assert scores.damping == pytest.approx(0.1 * mean, rel=0.2)
    assert "mean eigenvalue" in scores.reason


def test_automatic_damping_outweighs_a_negative_eigenvalue(train):
    model = _classifier(width=6)
    smallest = np.linalg.eigvalsh(model.hvp(np.eye(51), train))[0]
    assert smallest < -1e-4
    session = ki.session.Session(model, train, damping="auto", curvature="hessian")
    assert -smallest < session.damping
    x = model.inverse_hvp(np.ones(51), train, damping="auto", method=CG(tol=1e-8))
    shifted = model.hvp(np.eye(51), train) + session.damping * np.eye(51)
    assert truth.relative_error(x, np.linalg.solve(shifted, np.ones(51))) < 1e-6


def test_a_wrong_word_for_damping(train, test):
    with pytest.raises(TypeError, match="`damping`"):
        _classifier().influence(test, train, damping="big")


# ---- prepared

METHODS = [
    Direct(),
    CG(tol=1e-10),
    CG(tol=1e-10, preconditioner=Nystrom(8)),
    Nystrom(12, tol=10.0),
    Arnoldi(6),
    EKFAC(),
    LiSSA(tol=1e-6),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_prepared_answers_as_the_model_does(method, train, test, tmp_path):
    model = _classifier(width=4)
    options = {"method": method, "damping": 0.1, "curvature": "gauss_newton"}
    expected = model.influence(test, train, **options).values
    prepared = model.prepare(train, **options)
    assert prepared.influence(test).values == pytest.approx(expected, rel=1e-9, abs=1e-12)
    path = tmp_path / "factor.npz"
    prepared.save(path)
    loaded = model.load_prepared(train, path)
    assert repr(loaded) == repr(prepared)
    again = loaded.influence(test)
    assert again.values == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert loaded.self_influence() == pytest.approx(prepared.self_influence(), rel=1e-6)


def test_what_is_prepared_is_not_computed_again(train, test, tmp_path, monkeypatch):
    model = _classifier(width=4)
    prepared = model.prepare(train, method=Nystrom(20), damping=0.1, curvature="gauss_newton")
    prepared.save(tmp_path / "factor.npz")
    loaded = model.load_prepared(train, tmp_path / "factor.npz")

    def refuse(*_):
        raise AssertionError("factorised again")

    monkeypatch.setattr(Nystrom, "factorise", refuse)
    for one in (prepared, loaded):
        assert one.influence(test).passes == 1  # The certificate alone.
        assert one.inverse_hvp(np.ones(35)).shape == (35,)


def test_prepared_remembers_its_variables(train, test, tmp_path):
    model = _classifier(width=4)
    head = model.layers[-1]
    prepared = model.prepare(train, method="direct", variables=head, curvature="gauss_newton")
    prepared.save(tmp_path / "head.npz")
    loaded = model.load_prepared(train, tmp_path / "head.npz")
    scores = loaded.influence(test)
    assert scores.parameters == tuple(v.path for v in head.trainable_variables)
    expected = model.influence(
        test, train, method="direct", variables=head, curvature="gauss_newton"
    )
    assert scores.values == pytest.approx(expected.values, rel=1e-9)


def _other_weights(model, x, y):
    model.layers[-1].bias.assign_add([0.1, 0, 0])
    return model, (x, y)


def _other_data(model, x, y):
    return model, (x[::-1], y)


def _other_labels(model, x, y):
    return model, (x, (y + 1) % 3)


def _other_loss(model, x, y):
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(reduction="sum"))
    model.compile("sgd", lambda t, p: 2 * keras.losses.sparse_categorical_crossentropy(t, p))
    return model, (x, y)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_weights, "weights have changed"),
        (_other_data, "training data have changed"),
        (_other_labels, "training data have changed"),
        (_other_loss, "loss or the architecture has changed"),
    ],
)
def test_a_stale_file_is_refused(change, words, train, tmp_path):
    model = _classifier()
    model.prepare(train, method="direct").save(tmp_path / "factor.npz")
    model, train = change(model, *train)
    with pytest.raises(StaleError, match=words):
        model.load_prepared(train, tmp_path / "factor.npz")


def test_a_stale_object_is_refused(train, test):
    model = _classifier()
    prepared = model.prepare(train, method="direct")
    model.fit(*train, verbose=0)
    with pytest.raises(StaleError, match="weights have changed.*prepare"):
        prepared.influence(test)


def test_a_file_of_another_kind_is_refused(train, test, tmp_path):
    model = _classifier()
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="Prepared.save"):
        model.load_prepared(train, tmp_path / "other.npz")


def test_a_failed_save_leaves_the_old_file(train, tmp_path, monkeypatch):
    model = _classifier()
    path = tmp_path / "factor.npz"
    model.prepare(train, method="direct").save(path)
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        model.prepare(train, method="direct", damping=1.0).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["factor.npz"]
