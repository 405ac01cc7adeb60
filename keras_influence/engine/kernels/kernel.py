"""Compiled batch kernels: traced once for batches of any size, one linear map for many vectors."""

import contextlib
import functools
import gc

import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.kernels import primitives
from keras_influence.engine.kernels.loops import NOT_VECTORISED
from keras_influence.engine.kernels.missing import (
    NotDifferentiableError,
    missing_gradient,
    not_differentiable,
)
from keras_influence.engine.kernels.quiet import quiet


def kernel(*extras):
    """Compile `function(self, batch, weight, *extras)` once for each structure of batch.

    `weight` is a `Weighting`; in the function, of tensors. The names of the extra arguments say
    what they are: "vectors" (k, p), "vector" (p,), "omega" (b,); integers: "seed" (2,), "columns" (b,).

    `self` has `parameters` and `kernels`, a `Kernels`.
    """

    def decorate(function):
        @functools.wraps(function)
        def run(self, batch, weight, *values):
            return self.kernels.run(self, function, extras, batch, weight, values)

        return run

    return decorate


class Kernels:
    """The compiled kernels of one owner.

    Args:
        weighting: the class that a kernel's weight is made of, by `of(vector)`.
        loop: take vectors one by one in a loop, not all at once.

    Attributes:
        loop: the same; becomes true where the vectorised map fails.
    """

    def __init__(self, weighting, loop):
        self.weighting = weighting
        self.loop = loop
        self._compiled = {}
        self._shapes = {}

    def run(self, owner, function, extras, batch, weight, values):
        """Run a kernel, compiled before if its like has been."""
        flat = tf.nest.flatten(batch)
        vector = tf.constant(weight.vector(), owner.parameters.dtype)
        dtype = owner.parameters.dtype
        values = tuple(
            tf.convert_to_tensor(v, _dtype_of(name, dtype)) for name, v in zip(extras, values)
        )
        many = any(name == "vectors" and len(v) > 1 for name, v in zip(extras, values))
        signature = _signature(batch)
        shapes = self._seen(flat, signature)
        key = (function.__name__, many, *signature, len(vector))
        wide = (function.__name__, True, *key[2:])
        if wide in self._compiled and self._compiled[wide].accepts(flat):
            key, many = wide, True  # One vector goes with what has been traced for many.
        compile_ = functools.partial(
            self._compile, owner, function, extras, batch, shapes, len(vector), many
        )
        try:
            known = self._compiled.get(key)
            if known is None or not known.accepts(flat):
                known = self._compiled[key] = compile_()
            return known(flat, vector, values)
        except NotDifferentiableError:
            self._compiled.pop(key, None)  # Run once more, it would end in another error.
            raise
        except NOT_VECTORISED:
            if not many or self.loop:
                raise
        # Control flow of some kinds cannot be vectorised, at tracing or when it is run.
        self.loop = True
        try:
            known = self._compiled[key] = compile_()
            return known(flat, vector, values)
        except Exception:
            # It was not that: what is wrong with these data says nothing about others.
            self.loop = False
            self._compiled.pop(key, None)
            raise

    def has_traced(self, function, batch, many=True):
        """Whether a kernel takes batches like this one, with many vectors or with one."""
        flat = tf.nest.flatten(batch)
        wanted = (function.__name__, many, *_signature(batch))
        return any(k[:4] == wanted and c.accepts(flat) for k, c in self._compiled.items())

    def operations(self, function):
        """How many operations the largest trace of a kernel has; 0 where there is none."""
        return max((trace.operations() for trace in self._traces(function)), default=0)

    def variables(self, function):
        """The variables that a kernel reads."""
        found = (v for trace in self._traces(function) for v in trace.variables())
        return list({id(v): v for v in found}.values())

    def _traces(self, function):
        return [c for k, c in self._compiled.items() if k[0] == function.__name__]

    def forget(self):
        """Trace everything anew when it is next asked for."""
        self._compiled = {}

    def _seen(self, flat, signature):
        """The shapes of batches like this one; an axis that any kernel has seen to vary is open."""
        known = self._shapes.get(signature) or [t.shape for t in flat]
        self._shapes[signature] = [_relaxed(t, shape) for t, shape in zip(flat, known)]
        return self._shapes[signature]

    def _compile(self, *about):
        many = about[-1]
        saying = quiet() if many and not self.loop else contextlib.nullcontext()
        with _keras.lock, _without_collection(), saying:
            return _Compiled(self, *about)


def _signature(batch):
    """The structure of a batch, and the dtypes and ranks of its tensors: what one trace may serve."""
    types = tuple((t.dtype, t.shape.rank) for t in tf.nest.flatten(batch))
    return repr(tf.nest.map_structure(lambda _: 0, batch)), types


@contextlib.contextmanager
def _without_collection():
    """No garbage collection meanwhile.

    While TensorFlow traces, to free the graphs of earlier traces takes it a hundred times as long
    as afterwards: seconds, where the trace itself takes one.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _dtype_of(name, dtype):
    return tf.int32 if name in ("seed", "columns") else dtype


class _Compiled:
    """One traced kernel, for batches of these shapes."""

    def __init__(self, kernels, owner, function, extras, batch, specs, length, many):
        flat, dtype = tf.nest.flatten(batch), owner.parameters.dtype
        self._specs, self._of_hessian = specs, function.__name__ == "hvp"
        skeleton = tf.nest.map_structure(lambda _: 0, batch)
        shapes = {
            "vectors": [None if many else 1, owner.parameters.size],
            "vector": [owner.parameters.size],
            "omega": [None],
            "seed": [2],
            "columns": [None],
        }

        def trace(flat, weight, values):
            with primitives.replaced():
                batch = tf.nest.pack_sequence_as(skeleton, flat)
                return function(owner, batch, kernels.weighting.of(weight), *values)

        try:
            self._function = tf.function(trace, autograph=False).get_concrete_function(
                [tf.TensorSpec(shape, t.dtype) for shape, t in zip(self._specs, flat)],
                tf.TensorSpec([length], dtype),
                tuple(tf.TensorSpec(shapes[name], _dtype_of(name, dtype)) for name in extras),
            )
        except LookupError as error:
            if isinstance(error, (IndexError, KeyError)):  # Of the model's own making, or ours.
                raise
            raise not_differentiable(error, self._of_hessian) from error
        except NotImplementedError as error:
            # A tensor of the graph was to be an array, in a user's function.
            if "numpy" in str(error):
                raise
            raise not_differentiable(error, self._of_hessian) from error
        # Inside a while-loop TensorFlow would see it when it is run: as an error, or as a crash.
        missing = missing_gradient(self._function.graph)
        if missing:
            raise not_differentiable(missing, self._of_hessian)

    def operations(self):
        """How many operations it has, those of loops included."""
        graph = self._function.graph
        inner = graph.as_graph_def().library.function
        return len(graph.get_operations()) + sum(len(f.node_def) for f in inner)

    def variables(self):
        """The variables that it reads, as far as they are still there."""
        with contextlib.suppress(AssertionError):  # Of one that is not.
            return list(self._function.graph.variables)
        return []

    def accepts(self, flat):
        return all(s.is_compatible_with(t.shape) for s, t in zip(self._specs, flat))

    def __call__(self, flat, weight, values):
        try:
            return self._function(flat, weight, values)
        except (tf.errors.NotFoundError, tf.errors.UnknownError) as error:
            raise not_differentiable(error, self._of_hessian) from error


def _relaxed(tensor, known):
    rest = [a if a == b else None for a, b in zip(tensor.shape[1:], known[1:])]
    return tf.TensorShape([None, *rest])
