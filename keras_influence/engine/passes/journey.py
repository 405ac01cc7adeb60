"""A model's way into other processes, where it is made once and kept, with the weights it had."""

import collections
import dataclasses
import hashlib
import io
import pickle
import threading
import weakref

import keras

from keras_influence import _keras, rebuilding
from keras_influence.checksums import fingerprint_of_weights
from keras_influence.engine.kernels.objective import Objective
from keras_influence.engine.passes import baggage
from keras_influence.errors import explained

# What has been made in this process, by key; the oldest goes when there are more than so many. A
# pass takes three: a model, its objective with the kernels traced for it, and the `Ground`.
_MOST = 16
_made = collections.OrderedDict()
_lock = threading.RLock()
# Of each model the state it was last sent in, and its parcel.
_sent = weakref.WeakKeyDictionary()


class JourneyError(ValueError):
    """A model cannot be made again in another process."""

    anchor = "copies"
    __str__ = explained

    def __init__(self, reason):
        super().__init__(
            f"`model` cannot be sent to the workers of a Dask cluster: {reason}. Give its classes "
            "`get_config()` with all arguments of their `__init__`; or compute here, with "
            "`dask.config.set(scheduler='threads')` around the call."
        )
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.reason,)


@dataclasses.dataclass(frozen=True)
class Parcel:
    """Something that other processes make from bytes, once for each content.

    Attributes:
        key: a checksum of the content.
        content: pickled.
        settings: those of Keras that go with it; see `settings`.
    """

    key: str
    content: bytes = dataclasses.field(repr=False)
    settings: tuple

    @classmethod
    def of(cls, thing):
        """A thing as it is now, its model with the weights it has.

        Raises:
            JourneyError: its model cannot be sent.
        """
        content = _pickled(thing)
        key = hashlib.sha256(content).hexdigest()
        return cls(key, content, settings())

    def arrived(self):
        """The thing, in the settings that it was sent in, which the process then has.

        Raises:
            JourneyError: Keras cannot make its model again.
        """
        with _lock:
            if settings() != self.settings:
                _set(self.settings)
            try:
                return _once(self.key, lambda: pickle.loads(self.content))
            except rebuilding.CopyError as error:
                raise JourneyError(error.reason) from error


def _once(key, make):
    """What `make()` gives, made once in a process as long as it is in use."""
    if key not in _made:
        _made[key] = make()
        while len(_made) > _MOST:
            _made.popitem(last=False)
    _made.move_to_end(key)
    return _made[key]


def settings():
    """The settings of Keras on which results depend."""
    config = keras.config
    return config.floatx(), config.epsilon(), config.image_data_format(), config.dtype_policy().name


def _set(values):
    floatx, epsilon, data_format, policy = values
    keras.config.set_floatx(floatx)
    keras.config.set_epsilon(epsilon)
    keras.config.set_image_data_format(data_format)
    keras.config.set_dtype_policy(policy)


def _pickled(thing):
    """By cloudpickle, which takes classes and functions of a script or a notebook along."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, obj):
            found = _reduced(obj) if isinstance(obj, Objective) else baggage.reduced(obj)
            return super().reducer_override(obj) if found is NotImplemented else found

    file = io.BytesIO()
    try:
        Pickler(file).dump(thing)
    except rebuilding.CopyError as error:
        raise JourneyError(error.reason) from error
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise JourneyError(str(error)) from error
    return file.getvalue()


# ---- models, and what is made of them


def _reduced(objective):
    model = objective.model()
    trainable = [id(v) for v in model.trainable_variables]
    positions = tuple(trainable.index(id(v)) for v in objective.parameters.variables)
    return _objective, (_parcel_of(model), positions, objective.reading, objective.added)


def _parcel_of(model):
    """The parcel of a model, packed anew if its weights or its loss are not what they were."""
    weights = fingerprint_of_weights(model.weights)
    state = _keras.loss_state(model), _keras.values_of(model), weights, settings()
    known = _sent.get(model)
    if known is None or known[0] != state:
        packed = _Model(model, weights)
        known = _sent[model] = state, Parcel.of(packed)
    return known[1]


def forget(model):
    """Pack a model anew when it is next sent: something of it has changed that its weights do not show."""
    _sent.pop(model, None)


class _Model:
    """A model and the fingerprint of its weights; unpickled it is the model."""

    def __init__(self, *parts):
        self._parts = parts

    def __reduce__(self):
        return _model, self._parts


def _model(model, weights):
    if fingerprint_of_weights(model.weights) != weights:
        raise JourneyError("made again it has other weights")
    return model


def _objective(parcel, positions, reading, added):
    def make():
        model = parcel.arrived()
        variables = [model.trainable_variables[i] for i in positions]
        objective = Objective(model, variables, reading, added)
        # Nobody else in this process holds the model for as long as it takes.
        objective.held = model
        return objective

    return _once((parcel.key, positions, reading, added), make)
