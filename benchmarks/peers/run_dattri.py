"""dattri: CG, Arnoldi, LiSSA, DataInf, EK-FAC and TRAK.

Settings: `max_iter` of CG (dattri 0.3.0 ignores its `tol`), `rank` and `max_iter` of Arnoldi,
`depth` and `scaling` of LiSSA, `proj_dim` of TRAK, `chunk` training examples per product.

Sign and scale: dattri's scores, (n_train, n_test), are +∇ℓ(train)ᵀ (H + λI)⁻¹ ∇f(test): transposed
and divided by n they are ours. Its CG solves with one batch's Hessian at a time and adds the
solutions, so the Hessian's data is one batch of all n. `attribute` solves again for each batch of
training examples, so these are one batch too.
"""

import torch
from common import Answer, main
from dattri.algorithm.influence_function import (
    IFAttributorArnoldi,
    IFAttributorCG,
    IFAttributorDataInf,
    IFAttributorEKFAC,
    IFAttributorLiSSA,
)
from dattri.task import AttributionTask
from networks import Prepared, cross_entropy, target_function
from torch.utils.data import DataLoader


def attribute(problem, prepared, settings, clock, *, make):
    network, n = prepared.network, len(prepared.train[0])

    def loss(parameters, data):
        x, y = data
        # LiSSA hands over floating-point labels.
        return cross_entropy(torch.func.functional_call(network, parameters, x), y.long())

    def target(parameters, data):
        x, y = data
        return target_function(problem)(torch.func.functional_call(network, parameters, x), y)

    task = AttributionTask(loss, network, network.state_dict(), target_func=target)
    attributor, full_batch = make(task, problem, settings)
    whole = _Whole(prepared.dataset(), batch_size=n)
    solutions = _remember(attributor)
    with clock("fit"):
        attributor.cache(whole if full_batch else DataLoader(prepared.dataset(), batch_size=500))
    with clock("scores"):
        test = _Whole(prepared.dataset(prepared.test), batch_size=len(prepared.test[0]))
        scores = attributor.attribute(whole, test)
    solution = solutions[-1] if solutions and solutions[-1].shape[1] == _size(network) else None
    return Answer(
        scores.detach().numpy().T / n,
        None if solution is None else prepared.in_keras_order(solution),
    )


class _Whole(DataLoader):
    """One batch, ready, in place of one `__getitem__` per example."""

    def __iter__(self):
        return iter([list(self.dataset.tensors)])


def _remember(attributor):
    """Keep what `transform_test_rep` returns: the solutions."""
    kept, transform = [], attributor.transform_test_rep

    def transformed(*args, **kwargs):
        kept[:] = [transform(*args, **kwargs)]
        return kept[0]

    attributor.transform_test_rep = transformed
    return kept


def _size(network):
    return sum(p.numel() for p in network.parameters())


def cg(task, problem, settings):
    options = {"max_iter": settings.get("max_iter", 100), "mode": settings.get("mode", "rev-rev")}
    return IFAttributorCG(task, regularization=problem.damping, **options), True


def arnoldi(task, problem, settings):
    options = {"proj_dim": settings.get("rank", 100), "max_iter": settings.get("max_iter", 200)}
    return IFAttributorArnoldi(task, regularization=problem.damping, **options), True


def lissa(task, problem, settings):
    # dattri's LiSSA iterates h <- v + (1 - damping) h - H h / scaling and divides by scaling, whose
    # fixed point is (H + scaling * damping * I)⁻¹ v; hence damping / scaling here.
    scaling = settings.get("scaling", 50.0)
    options = {
        "batch_size": settings.get("batch", 100),
        "recursion_depth": settings.get("depth", 1000),
        "scaling": scaling,
        "damping": problem.damping / scaling,
    }
    return IFAttributorLiSSA(task, **options), True


def datainf(task, problem, settings):
    return IFAttributorDataInf(task, regularization=problem.damping), False


def ekfac(task, problem, settings):
    return IFAttributorEKFAC(task, damping=problem.damping), False


def _with(make):
    return lambda *args: attribute(*args, make=make)


if __name__ == "__main__":
    main(
        {f.__name__: _with(f) for f in (cg, arnoldi, lissa, datainf, ekfac)},
        Prepared,
        ["dattri", "torch", "numpy"],
        __doc__,
    )
