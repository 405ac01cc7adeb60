"""How many threads products take."""

import numpy as np
import pytest
import threadpoolctl

from keras_influence import CG, LiSSA
from keras_influence.linalg.arrays import taking_turns
from keras_influence.linalg.operators import Dense


def _threads():
    return {p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"}


@pytest.mark.parametrize(("before", "within"), [(4, 2), (2, 1), (1, 1)])
def test_half_of_the_threads_and_all_of_them_afterwards(before, within):
    with threadpoolctl.threadpool_limits(before, user_api="blas"):
        with pytest.raises(ZeroDivisionError), taking_turns():
            assert _threads() == {within}
            raise ZeroDivisionError
        assert _threads() == {before}


@pytest.mark.parametrize("solver", [CG(preconditioner=None), LiSSA()], ids=str)
def test_solvers_that_alternate_take_turns(solver, rng):
    """Their first product may be the start's residual, and the last one is the certificate's."""
    found = []

    class Asking(Dense):
        def matmat(self, rows):
            found.append(_threads())
            return super().matmat(rows)

    with threadpoolctl.threadpool_limits(4, user_api="blas"):
        solver.solve(Asking(np.diag([1.0, 2.0, 3.0])), rng.normal(size=(1, 3)))
    assert {2} in found
    assert found[-1] == {4}
