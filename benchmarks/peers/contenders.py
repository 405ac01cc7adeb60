"""The problems and the contenders of `compare.py`, each at its own settings."""

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a problem is made of: model, sizes, training, λ and the residual asked for."""

    kind: str
    n: int
    n_test: int
    epochs: int
    damping: float
    tol: float
    says: str


PROBLEMS = {
    "softmax-10": Setup("softmax", 5000, 10, 5, 1e-3, 4e-5, "softmax regression, p = 7,850"),
    "softmax-100": Setup("softmax", 5000, 100, 5, 1e-3, 4e-5, "softmax regression, p = 7,850"),
    "mlp": Setup("mlp", 5000, 10, 40, 0.5, 1e-3, "MLP 784-128-10, p = 101,770"),
    "mlp-100": Setup("mlp", 5000, 100, 40, 0.5, 1e-3, "MLP 784-128-10, p = 101,770"),
    "conv": Setup("conv", 500, 5, 40, 1.0, 1e-3, "conv net 16 and 32, p = 12,810"),
}
QUICK = {"softmax-10": {"n": 1000}, "mlp": {"n": 1000}}
MLP = ("mlp", "mlp-100")


@dataclasses.dataclass(frozen=True)
class Contender:
    """One row: a script, its method, and settings that hold for all or for one problem."""

    label: str
    peer: str
    method: str
    exact: bool
    settings: dict = dataclasses.field(default_factory=dict)
    only: tuple = tuple(PROBLEMS)

    def arguments(self, problem):
        chosen = {k: v for k, v in self.settings.items() if k not in PROBLEMS}
        chosen |= self.settings.get(problem, {})
        return [
            "--method",
            self.method,
            "--set",
            *(f"{k}={json.dumps(v)}" for k, v in chosen.items()),
        ]


SOFTMAX = ("softmax-10", "softmax-100")
BATCHES = {"batch_size": 1000}
CONTENDERS = [
    Contender("keras_influence, CG as it is", "keras_influence", "cg", True),
    Contender(
        "keras_influence, CG + Nystrom",
        "keras_influence",
        "cg",
        True,
        {"rank": 50, **BATCHES},
        SOFTMAX,
    ),
    Contender(
        "keras_influence, CG",
        "keras_influence",
        "cg",
        True,
        {"rank": 0, **BATCHES, "conv": {"batch_size": 250}},
    ),
    # What pyDVL's block reaches on the MLP, whatever its tolerance: time at equal accuracy.
    Contender(
        "keras_influence, CG to pyDVL's residual",
        "keras_influence",
        "cg",
        True,
        {"tol": 2.5e-3},
        ("mlp",),
    ),
    Contender("pyDVL, block CG + Nyström", "pydvl", "block_nystrom", True, {"batch": 1000}),
    Contender("pyDVL, block CG", "pydvl", "block_cg", True, {"batch": 1000}),
    # One by one, with which it could reach the MLP's too.
    Contender("pyDVL, CG", "pydvl", "cg", True, {"batch": 250}, ("conv", "mlp")),
    Contender(
        "dattri, CG",
        "dattri",
        "cg",
        True,
        {"max_iter": 150, **dict.fromkeys((*MLP, "conv"), {"max_iter": 50})},
    ),
    Contender("dattri, Arnoldi", "dattri", "arnoldi", False),
    Contender("dattri, LiSSA", "dattri", "lissa", False, only=("softmax-10",)),
    Contender("captum, Arnoldi", "captum", "arnoldi", False, only=(*SOFTMAX, *MLP)),
    Contender("kronfluence, EK-FAC", "kronfluence", "ekfac", False),
    Contender("pyDVL, EK-FAC", "pydvl", "ekfac", False, only=(*SOFTMAX, *MLP)),
    Contender("dattri, DataInf", "dattri", "datainf", False, only=("softmax-10",)),
    Contender("TRAK", "trak", "trak", False, {"batch": 1000, "dim": 512}),
    Contender("influenciae, Arnoldi", "influenciae", "arnoldi", False, only=("softmax-10",)),
    Contender("influenciae, one hvp", "influenciae", "hvp", False, only=("softmax-10",)),
]
