"""A layer or model in parts: what its attributes hold, to be put into a new object of its class.

For classes that Keras cannot describe by a config. Their `__init__` is not called again.
"""

import keras
from keras.src.models.functional import Functional

# Lists in which Keras keeps what a layer has been given, in the order in which that was.
_TRACKED = ("_layers", "_trainable_variables", "_non_trainable_variables")
# What a loss depends on, of what a model was compiled with.
_COMPILED = ("loss", "loss_weights", "run_eagerly", "jit_compile")


def has_parts(thing):
    """Whether it is a layer, or a model, that is its attributes: not a graph of layers."""
    return isinstance(thing, keras.Layer) and not isinstance(thing, (Functional, keras.Sequential))


def parts_of(layer):
    """What `put_together` gives a new object of the same class."""
    is_model = isinstance(layer, keras.Model)
    bare = keras.Model(name="bare") if is_model else keras.layers.Layer(name="bare")
    if is_model:
        bare.compile()
    own = {
        name: value
        for name, value in vars(layer).items()
        if name not in (*vars(bare), "history") and not name.startswith("_self_")
    }
    tracked = {name: list(getattr(layer, name)) for name in _TRACKED}
    compiled = None
    if is_model and layer.compiled:
        compiled = {name: layer._compile_config.config[name] for name in _COMPILED}
    return {
        "own": own,
        "tracked": tracked,
        "compiled": compiled,
        "made": {
            "name": layer.name,
            "dtype": layer.dtype_policy,
            "trainable": layer.trainable,
            "activity_regularizer": layer.activity_regularizer,
        },
        "supports_masking": layer.supports_masking,
        "built": layer.built,
    }


def empty(cls):
    """An object of one of Keras's classes, its `__init__` not called."""
    return cls.__new__(cls)


def put_together(layer, parts):
    """Make an `empty` layer what another was."""
    base = keras.Model if isinstance(layer, keras.Model) else keras.layers.Layer
    base.__init__(layer, **parts["made"])
    for name, value in parts["own"].items():
        setattr(layer, name, value)
    for name in _TRACKED:
        getattr(layer, name)[:] = parts["tracked"][name]
    layer.supports_masking, layer.built = parts["supports_masking"], parts["built"]
    if parts["compiled"] is not None:
        keras.Model.compile(layer, **parts["compiled"])
