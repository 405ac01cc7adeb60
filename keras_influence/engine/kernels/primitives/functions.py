"""A `tf.function` of the user's keeps the derivatives that it was once asked for.

What it keeps from outside may be TensorFlow's, wrong for a second derivative; what it would keep
from here is ours, and belongs to no other thread. So here it has a memory of its own, empty.
"""

import copy

from tensorflow.python.eager.polymorphic_function.concrete_function import ConcreteFunction


def _forgetful(original, self, *args):
    twin = copy.copy(self)
    twin._first_order_tape_functions = {}
    twin._higher_order_tape_functions = {}
    return original(twin, *args)


FUNCTIONS = {(ConcreteFunction, "_select_forward_and_backward_functions"): _forgetful}
