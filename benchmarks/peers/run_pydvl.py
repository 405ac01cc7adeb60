"""pyDVL: (block) conjugate gradients, with a Nyström preconditioner, and EK-FAC.

Settings: `batch` examples per batch (it should divide n: pyDVL averages over batches),
`rank` of the preconditioner, `tol`, `chunk` of the training data per product with the scores.

Sign and scale: pyDVL's `Up` influence is +∇f(test)ᵀ (H + λI)⁻¹ ∇ℓ(train): divided by n it is
ours. pyDVL 0.10.0 stops at a residual norm of rtol² ‖b‖, so rtol is √tol.
"""

import numpy as np
import torch
from common import Answer, main
from networks import Prepared, cross_entropy, target_function
from pydvl.influence.torch import CgInfluence, EkfacInfluence
from pydvl.influence.torch.preconditioner import NystroemPreconditioner


def conjugate_gradients(problem, prepared, settings, clock, *, block, rank=None):
    tol, size = settings.get("tol", problem.tol), settings.get("batch", 500)
    rank = settings.get("rank", rank)
    influence = CgInfluence(
        prepared.network,
        cross_entropy,
        regularization=problem.damping,
        rtol=float(np.sqrt(tol)),
        atol=1e-12,
        maxiter=settings.get("max_iter", 2000),
        solve_simultaneously=block,
        preconditioner=_Nystroem(rank) if rank else None,
    )
    with clock("fit"):
        influence = influence.fit(prepared.loader(size))
    with clock("solve"):
        if problem.target == "loss":
            factors = influence.influence_factors(*prepared.test)
        else:
            (block_of_all,) = influence.block_mapper.composable_block_dict.values()
            factors = block_of_all.op.apply(_gradients(problem, prepared))
    scores = _scores(influence, factors, prepared, settings, clock)
    return Answer(scores, prepared.in_keras_order(factors))


class _Nystroem(NystroemPreconditioner):
    """pyDVL's, in use: in 0.10.0 `fit` returns None, and CG then runs without a preconditioner."""

    def fit(self, operator, regularization=None):
        super().fit(operator, regularization)
        return self


def ekfac(problem, prepared, settings, clock):
    influence = EkfacInfluence(
        prepared.network, update_diagonal=True, hessian_regularization=problem.damping
    )
    with clock("fit"):
        influence = influence.fit(prepared.loader(settings.get("batch", 500)))
    with clock("solve"):
        factors = influence.influence_factors(*prepared.test)
    return Answer(_scores(influence, factors, prepared, settings, clock))


def _scores(influence, factors, prepared, settings, clock):
    with clock("scores"), torch.no_grad():
        parts = [
            influence.influences_from_factors(factors, x, y)
            for x, y in prepared.batches(settings.get("chunk", 500))
        ]
        return torch.cat(parts, 1).detach().numpy() / len(prepared.train[0])


def _gradients(problem, prepared):
    """∇f of each test example, (n_test, p)."""
    function, parameters = target_function(problem), dict(prepared.network.named_parameters())

    def value(parameters, x, y):
        output = torch.func.functional_call(prepared.network, parameters, x[None])
        return function(output, y[None])

    rows = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0, 0))(parameters, *prepared.test)
    return torch.cat([rows[name].flatten(1) for name in parameters], 1).detach()


if __name__ == "__main__":
    main(
        {
            "block_nystrom": lambda *a: conjugate_gradients(*a, block=True, rank=100),
            "block_cg": lambda *a: conjugate_gradients(*a, block=True),
            "cg": lambda *a: conjugate_gradients(*a, block=False),
            "cg_nystrom": lambda *a: conjugate_gradients(*a, block=False, rank=100),
            "ekfac": ekfac,
        },
        Prepared,
        ["pydvl", "torch", "numpy"],
        __doc__,
    )
