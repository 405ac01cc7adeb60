"""The models and data that the benchmarks share."""

import gzip
import pathlib
import platform
import time

import keras
import numpy as np
import tensorflow as tf

layers = keras.layers

# Where Debian's package dataset-fashion-mnist puts the images.
FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")


def fashion_mnist(n, split="train"):
    """The first n images (28, 28, 1) in [0, 1] with labels; random stand-ins without the package.

    Returns:
        `(x, y, name)`; `name` says which of the two it is.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    found = sorted(FASHION_MNIST.rglob(f"{prefix}-*ubyte*"))
    if len(found) < 2:
        rng = np.random.default_rng(0 if split == "train" else 1)
        x = rng.random((n, 28, 28, 1), np.float32)
        return x, rng.integers(0, 10, n), "random images (dataset-fashion-mnist is not installed)"
    images, labels = (_read(next(p for p in found if kind in p.name)) for kind in ("idx3", "idx1"))
    x = images[16:].reshape(-1, 28, 28, 1)[:n].astype(np.float32) / 255
    return x, labels[8:][:n].astype(np.int64), "Fashion-MNIST"


def _read(path):
    raw = path.read_bytes()
    return np.frombuffer(gzip.decompress(raw) if path.suffix == ".gz" else raw, np.uint8)


def _classifier(*body):
    stack = [keras.Input((28, 28, 1)), *body, layers.Dense(10, activation="softmax")]
    return _compiled(keras.Sequential(stack))


def _compiled(model):
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    return model


MODELS = {
    "softmax": lambda: _classifier(layers.Flatten()),
    "mlp": lambda: _classifier(layers.Flatten(), layers.Dense(128, activation="relu")),
    "conv": lambda: _classifier(
        layers.Conv2D(16, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
    ),
}


def tokens(x):
    """Images (n, 28, 28, 1) as 49 token ids each: means of 4 x 4 pixels, in 32 grey levels."""
    means = x.reshape(len(x), 7, 4, 7, 4).mean((2, 4))
    return np.minimum(means * 32, 31).astype(np.int32).reshape(len(x), 49)


def _transformer(width=32, heads=4, blocks=2):
    """Token and position embeddings, two pre-norm encoder blocks, mean pooling: p = 19,658."""
    inputs = keras.Input((49,), dtype="int32")
    positions = keras.ops.arange(49)
    x = layers.Embedding(32, width)(inputs) + layers.Embedding(49, width)(positions)
    for _ in range(blocks):
        h = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(heads, width // heads)(h, h)
        h = layers.LayerNormalization()(x)
        x = x + layers.Dense(width)(layers.Dense(2 * width, activation="gelu")(h))
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return _compiled(keras.Model(inputs, layers.Dense(10, activation="softmax")(x)))


def _resnet20():
    """He et al. 2016, section 4.2, with n = 3 and one input channel: 19 convolutions, one dense."""

    def conv(x, width, stride=1, activation=True):
        x = layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        return layers.ReLU()(x) if activation else x

    inputs = keras.Input((28, 28, 1))
    x = conv(inputs, 16)
    for width in (16, 32, 64):
        for block in range(3):
            stride = 2 if width > 16 and block == 0 else 1
            shortcut = x
            if stride == 2:
                shortcut = layers.Conv2D(width, 1, 2, use_bias=False)(x)
            x = layers.ReLU()(conv(conv(x, width, stride), width, 1, False) + shortcut)
    x = layers.GlobalAveragePooling2D()(x)
    return _compiled(keras.Model(inputs, layers.Dense(10, activation="softmax")(x)))


def _bilstm(width=16):
    """The rows of an image as a sequence: p = 6,090."""
    stack = [keras.Input((28, 28, 1)), layers.Reshape((28, 28))]
    stack += [layers.Bidirectional(layers.LSTM(width)), layers.Dense(10, activation="softmax")]
    return _compiled(keras.Sequential(stack))


MODELS |= {"transformer": _transformer, "resnet20": _resnet20, "bilstm": _bilstm}


def data(name, n, split="train"):
    """`(x, y)` for one of `MODELS`."""
    x, y, _ = fashion_mnist(n, split)
    return (tokens(x) if name == "transformer" else x), y


def trained(name, x, y, epochs=5, seed=0):
    """One of `MODELS`, trained for a few epochs."""
    keras.utils.set_random_seed(seed)
    model = MODELS[name]()
    model.fit(x, y, epochs=epochs, batch_size=128, verbose=0)
    return model


def environment():
    """The machine and the versions, as a dict; what its float32 matrix products reach tells machines of one name apart."""
    return {
        "processor": _processor(),
        "float32 GFLOP/s": _float32_peak(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def _float32_peak(size=2048, times=5):
    """The most of several products of square matrices, by the clock, rounded."""
    square, seconds = tf.random.normal((size, size)), []
    for _ in range(times):
        start = time.perf_counter()
        tf.matmul(square, square).numpy()
        seconds.append(time.perf_counter() - start)
    return round(2e-9 * size**3 / min(seconds))


def _processor():
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()
