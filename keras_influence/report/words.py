"""How scores came about and what they are worth, in plain words."""

import dataclasses

from keras_influence.report.methods import method_of

_CURVATURES = {
    "gauss_newton": (
        "The Gauss-Newton matrix: how the loss bends with the model's outputs, carried back to the "
        "weights, with the regularisers. It is never negative for convex losses, and for linear "
        "and logistic models it is the Hessian."
    ),
    "hessian": "The Hessian: all second derivatives of the compiled loss, regularisers included.",
}


@dataclasses.dataclass(frozen=True)
class Statement:
    """One thing that is known of the scores.

    Attributes:
        title: what it is about, a few words.
        sentences: what is known.
        good: whether that speaks for the scores, or None where it does neither.
    """

    title: str
    sentences: tuple
    good: bool | None = None


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What the two signs of a score mean, for the scores' target.

    Attributes:
        score: what a score is.
        unit: of a score.
        of: what changes, after "this test example's".
        proponents, opponents: what each group does, as a sentence.
        formula: the score as an equation, "" where it is none.
    """

    score: str
    unit: str
    of: str
    proponents: str
    opponents: str
    formula: str


def short(value):
    """A number >= 0 of three digits, as the page's script writes it too."""
    if value and not 1e-4 <= value < 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.0f}" if value >= 1000 or not value else f"{value:#.3g}".rstrip(".")


def meaning_of(scores):
    """The `Meaning` of the scores."""
    if scores.target == "test loss":
        of, unit, value = "loss", "the loss", "ℓ"
        proponents, opponents = "They helped: without", "They harmed: without"
    else:
        of, unit, value = f"“{scores.target}”", f"“{scores.target}”", "t"
        proponents = opponents = "Without"
    solved = f"score(i, j) = + ∇{value}(test i)ᵀ (C + λI)⁻¹ ∇ℓ(training j) / n"
    return Meaning(
        score=(
            f"A score is the predicted change of a test example's {of} if one training example "
            "had been left out of training."
        ),
        unit=f"in units of {unit}",
        of=of,
        proponents=f"{proponents} one of these, the {of} would rise by the number shown.",
        opponents=f"{opponents} one of these, the {of} would fall by the number shown.",
        formula="" if scores.curvature == "none" else solved,
    )


def statements(scores, verification=None):
    """What is known of the scores: a list of `Statement`.

    Args:
        scores: `InfluenceScores`.
        verification: what `verify` found, if it was asked.
    """
    found = [_about_verification(verification)]
    if scores.curvature != "none":
        found += [_about_solves(scores), _about_damping(scores)]
    words = _CURVATURES.get(scores.curvature) or method_of(scores).curvature
    found.append(Statement("Curvature", (words,)))
    if scores.reason:
        found.append(Statement("Why this way", (_sentence(scores.reason),)))
    if scores.parameters:
        count = len(scores.parameters)
        names = ", ".join(scores.parameters[:6]) + (", …" if count > 6 else "")
        words = f"{count} weight {'array counts' if count == 1 else 'arrays count'} as the model"
        found.append(Statement("Weights", (f"{words}: {names}.",)))
    return found


def _about_verification(verification):
    if verification is None:
        return Statement(
            "Checked by retraining?",
            (
                "No. `model.verify(test, train)` leaves a few examples out in earnest and compares; "
                "`report(..., verification=...)` shows its verdict here.",
            ),
        )
    if not hasattr(verification, "verdict"):
        raise TypeError(
            "`verification` should be what `verify` returned. Received: "
            f"{type(verification).__name__}"
        )
    return Statement("Checked by retraining", tuple(verification.verdict), verification.ok)


def _about_solves(scores):
    solver, worst = scores.solver["class_name"], f"{scores.residual.max():.1e}"
    meant = "what is left of a system, relative to its size, computed anew on all training data"
    if scores.details.get("approximation"):
        return Statement(
            "Solved by approximation",
            (
                f"{solver} is an approximation by design: the largest relative residual is {worst} "
                f"({meant}). What that is worth, only retraining can say.",
            ),
        )
    solved, count = int(scores.converged.sum()), len(scores.converged)
    sentence = (
        f"{solved} of {count} linear systems were solved to their tolerance by {solver}, in "
        f"{scores.passes:.4g} passes over the training data. The largest relative residual is {worst} "
        f"({meant})."
    )
    if solved == count:
        return Statement("Solved", (sentence,), True)
    return Statement(
        "Not fully solved",
        (sentence, "More `damping`, or more iterations, brings the others home."),
        False,
    )


def _about_damping(scores):
    return Statement(
        "Damping",
        (
            f"λ = {scores.damping:g} was added to the curvature. More damping says less of weak "
            "directions: scores become smaller and steadier.",
        ),
    )


def _sentence(text):
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")
