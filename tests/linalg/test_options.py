"""Solvers by name, by config and by cost, and options that are refused."""

import pytest

from keras_influence import (
    ASTRA,
    CG,
    EKFAC,
    NCG,
    Arnoldi,
    Auto,
    Direct,
    LiSSA,
    Nystrom,
    TwoLevel,
    Woodbury,
)
from keras_influence.linalg import solvers


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        ("CG", CG),
        ({"class_name": "LiSSA", "config": {"recursion_depth": 7}}, LiSSA),
        ("two_level", TwoLevel),
        ({"class_name": "TwoLevel", "config": {"rank": 7}}, TwoLevel),
        ("woodbury", Woodbury),
        (NCG(max_iter=3), NCG),
        (Direct().get_config(), Direct),
    ],
)
def test_get_takes_names_configs_and_objects(identifier, expected):
    assert type(solvers.get(identifier)) is expected


def test_config_round_trip():
    for solver in (
        LiSSA(scale=3.0, recursion_depth=10, num_samples=2, batch_size=4, seed=5),
        CG(tol=1e-3, preconditioner=Nystrom(7)),
        LiSSA(preconditioner=Nystrom(3)),
        ASTRA(pseudo_gradients=2, seed=4),
        EKFAC(pseudo_gradients=3),
        CG(preconditioner=TwoLevel(rank=7, seed=2)),
        CG(preconditioner=Woodbury(rank=7)),
    ):
        assert solvers.get(solver.get_config()).get_config() == solver.get_config()


def test_num_samples_are_runs_and_pseudo_gradients_are_those_of_ekfac():
    astra = ASTRA(pseudo_gradients=3, seed=2)
    assert astra.num_samples == 1
    assert astra.preconditioner.get_config() == EKFAC(3, seed=2).get_config()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: CG(tol=0), ValueError, "`tol` should be a number > 0"),
        (lambda: CG(max_iter=1.5), TypeError, "`max_iter` should be an integer >= 1"),
        (lambda: CG(preconditioner=Arnoldi()), TypeError, "`preconditioner`"),
        (lambda: LiSSA(scale=-1), ValueError, "`scale`"),
        (lambda: LiSSA(recursion_depth=0), ValueError, "`recursion_depth`"),
        (lambda: LiSSA(batch_size=True), TypeError, "`batch_size`"),
        (lambda: ASTRA(batch_size=0), ValueError, "`batch_size`"),
        (lambda: NCG(avextol=float("nan")), ValueError, "`avextol`"),
        (lambda: Direct(max_size=0), ValueError, "`max_size`"),
        (lambda: Arnoldi(rank=0), ValueError, "`rank`"),
        (lambda: Arnoldi(complement="keep"), ValueError, "`complement`.*'drop'"),
        (lambda: EKFAC(pseudo_gradients=0), ValueError, "`pseudo_gradients`"),
        (lambda: EKFAC(seed=0.5), TypeError, "`seed`"),
        (lambda: TwoLevel(rank=0), ValueError, "`rank`"),
        (lambda: Woodbury(rank=0), ValueError, "`rank`"),
        (lambda: Auto(budget=-1), ValueError, "`budget`"),
        (lambda: solvers.get("newton"), ValueError, "cg.*direct.*lissa.*ncg"),
        (lambda: solvers.get({"class_name": "Newton"}), ValueError, "class_name"),
        (lambda: solvers.get({"class_name": "CG", "config": {"depth": 1}}), TypeError, "depth"),
        (lambda: solvers.get(3), TypeError, "`method`"),
    ],
)
def test_bad_options_are_refused_when_made(make, error, message):
    with pytest.raises(error, match=message):
        make()
