"""Plans: what is tried, in which order, and what is said when one hands over to the next."""

import dataclasses
import warnings

import keras
import numpy as np
import pytest

import keras_influence as ki
from keras_influence import CG, EKFAC, Direct
from keras_influence.engine.layers.network import Network
from keras_influence.engine.problem import Problem
from keras_influence.errors import (
    DivergenceError,
    NegativeCurvatureError,
    SingularError,
    SolverError,
)
from keras_influence.questions.attempts import first_answer
from keras_influence.questions.plan import Plan
from keras_influence.questions.plans import plans_for
from keras_influence.questions.settings import Settings
from tests import truth
from tests.questions.models import example_gradients, gauss_newton, network


class Fake:
    """Stands in for a `Problem` where no solve is made."""

    facts = train = None

    def curvature(self, name, group, facts, doubtful):
        return name


HESSIAN = Plan("hessian", CG(), 0.1, "said before", definite=True)
GAUSS_NEWTON = Plan("gauss_newton", CG(), 0.1, "said before")


def _plans(**settings):
    problem = Settings.of(settings).problem(truth.softmax_model(4, 3), _data())
    return plans_for(problem, Settings.of(settings), count=2)


def _data(n=20, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4)), rng.integers(0, 3, n)


def test_what_was_tried_is_not_advised():
    """Gauss-Newton, where the Hessian after it is negative too; else it is."""

    def question(attempt):
        raise NegativeCurvatureError(-2.0 if attempt.plan.curvature == "hessian" else -1.0, "CG")

    with pytest.warns(ki.CurvatureWarning), pytest.raises(NegativeCurvatureError) as tried:
        first_answer(Fake(), (GAUSS_NEWTON, HESSIAN), question, factor=object())
    with pytest.raises(NegativeCurvatureError) as alone:
        first_answer(Fake(), (HESSIAN,), question, factor=object())
    for error in (tried, alone):
        assert "raise `damping` by more than 2;" in str(error.value)
        assert "method='minres'" in str(error.value)
    assert "Two ways out" in str(tried.value) and "gauss_newton" not in str(tried.value)
    assert "Three ways out" in str(alone.value) and "gauss_newton" in str(alone.value)


def test_no_other_curvature_is_tried_where_the_damping_is_lost_to_rounding():
    asked = []

    def question(attempt):
        asked.append(attempt.plan.curvature)
        raise SingularError(-1e-9, 1e-7, "CG")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SolverError, match="Set `damping` to more than that"):
            first_answer(Fake(), (GAUSS_NEWTON, HESSIAN), question, factor=object())
    assert asked == ["gauss_newton"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"curvature": "hessian"}, [("hessian", False)]),
        ({"curvature": "gauss_newton"}, [("gauss_newton", False)]),
        ({"curvature": "auto"}, [("gauss_newton", True), ("hessian", False)]),
        ({"curvature": "auto", "method": EKFAC()}, [("gauss_newton", False)]),
        ({"curvature": "hessian", "method": EKFAC()}, [("hessian", False)]),
    ],
)
def test_the_curvatures_that_are_tried(settings, expected):
    assert [(p.curvature, p.definite) for p in _plans(**settings)] == expected


def test_plans_share_solver_damping_and_reason():
    first, second = _plans(damping="auto")
    assert type(first.solver) is Direct
    assert first.solver is second.solver
    assert first.damping == second.damping > 0
    assert first.reason == second.reason
    assert "mean eigenvalue" in first.reason
    assert "auto: 15 parameters" in first.reason


def test_a_plan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        HESSIAN.damping = 2.0


def test_the_whole_question_is_asked_again():
    """What was answered before a plan failed is thrown away, not mixed with what follows."""
    asked = []

    def question(attempt):
        blocks = []
        for block in range(3):
            asked.append((attempt.plan.curvature, block))
            if attempt.plan.curvature == "hessian" and block == 1:
                raise SolverError("block 1 has no answer.")
            blocks.append(attempt.plan.curvature)
        return blocks

    with pytest.warns(ki.CurvatureWarning, match="uses Gauss-Newton: block 1 has no answer. Ch"):
        answer, (plan, *rest) = first_answer(Fake(), (HESSIAN, GAUSS_NEWTON), question)
    assert answer == ["gauss_newton"] * 3
    assert asked == [("hessian", 0), ("hessian", 1), *(("gauss_newton", b) for b in range(3))]
    assert plan.reason == "said before; curvature: Gauss-Newton, because block 1 has no answer"
    assert rest == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ki.NegativeCurvatureError(-0.3, "CG"), "Gauss-Newton: CG met negative curvature. Choose"),
        (DivergenceError("CG ended in NaN: lower it."), "CG ended in NaN: lower it. Choose"),
    ],
)
def test_the_warning_says_what_was_found_without_advice_for_another_curvature(error, words):
    def question(attempt):
        if attempt.plan.curvature == "hessian":
            raise error

    with pytest.warns(ki.CurvatureWarning, match=words):
        first_answer(Fake(), (HESSIAN, GAUSS_NEWTON), question)


def test_the_last_plan_fails_with_its_own_error():
    def question(attempt):
        raise SolverError(f"no answer with {attempt.plan.curvature}")

    with (
        pytest.warns(ki.CurvatureWarning),
        pytest.raises(SolverError, match="no answer with gauss_newton"),
    ):
        first_answer(Fake(), (HESSIAN, GAUSS_NEWTON), question)


def test_errors_of_other_kinds_are_not_caught():
    def question(attempt):
        raise ValueError("a bad argument")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="a bad argument"):
            first_answer(Fake(), (HESSIAN, GAUSS_NEWTON), question)


def test_a_factor_belongs_to_the_first_plan_alone():
    seen = []

    def question(attempt):
        seen.append(attempt.factor)
        if attempt.plan.curvature == "hessian":
            raise SolverError("none")

    with pytest.warns(ki.CurvatureWarning):
        first_answer(Fake(), (HESSIAN, GAUSS_NEWTON), question, factor="kept")
    assert seen == ["kept", None]


# ---- with solves


@pytest.fixture
def saddle():
    """A network whose Hessian has negative eigenvalues, with its exact Gauss-Newton answers."""
    model, data = network(), _data()
    hessian = truth.finite_difference_hessian(model, *data, 1e-3)
    assert np.linalg.eigvalsh(hessian)[0] < -1e-3
    g = example_gradients(model, *data)
    matrix = gauss_newton(model, data[0]) + 1e-3 * np.eye(43)
    return model, data, g @ np.linalg.solve(matrix, g.T)


def test_auto_is_gauss_newton_without_a_word(saddle):
    """Also where the Hessian is indefinite, and in blocks of any size."""
    model, data, exact = saddle
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = ki.influence(model, data, data, damping=1e-3, method="direct", verbose=0)
        own = ki.self_influence(model, data, damping=1e-3, method="direct", verbose=0)
    assert scores.curvature == "gauss_newton"
    assert scores.reason == ""
    assert truth.relative_error(scores.values, exact / 20) < 1e-5
    assert truth.relative_error(own, np.diag(exact)) < 1e-5


def test_without_convexity_the_hessian_answers_and_it_is_said():
    """A redescending loss has no Gauss-Newton matrix."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", lambda y, z: keras.ops.mean(keras.ops.tanh((y - z) ** 2), axis=-1))
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 4)), rng.normal(size=(20, 1))
    hessian = truth.finite_difference_hessian(model, x, y, 1e-3)
    g = np.array([truth.gradient(model, x[[i]], y[[i]]) for i in range(20)])
    exact = g[:3] @ np.linalg.solve(hessian + 2 * np.eye(5), g.T) / 20
    with pytest.warns(
        ki.CurvatureWarning, match="uses the Hessian: the loss .* not convex"
    ) as caught:
        scores = ki.influence(model, (x[:3], y[:3]), (x, y), damping=2.0, method="cg", verbose=0)
    (warning,) = [w for w in caught if w.category is ki.CurvatureWarning]
    assert warning.filename == __file__
    assert scores.curvature == "hessian"
    # No damping would make it defined.
    assert "damping" not in str(warning.message)
    assert "curvature: the Hessian, because" in scores.reason
    assert truth.relative_error(scores.values, exact) < 1e-5


def test_what_stands_in_takes_a_step_before_anything_is_made_for_it(monkeypatch):
    """So that a Hessian that is not definite is said to be so without what layers take to trace."""
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(8, "tanh")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile("sgd", lambda y, z: keras.ops.mean(keras.ops.tanh((y - z) ** 2), axis=-1))
    rng = np.random.default_rng(1)
    data, asked = (rng.normal(size=(20, 4)), 3 * rng.normal(size=(20, 1))), []
    for name in ("kronecker", "contributions"):
        monkeypatch.setattr(Network, name, lambda *about: asked.append(about))
    with pytest.warns(ki.CurvatureWarning), pytest.raises(ki.SolverError, match="CG met negative"):
        ki.influence(model, data, data, damping=1e-3, method="cg", verbose=0)
    assert not asked


def test_a_solver_of_indefinite_systems_is_not_held_to_definite_ones_where_one_is_asked(saddle):
    model, data, _ = saddle
    hessian = truth.finite_difference_hessian(model, *data, 1e-3)
    g = example_gradients(model, *data)
    exact = g @ np.linalg.solve(hessian + 1e-3 * np.eye(43), g.T) / 20
    scores = ki.influence(
        model, data, data, damping=1e-3, method=ki.MINRES(tol=1e-11), curvature="hessian"
    )
    assert scores.curvature == "hessian"
    assert truth.relative_error(scores.values, exact) < 1e-4


@pytest.mark.parametrize("method", ["auto", "direct"])
def test_the_answer_of_a_saddle_is_said_to_be_one(saddle, method):
    """Of so few weights the matrix is written out, and there is an answer."""
    model, data, _ = saddle
    hessian = truth.finite_difference_hessian(model, *data, 1e-3)
    g = example_gradients(model, *data)
    about = {"damping": 1e-3, "curvature": "hessian", "method": method, "verbose": 0}
    with pytest.warns(ki.CurvatureWarning, match="the Hessian plus damping .* saddle") as caught:
        scores = ki.influence(model, data, data, **about)
    assert len(caught) == 1 and "gauss_newton" in str(caught[0].message)
    exact = g @ np.linalg.solve(hessian + 1e-3 * np.eye(43), g.T) / 20
    assert truth.relative_error(scores.values, exact) < 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ki.influence(model, data, data, **{**about, "damping": 1.0})


def test_a_saddle_where_gauss_newton_is_not_defined_is_said_to_be_one():
    """A redescending loss: the Hessian stands in, and `curvature="gauss_newton"` is no advice."""
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(8, "tanh")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile("sgd", lambda y, z: keras.ops.mean(keras.ops.tanh((y - z) ** 2), axis=-1))
    rng = np.random.default_rng(1)
    data = rng.normal(size=(20, 4)), 3 * rng.normal(size=(20, 1))
    with pytest.warns(ki.CurvatureWarning) as caught:
        ki.influence(model, data, data, damping=1e-3, verbose=0)
    (said,) = [str(w.message) for w in caught if "saddle" in str(w.message)]
    assert "gauss_newton" not in said


def test_automatic_damping_is_a_tenth_of_the_mean_eigenvalue():
    data = _data(40)
    model = truth.softmax_model(4, 3, 0.5)
    closed = truth.SoftmaxRegression(*data, 3, 0.5)
    mean = np.trace(closed.hessian(truth.get_flat(model))) / 15
    scores = ki.influence(model, data, data, damping="auto")
    # Ten random vectors: the trace of a 15 x 15 matrix is known to a few per cent.
    assert scores.damping == pytest.approx(0.1 * mean, rel=0.2)
    assert "mean eigenvalue" in scores.reason


def test_automatic_damping_outweighs_a_negative_eigenvalue(saddle):
    model, data, _ = saddle
    hessian = truth.finite_difference_hessian(model, *data, 1e-3)
    smallest = np.linalg.eigvalsh(hessian)[0]
    scores = ki.influence(model, data, data, damping="auto", curvature="hessian", method="direct")
    assert -smallest < scores.damping < 2 * np.abs(smallest) + 0.1
    g = example_gradients(model, *data)
    exact = g @ np.linalg.solve(hessian + scores.damping * np.eye(43), g.T) / 20
    assert truth.relative_error(scores.values, exact) < 1e-4
    assert "most negative one" in scores.reason


def test_what_layers_add_is_left_out_where_it_makes_gauss_newton_negative():
    """A penalty that falls with the activity has a negative Hessian; the loss has none."""

    class Reward(keras.layers.Layer):
        def call(self, z):
            self.add_loss(-5 * keras.ops.mean(keras.ops.square(z)))
            return z

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Reward()(keras.layers.Dense(1, use_bias=False)(inputs)))
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 1))
    with pytest.warns(ki.CurvatureWarning, match="without what layers add by add_loss"):
        scores = ki.influence(model, (x[:2], y[:2]), (x, y), damping=0.1, method="cg", verbose=0)
    g = np.array([truth.gradient(model, x[[i]], y[[i]]) for i in range(30)])
    exact = g[:2] @ np.linalg.solve(2 * x.T @ x / 30 + 0.1 * np.eye(4), g.T) / 30
    assert scores.curvature == "gauss_newton"
    assert truth.relative_error(scores.values, exact) < 1e-4


class Added(keras.layers.Layer):
    """All of a model's loss."""

    def call(self, z):
        self.add_loss(keras.ops.mean(keras.ops.square(z)))
        return z


def test_a_loss_that_layers_add_is_solved_without_what_layers_know(float64, rng):
    """Neither a two-level preconditioner nor contributions of examples; EK-FAC says so."""
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(30, "tanh")(inputs)
    model = keras.Model(inputs, Added()(keras.layers.Dense(1)(hidden)))
    model.compile("sgd")
    x = rng.normal(size=(40, 4))
    about = {"damping": 3.0, "curvature": "hessian", "verbose": 0}
    exact = ki.influence(model, (x[:2],), (x,), method="direct", **about)
    found = ki.influence(model, (x[:2],), (x,), method=ki.CG(1e-8), **about)
    assert truth.relative_error(found.values, exact.values) < 1e-6
    network = Problem(model, (x,)).curvature("hessian").network
    assert not network.layers_are_worth_it() and network.contributions_worth_it() is None
    with pytest.raises(ki.SolverError, match="added by its layers.*nystrom"):
        ki.influence(model, (x[:2],), (x,), method="ekfac", **about)


def test_where_gauss_newton_is_not_defined_none_of_its_forms_is_tried():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Added()(keras.layers.Dense(1, use_bias=False)(inputs)))
    model.compile("sgd")
    x = np.random.default_rng(0).normal(size=(30, 4))
    with pytest.warns(ki.CurvatureWarning, match="uses the Hessian.*add_loss") as caught:
        scores = ki.influence(model, (x[:2],), (x,), damping=0.1, method="direct", verbose=0)
    assert len([w for w in caught if w.category is ki.CurvatureWarning]) == 1
    g = 2 * (x @ model.get_weights()[0]) * x
    exact = g[:2] @ np.linalg.solve(2 * x.T @ x / 30 + 0.1 * np.eye(4), g.T) / 30
    assert scores.curvature == "hessian"
    assert truth.relative_error(scores.values, exact) < 1e-6
