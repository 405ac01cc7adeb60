"""Small models of every kind of layer and construction, each with data that fit it.

Every output is a logit or a regression value, so that z, where the Gauss-Newton
matrix is taken, is the model's output.
"""

import keras
import numpy as np

layers = keras.layers
SMOOTH = "softplus"


def _classify(body, shape, classes=3):
    """Layers after an input, and a classifier of logits on top."""

    def make():
        inputs = keras.Input(shape)
        hidden = inputs
        for layer in body():
            hidden = layer(hidden)
        if len(hidden.shape) > 2:
            hidden = layers.Flatten()(hidden)
        model = keras.Model(inputs, layers.Dense(classes)(hidden))
        return _compiled(model)

    return make, lambda rng: (rng.normal(size=(6, *shape)), rng.integers(0, classes, 6))


def _compiled(model, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, **options)
    return model


def _tokens(body):
    make, _ = _classify(body, (5,))
    return make, lambda rng: (rng.integers(0, 7, (6, 5)), rng.integers(0, 3, 6))


def _side_by_side(branches, shape):
    """Networks of some layers each, side by side, and a classifier of all they give."""

    def make():
        inputs = keras.Input(shape)
        ends = []
        for branch in branches:
            hidden = inputs
            for layer in branch():
                hidden = layer(hidden)
            ends.append(hidden if len(hidden.shape) == 2 else layers.Flatten()(hidden))
        return _compiled(keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(ends))))

    return make, lambda rng: (rng.normal(size=(6, *shape)), rng.integers(0, 3, 6))


def _activations(names):
    known = [lambda name=name: [layers.Dense(2, activation=name)] for name in names]
    return _side_by_side([*known, lambda: [layers.Dense(2), layers.PReLU("ones")]], (4,))


def _residual():
    inputs = keras.Input((4,))
    a = layers.Dense(4, "tanh")(inputs)
    b = layers.Multiply()([layers.Dense(4, "sigmoid")(inputs), a])
    joined = layers.Concatenate()([layers.Add()([inputs, a]), b])
    return _compiled(keras.Model(inputs, layers.Dense(3)(joined)))


def _two_inputs():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    joined = layers.Concatenate()([layers.Dense(3, "tanh")(a), layers.Dense(2)(b)])
    return _compiled(keras.Model({"a": a, "b": b}, layers.Dense(3)(joined)))


def _two_outputs():
    inputs = keras.Input((4,))
    hidden = layers.Dense(4, "tanh")(inputs)
    outputs = {
        "kind": layers.Dense(3, name="kind")(hidden),
        "size": layers.Dense(2, name="size")(hidden),
    }
    model = keras.Model(inputs, outputs)
    losses = {
        "kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "size": "mse",
    }
    model.compile("sgd", losses, loss_weights={"kind": 1.0, "size": 0.25})
    return model


def _shared():
    inputs = keras.Input((4,))
    layer = layers.Dense(4, "tanh")
    return _compiled(keras.Model(inputs, layers.Dense(3)(layer(layer(inputs)))))


def _nested():
    inner_in = keras.Input((4,))
    inner = keras.Model(inner_in, layers.Dense(3, "tanh")(inner_in))
    block = keras.Sequential([inner, layers.Dense(4, SMOOTH)])
    inputs = keras.Input((4,))
    return _compiled(keras.Model(inputs, layers.Dense(3)(block(inputs))))


def _frozen_backbone():
    inputs = keras.Input((4,))
    backbone = layers.Dense(5, "tanh")
    hidden = backbone(inputs)
    backbone.trainable = False
    return _compiled(keras.Model(inputs, layers.Dense(3)(hidden)))


def _transformer():
    inputs = keras.Input((4,))
    tokens = layers.Embedding(7, 6)(inputs)
    attended = layers.MultiHeadAttention(2, 3)(tokens, tokens)
    x = layers.LayerNormalization()(layers.Add()([tokens, attended]))
    mixed = layers.Dense(6)(layers.Dense(8, "gelu")(x))
    x = layers.LayerNormalization()(layers.Add()([x, mixed]))
    pooled = layers.GlobalAveragePooling1D()(x)
    return _compiled(keras.Model(inputs, layers.Dense(3)(pooled)))


def _attention():
    inputs = keras.Input((4, 3))
    hidden = layers.MultiHeadAttention(2, 3)(inputs, inputs)
    hidden = layers.Flatten()(hidden)
    return _compiled(keras.Model(inputs, layers.Dense(3)(hidden)))


def _sequence_output():
    inputs = keras.Input((4, 2))
    hidden = layers.SimpleRNN(3, return_sequences=True)(inputs)
    return _compiled(keras.Model(inputs, layers.Dense(3)(hidden)))


class Steps(keras.Model):
    """A `train_step` and a `compute_loss` of its own."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(4, "tanh")
        self.out = layers.Dense(3)

    def call(self, x):
        return self.out(self.hidden(x))

    def train_step(self, data):
        return super().train_step(data)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        base = super().compute_loss(x, y, y_pred, sample_weight)
        each = keras.ops.sum(keras.ops.square(y_pred), axis=-1)
        if sample_weight is not None:
            each = each * sample_weight
        return base + 0.25 * keras.ops.mean(each)


class Penalised(keras.layers.Layer):
    """`add_loss` of a function of the weights."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4), initializer="glorot_uniform")

    def call(self, x):
        self.add_loss(0.25 * keras.ops.sum(keras.ops.power(self.kernel, 4)))
        return keras.ops.tanh(x @ self.kernel)


def _steps():
    model = _compiled(Steps())
    model(np.zeros((1, 4)))
    return model


def _vectors(classes=3):
    return lambda rng: (rng.normal(size=(6, 4)), rng.integers(0, classes, 6))


ACTIVATIONS = [
    "elu", "exponential", "gelu", "leaky_relu", "linear", "mish", "relu", "relu6", "selu",
    "sigmoid", "silu", "softmax", "softplus", "softsign", "swish", "tanh",
]  # fmt: skip

ZOO = {
    "Dense tanh": _classify(lambda: [layers.Dense(4, "tanh")], (3,)),
    **{
        f"side by side: {', '.join(names)}": _activations(names)
        for names in (ACTIVATIONS[:6], ACTIVATIONS[6:11], ACTIVATIONS[11:])
    },
    "Conv1D": _classify(lambda: [layers.Conv1D(2, 3, activation=SMOOTH)], (6, 2)),
    "Conv2D": _classify(lambda: [layers.Conv2D(2, 3, activation=SMOOTH)], (5, 5, 2)),
    "Conv3D": _classify(lambda: [layers.Conv3D(2, 2, activation=SMOOTH)], (3, 3, 3, 1)),
    "side by side: other convolutions": _side_by_side(
        [
            lambda: [layers.DepthwiseConv2D(2, activation=SMOOTH)],
            lambda: [layers.SeparableConv2D(2, 2, activation=SMOOTH)],
            lambda: [layers.Conv2DTranspose(2, 2, strides=2, activation=SMOOTH)],
        ],
        (4, 4, 2),
    ),
    "side by side: poolings": _side_by_side(
        [
            lambda make=make: [layers.Conv2D(2, 2, activation=SMOOTH), make()]
            for make in (
                lambda: layers.MaxPooling2D(2),
                lambda: layers.AveragePooling2D(2),
                layers.GlobalMaxPooling2D,
                layers.GlobalAveragePooling2D,
            )
        ],
        (5, 5, 1),
    ),
    "MaxPooling1D": _classify(lambda: [layers.Conv1D(2, 2), layers.MaxPooling1D()], (6, 1)),
    "UpSampling and padding": _classify(
        lambda: [layers.Conv2D(1, 2), layers.UpSampling2D(), layers.ZeroPadding2D()], (3, 3, 1)
    ),
    "side by side: normalisations": _side_by_side(
        [
            lambda make=make: [layers.Dense(6), make()]
            for make in (
                *(layers.BatchNormalization, layers.LayerNormalization, layers.UnitNormalization),
                lambda: layers.GroupNormalization(2),
                *([layers.RMSNormalization] if hasattr(layers, "RMSNormalization") else []),
            )
        ],
        (3,),
    ),
    "dropout": _classify(
        lambda: [layers.GaussianNoise(0.5), layers.Dense(4, "tanh"), layers.Dropout(0.5)], (3,)
    ),
    "augmentation": _classify(
        lambda: [layers.RandomFlip(), layers.RandomRotation(0.5), layers.Conv2D(1, 2)], (4, 4, 1)
    ),
    "Embedding": _tokens(lambda: [layers.Embedding(7, 3)]),
    "Embedding with mask, LSTM": _tokens(
        lambda: [layers.Embedding(7, 3, mask_zero=True), layers.LSTM(3)]
    ),
    "GRU": _classify(lambda: [layers.GRU(3)], (4, 2)),
    "SimpleRNN": _classify(lambda: [layers.SimpleRNN(3)], (4, 2)),
    "Bidirectional": _classify(lambda: [layers.Bidirectional(layers.SimpleRNN(2))], (4, 2)),
    "ConvLSTM2D": _classify(lambda: [layers.ConvLSTM2D(1, 2)], (2, 3, 3, 1)),
    "TimeDistributed": _classify(lambda: [layers.TimeDistributed(layers.Dense(2, "tanh"))], (3, 2)),
    "EinsumDense": _classify(
        lambda: [layers.EinsumDense("abc,cd->abd", (3, 3), activation="tanh")], (3, 2)
    ),
    "MultiHeadAttention": (
        _attention,
        lambda rng: (rng.normal(size=(6, 4, 3)), rng.integers(0, 3, 6)),
    ),
    "transformer block": (
        _transformer,
        lambda rng: (rng.integers(0, 7, (6, 4)), rng.integers(0, 3, 6)),
    ),
    "sequence output": (
        _sequence_output,
        lambda rng: (rng.normal(size=(6, 4, 2)), rng.integers(0, 3, (6, 4))),
    ),
    "residual and branches": (_residual, _vectors()),
    "several inputs": (
        _two_inputs,
        lambda rng: (
            {"a": rng.normal(size=(6, 3)), "b": rng.normal(size=(6, 2))},
            rng.integers(0, 3, 6),
        ),
    ),
    "several outputs": (
        _two_outputs,
        lambda rng: (
            rng.normal(size=(6, 4)),
            {"kind": rng.integers(0, 3, 6), "size": rng.normal(size=(6, 2))},
        ),
    ),
    "shared layer": (_shared, _vectors()),
    "nested models": (_nested, _vectors()),
    "frozen backbone": (_frozen_backbone, _vectors()),
    "custom train_step and compute_loss": (_steps, _vectors()),
    "add_loss": _classify(lambda: [Penalised()], (3,)),
    "activity regulariser": _classify(
        lambda: [layers.Dense(4, "tanh", activity_regularizer=keras.regularizers.L2(0.25))], (3,)
    ),
    "kernel regulariser": _classify(
        lambda: [layers.Dense(4, "tanh", kernel_regularizer=keras.regularizers.L2(0.25))], (3,)
    ),
}


# Fewer kernels for these.
LARGE = {"Embedding with mask, LSTM", "GRU", "SimpleRNN", "sequence output"}
LARGE |= {"Bidirectional", "ConvLSTM2D", "transformer block"}
# Tracing the derivatives of some takes too many seconds for each run.
SLOW = LARGE | {"shared layer", "side by side: poolings"}
SLOW |= {"side by side: relu, relu6, selu, sigmoid, silu", "side by side: other convolutions"}
SLOW |= {"residual and branches", "UpSampling and padding", "augmentation", "kernel regulariser"}


@keras.saving.register_keras_serializable("tests")
class Reconstruction(keras.Model):
    """Its own loss takes inputs and outputs together, of one precision, and no labels."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        losses = keras.ops.mean((y_pred - x) ** 2, -1)
        return keras.ops.mean(losses if sample_weight is None else losses * sample_weight)
