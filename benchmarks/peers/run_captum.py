"""captum: Arnoldi (Schioppa et al. 2022), the dense Hessian, and TracInCP. It has no CG.

Settings: `rank` (projection_dim) and `dim` (arnoldi_dim) of Arnoldi, `batch`.

Sign and scale: captum's Hessian is the sum over the training data, so with n λ for its
`hessian_reg` its influence, (n_test, n_train), is +∇f(test)ᵀ (H + λI)⁻¹ ∇ℓ(train) / n, which is
ours, on the space that it keeps; the rest, which λ would weigh, is left out. TracInCP is the
gradients' dot product times the learning rate, 1 here; divided by n.
"""

import tempfile
from pathlib import Path

import torch
from captum.influence import NaiveInfluenceFunction, TracInCP
from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction
from common import Answer, main
from networks import Prepared, target_function


def attribute(problem, prepared, settings, clock, *, method, **options):
    network, n = prepared.network, len(prepared.train[0])
    loss = torch.nn.CrossEntropyLoss(reduction="sum")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(Path(folder) / "checkpoint.pt")
        torch.save(network.state_dict(), checkpoint)
        with clock("fit"):
            influence = method(
                network,
                prepared.loader(settings.get("batch", 500)),
                [checkpoint] if method is TracInCP else checkpoint,
                _load,
                loss_fn=loss,
                test_loss_fn=loss if problem.target == "loss" else _Sum(target_function(problem)),
                sample_wise_grads_per_batch=True,
                **options,
            )
        with clock("scores"):
            scores = influence.influence(prepared.test, show_progress=False)
    return Answer(scores.detach().numpy() / (n if method is TracInCP else 1))


class _Sum(torch.nn.Module):
    reduction = "sum"

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, logits, labels):
        return self.function(logits, labels)


def _load(network, path):
    network.load_state_dict(torch.load(path))
    return 1.0


def arnoldi(problem, prepared, settings, clock):
    options = {
        "projection_dim": settings.get("rank", 100),
        "arnoldi_dim": settings.get("dim", 200),
        "arnoldi_tol": 1e-6,
        "hessian_reg": problem.damping * len(prepared.train[0]),
    }
    return attribute(problem, prepared, settings, clock, method=ArnoldiInfluenceFunction, **options)


def naive(problem, prepared, settings, clock):
    options = {"hessian_reg": problem.damping * len(prepared.train[0]), "projection_dim": None}
    return attribute(problem, prepared, settings, clock, method=NaiveInfluenceFunction, **options)


def tracin(problem, prepared, settings, clock):
    return attribute(problem, prepared, settings, clock, method=TracInCP)


if __name__ == "__main__":
    packages = ["captum", "torch", "numpy"]
    main({f.__name__: f for f in (arnoldi, naive, tracin)}, Prepared, packages, __doc__)
