"""One way to an answer: a curvature, a solver and a damping."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_influence.linalg import solvers
from keras_influence.linalg.solvers import Solver

_NAMES = {"hessian": "the Hessian", "gauss_newton": "Gauss-Newton"}


@dataclasses.dataclass(frozen=True)
class Plan:
    """One way to an answer.

    Attributes:
        curvature: "hessian" or "gauss_newton".
        solver: the solver.
        damping: λ.
        reason: why it is this, where that was chosen automatically.
        definite: whether the plan fails where curvature and damping together have negative
            eigenvalues, though the solver could go on.
        doubtful: whether its curvature stands in for another, and may well have negative eigenvalues.
        added: whether the Hessian of what layers add by `add_loss` is in the curvature. It may be
            negative where Gauss-Newton of the loss is not.
    """

    curvature: str
    solver: Solver
    damping: float
    reason: str = ""
    definite: bool = False
    doubtful: bool = False
    added: bool = True

    @property
    def name(self) -> str:
        """The curvature, in words."""
        without = "" if self.added else " without what layers add by add_loss"
        return _NAMES[self.curvature] + without

    @property
    def advice(self) -> str:
        """How to ask for this plan, or for the one before it."""
        ask = f"Choose curvature={self.curvature!r}, or raise" if self.added else "Raise"
        return f"{ask} `damping`,"

    def written(self) -> dict[str, Any]:
        """The plan as what JSON can hold."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "solver": self.solver.get_config()}

    @classmethod
    def read(cls, fields: dict[str, Any]) -> Plan:
        """The plan that `written` gave these fields of."""
        return cls(**{**fields, "solver": solvers.get(fields["solver"])})
