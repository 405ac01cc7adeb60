"""InfluenceModel: a `keras.Model` that can be asked about its training data.

Keras builds `Model(inputs, outputs)` in a subclass by rewriting the subclass's
`__bases__`, which would turn every other InfluenceModel of the process into a
Functional model too. Here the one instance gets a class of its own instead.
"""

import keras

from keras_influence import _keras
from keras_influence.evaluation import verification
from keras_influence.questions import (
    groups,
    influence,
    inputs,
    label_issues,
    products,
    reporting,
    self_influence,
    spectrum,
    top,
)
from keras_influence.questions.explainer import Explainer
from keras_influence.questions.settings import Settings, takes

_REGISTER = keras.saving.register_keras_serializable(package="keras_influence")


class InfluenceMixin:
    """Adds the questions to a `keras.Model`: each method is the function of that name.

    `model.influence(test, train)` is `keras_influence.influence(model, test, train)`.
    Use it with a base class of your own: `class Net(InfluenceMixin, MyModel)`.
    It keeps no state. (`losses` is a function only, for a
    `keras.Model` has another thing of that name; `report` is the function `write_report`.)
    """

    influence = influence.influence
    top_influence = top.top_influence
    self_influence = self_influence.self_influence
    group_influence = groups.group_influence
    parameter_influence = groups.parameter_influence
    input_influence = inputs.input_influence
    find_label_issues = label_issues.find_label_issues
    with_change = groups.with_change
    hvp = products.hvp
    inverse_hvp = products.inverse_hvp
    operator = products.operator
    hessian_eigenvalues = spectrum.hessian_eigenvalues
    hessian_trace = spectrum.hessian_trace
    verify = verification.verify
    report = reporting.write_report

    @takes(Settings)
    def explainer(self, train, **settings):
        """The curvature factorised once, for many questions: `Explainer(model, train, ...)`."""
        return Explainer(self, train, **settings)

    def load_explainer(self, train, path, *, class_weight=None, verbose="auto"):
        """What `Explainer.save` wrote for this model: `Explainer.load(model, train, path, ...)`."""
        return Explainer.load(self, train, path, class_weight=class_weight, verbose=verbose)


@_REGISTER
class InfluenceModel(InfluenceMixin, keras.Model):
    """A `keras.Model` with influence functions; a drop-in for it.

    - `InfluenceModel(inputs, outputs)`, as `keras.Model(inputs, outputs)`;
    - `class Net(InfluenceModel)` with `__init__` and `call`;
    - `InfluenceModel.from_model(trained)` for a model that exists.
    """

    # Loading finds Functional constructors by these literal names.
    def __init__(self, *args, **kwargs):
        functional = isinstance(self, _keras.Functional)
        if _keras.functional_init_arguments(args, kwargs) and not functional:
            self.__class__ = _joined(type(self), _keras.Functional)
            _keras.Functional.__init__(self, *args, **kwargs)
        else:
            super().__init__(*args, **kwargs)

    def __reduce__(self):
        # Keras names the class, which pickle would look for in its module.
        function, args = super().__reduce__()
        return _unpickled, (function.__name__, *args)

    @classmethod
    def from_model(cls, model):
        """The same model, with influence functions.

        Weights, layers, compile state and everything else are shared: training
        the one trains the other. Functional, Sequential, subclassed and loaded
        models are taken; `isinstance` of the original class still holds.

        Args:
            model: a `keras.Model`.

        Raises:
            TypeError: `model` is not a `keras.Model`.
        """
        if not isinstance(model, keras.Model):
            raise TypeError(f"`model` should be a keras.Model. Received: {type(model).__name__}")
        if isinstance(model, InfluenceMixin):
            return model
        return _shared(_view_class(cls, type(model)), model)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Rebuild from `get_config()`; a model made by `from_model` is rebuilt by its own class."""
        if set(config) == {"model"}:
            inner = keras.saving.deserialize_keras_object(config["model"], custom_objects)
            return cls.from_model(inner)
        return super().from_config(config, custom_objects)


def _unpickled(name, *args):
    """What Keras pickled of a model; by way of this module, which knows the classes of ours."""
    return getattr(keras.Model, name)(*args)


_classes = {}


def _joined(first, second):
    """A class with both bases that carries the name of the first, made once."""
    if (first, second) not in _classes:
        joined = type(first.__name__, (first, second), {"__module__": first.__module__})
        _classes[first, second] = _registered_as(first, joined)
    return _classes[first, second]


def _view_class(cls, original):
    """`original` with influence functions; it saves itself as `cls` holding an `original`."""
    if (cls, original) not in _classes:

        def get_config(self):
            return {"model": keras.saving.serialize_keras_object(_shared(original, self))}

        body = {
            "__module__": cls.__module__,
            "get_config": get_config,
            "from_config": cls.from_config,
        }
        view = type(cls.__name__, (cls, original), body)
        _classes[cls, original] = _registered_as(cls, view)
    return _classes[cls, original]


def _registered_as(cls, double):
    """Let `double` be saved under the registered name of `cls`, and `cls` be loaded for it."""
    name = keras.saving.get_registered_name(cls)
    if ">" in name:
        for target in (double, cls):
            package, base = name.split(">", 1)
            keras.saving.register_keras_serializable(package, base)(target)
    return double


def _shared(cls, model):
    """An object of class `cls` whose state is that of `model`, not a copy of it."""
    twin = object.__new__(cls)
    object.__setattr__(twin, "__dict__", model.__dict__)
    return twin
