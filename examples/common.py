"""What the experiments share: data, exact minima, and the look of the pictures."""

import argparse
import gzip
import pathlib

import quiet  # noqa: F401

# isort: split
import keras
import matplotlib
import numpy as np
import scipy.optimize
import tensorflow as tf

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's palette: told apart by all forms of colour vision.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#808080"
CLOTHES = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat",
           "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]  # fmt: skip

# Where Debian's package dataset-fashion-mnist puts the images.
FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")


def fashion_mnist(n, classes=range(10), split="train", pooled=1):
    """The first n images of these classes in [0, 1] and labels 0, 1, ... in the order of `classes`.

    Args:
        n: number of images; None for all.
        classes: which of the ten classes to take.
        split: "train" (60,000 images) or "test" (10,000).
        pooled: side of the squares of pixels to average.

    Returns:
        `(x, y)` of shapes (n, 28 / pooled, 28 / pooled, 1) and (n,).
    """
    x, y = _read("train" if split == "train" else "t10k")
    positions = {label: i for i, label in enumerate(classes)}
    rows = np.flatnonzero(np.isin(y, list(classes)))[:n]
    side = 28 // pooled
    x = x[rows].reshape(-1, side, pooled, side, pooled, 1).mean((2, 4)) / 255
    return x.astype(keras.config.floatx()), np.array([positions[label] for label in y[rows]])


def _read(prefix):
    """Debian's copy, or the one that Keras downloads."""
    files = sorted(FASHION_MNIST.rglob(f"{prefix}-*ubyte*"))
    if len(files) != 2:
        train, test = keras.datasets.fashion_mnist.load_data()
        return train if prefix == "train" else test
    raw = {}
    for path in files:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        raw["x" if "idx3" in path.name else "y"] = np.frombuffer(content, np.uint8)
    return raw["x"][16:].reshape(-1, 28, 28), raw["y"][8:]


class Minimiser:
    """SciPy's L-BFGS on a model's own full-batch loss, so that "retrained" means the minimum.

    Args:
        model: a compiled Keras model; its weights move.
        x, y: all of the training data.
    """

    def __init__(self, model, x, y):
        self.model = model
        self.shapes = [tuple(v.shape) for v in model.trainable_variables]
        self.data = tf.convert_to_tensor(x), tf.convert_to_tensor(y)

        @tf.function
        def value_and_gradient(x, y, weights):
            with tf.GradientTape() as tape:
                y_pred = model(x, training=False)
                loss = model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=weights)
            gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
            return loss, tf.concat([tf.reshape(g, [-1]) for g in gradients], 0)

        self.function = value_and_gradient
        self.n = len(y)

    def run(self, left_out=(), x=None, y=None, steps=3000, tol=1e-9):
        """Minimise from where the weights are, with some examples at weight 0, or others."""
        x = self.data[0] if x is None else tf.cast(x, self.data[0].dtype)
        y = self.data[1] if y is None else tf.cast(y, self.data[1].dtype)
        weights = np.ones(self.n, keras.config.floatx())
        weights[list(left_out)] = 0

        def objective(theta):
            self.place(theta)
            value, gradient = self.function(x, y, tf.constant(weights))
            return float(value), gradient.numpy().astype(float)

        options = {"maxiter": steps, "maxfun": 2 * steps, "gtol": tol, "ftol": 1e-15, "maxcor": 30}
        result = scipy.optimize.minimize(
            objective, self.theta(), jac=True, method="L-BFGS-B", options=options
        )
        self.place(result.x)

    def theta(self):
        return np.concatenate([v.numpy().ravel() for v in self.model.trainable_variables])

    def place(self, theta):
        """Give the model these weights."""
        parts = np.split(theta, np.cumsum([np.prod(s, dtype=int) for s in self.shapes])[:-1])
        for v, part, shape in zip(self.model.trainable_variables, parts, self.shapes):
            v.assign(part.reshape(shape))

    def changes(self, indices, loss, **options):
        """What leaving out each of these examples by itself changes `loss()` by."""
        start, before = self.theta(), loss()
        found = []
        for index in indices:
            self.place(start)
            self.run([index], **options)
            found.append(loss() - before)
        self.place(start)
        return np.array(found)


def loss_of(model, x, y):
    """A function that gives the model's loss of these examples, without the regulariser."""
    x, y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
    loss = keras.losses.get(model.loss)
    return lambda: float(tf.reduce_mean(loss(y, model(x, training=False))))


def double_precision():
    """Small changes of a loss need float64."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")


def pearson(a, b):
    return float(np.corrcoef(a, b)[0, 1])


def canvas(columns, rows=1, width=3.6, height=3.3, **options):
    """A figure and its axes, with fonts that can be read on a page."""
    plt.rcParams.update(
        {"font.size": 10, "axes.titlesize": 10.5, "axes.spines.top": False,
         "axes.spines.right": False, "legend.frameon": False}
    )  # fmt: skip
    return plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", **options
    )


def diagonal(axis, predicted, actual, colour, title, unit="loss"):
    """Predicted against actual change of a loss, with the line where they are equal."""
    ends = np.array([min(predicted.min(), actual.min()), max(predicted.max(), actual.max())])
    axis.plot(ends, ends, color=GREY, linewidth=1, zorder=0)
    axis.scatter(actual, predicted, s=14, color=colour, alpha=0.8, linewidths=0)
    axis.set(xlabel=f"actual change of test {unit}", ylabel="predicted change", title=title)
    axis.locator_params(nbins=4)


def show(axis, image, title, colour="black"):
    """One small image with a coloured frame."""
    axis.imshow(np.squeeze(image), cmap="gray_r", vmin=0, vmax=1)
    axis.set_title(title, fontsize=8, color=colour)
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(visible=True, color=colour, linewidth=1.5)


def run(main, doc):
    """Run an experiment from the command line: `--quick` and `--output`."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small version, for a first look")
    name = pathlib.Path(main.__code__.co_filename).stem
    parser.add_argument("--output", default=f"{name}.png", help="where to write the picture")
    arguments = parser.parse_args()
    keras.config.disable_interactive_logging()
    main(arguments.output, quick=arguments.quick)
    print(f"picture: {arguments.output}; TensorFlow {tf.__version__}, Keras {keras.__version__}")
