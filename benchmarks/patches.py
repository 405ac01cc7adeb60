"""What a convolution multiplies, cut out of its input: by TensorFlow's operation, and by one with unit vectors.

    python benchmarks/patches.py

The second is what `engine/layers/views.py` takes of few numbers in a patch, where there is no GPU. Both give the same
numbers to the bit, or this ends in an error. Medians of nine, in turn, each run just before it is timed.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from problems import environment
from timing import alternate

# Examples, height, width and channels; height and width of a patch; from one to the next.
CASES = [
    ((64, 28, 28, 1), (3, 3), 1),
    ((256, 28, 28, 1), (3, 3), 1),
    ((64, 28, 28, 1), (5, 5), 1),
    ((64, 64, 64, 3), (3, 3), 1),
    ((64, 64, 64, 3), (3, 3), 2),
    ((64, 64, 64, 3), (5, 5), 1),
    ((32, 128, 128, 3), (4, 4), 4),
    ((64, 32, 32, 6), (3, 3), 1),
    ((64, 32, 32, 8), (3, 3), 1),
    ((64, 32, 32, 12), (3, 3), 1),
    ((64, 1, 500, 4), (1, 3), 1),
    ((64, 1, 500, 16), (1, 3), 1),
    ((64, 31, 31, 16), (3, 3), 1),
    ((64, 32, 32, 32), (3, 3), 1),
]


def timed(shape, size, step):
    """Numbers in a patch, and seconds of the one way and of the other."""
    x = tf.random.stateless_normal(shape, [0, 1])
    numbers = int(np.prod(size)) * shape[-1]

    def extracted():
        return tf.image.extract_patches(x, [1, *size, 1], [1, step, step, 1], [1] * 4, "SAME")

    def convolved():
        unit = tf.reshape(tf.eye(numbers), [*size, -1, numbers])
        return tf.nn.conv2d(x, unit, step, "SAME")

    if not np.array_equal(extracted(), convolved()):
        raise AssertionError(f"The patches of {shape} by {size} differ.")
    ways = {"extracted": extracted, "convolved": convolved}
    actions = {name: lambda way=way: way().numpy() for name, way in ways.items()}
    seconds = alternate(actions, repeats=9, warm=True)[0]
    return numbers, seconds["extracted"], seconds["convolved"]


def main():
    print(environment(), "", sep="\n")
    heads = ["examples", "patches", "step", "numbers", "extracted, ms", "convolved, ms", "times"]
    print(f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", sep="\n")
    for shape, size, step in CASES:
        numbers, slow, fast = timed(shape, size, step)
        about = " x ".join(map(str, shape)), " x ".join(map(str, size)), step, numbers
        figures = f"{1e3 * slow:.1f}", f"{1e3 * fast:.1f}", f"{slow / fast:.1f}"
        print(f"| {' | '.join(map(str, (*about, *figures)))} |", flush=True)


if __name__ == "__main__":
    main()
