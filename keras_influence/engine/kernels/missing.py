"""Gradients that TensorFlow does not have: where a graph lacks one, and what is said of it."""

import re

from keras_influence.engine.kernels.loops import LOOPS
from keras_influence.errors import explained


class NotDifferentiableError(ValueError):
    """An operation whose gradient TensorFlow cannot differentiate."""

    anchor = "missing-derivative"
    __str__ = explained


def missing_gradient(graph):
    """The name of a node in a loop that stands for a gradient which TensorFlow does not have, or None."""
    if not any(op.type in LOOPS for op in graph.get_operations()):
        return None
    return next((node.name for node in nodes_of(graph) if node.op == "SymbolicGradient"), None)


def nodes_of(graph):
    """The nodes of a graph and of the functions in it."""
    definition = graph.as_graph_def()
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def


def not_differentiable(error, of_hessian=False):
    """What TensorFlow says of a missing gradient as an error with the ways out: of a Hessian one more."""
    line = str(error).strip().splitlines()[-1]
    node = re.search(r"{{node (.*?)}}", line)
    less = "; if it is in the network, curvature='gauss_newton' may do without" * of_hessian
    return NotDifferentiableError(
        "`model` or its loss uses an operation whose gradient TensorFlow cannot differentiate "
        f"({node[1] if node else line}). Replace that layer or loss by a smooth one{less}. `TracIn` "
        "needs first derivatives only."
    )
