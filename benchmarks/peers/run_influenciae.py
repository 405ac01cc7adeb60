"""influenciae: one Hessian-vector product, and Arnoldi. On TensorFlow 2 and Keras 2.

Settings: `dim` of the Krylov space and `rank`, the eigenvalues that are kept; `batch`.

influenciae solves one system for each training example, each with its own passes over the data,
so its conjugate gradients are not run here; `hvp` times one product with the Hessian. Sign and scale:
its influence is +∇f(test)ᵀ H⁻¹ ∇ℓ(train), without damping: divided by n it is ours with λ = 0. Its
Arnoldi 0.3.0 keeps the eigenvalues of smallest absolute value.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from common import Answer, main
from deel.influenciae.common import ForwardOverBackwardHVP, InfluenceModel
from deel.influenciae.influence import ArnoldiInfluenceCalculator


def prepare(problem, threads):
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.random.set_seed(0)
    network = _network(problem.weights)
    network.set_weights(problem.weights)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    losses = loss(problem.y_test, network.predict(problem.x_test, verbose=0))
    problem.check_loss(float(np.mean(losses)))
    layers = [i for i, layer in enumerate(network.layers) if layer.weights]
    return InfluenceModel(network, layers[0], layers[-1], loss_function=loss)


def hvp(problem, model, settings, clock):
    """One product, with a fixed random vector; `scores` is the product, (1, p)."""
    product = ForwardOverBackwardHVP(model, _batches(problem, settings))
    v = np.random.default_rng(0).standard_normal(model.nb_params).astype(np.float32)
    with clock("hvp"):
        return Answer(product(tf.constant(v)).numpy().T)


def arnoldi(problem, model, settings, clock):
    train = _batches(problem, settings)
    with clock("fit"):
        calculator = ArnoldiInfluenceCalculator(
            model,
            train,
            subspace_dim=settings.get("dim", 100),
            force_hermitian=True,
            k_largest_eig_vals=settings.get("rank", 50),
        )
    test = tf.data.Dataset.from_tensor_slices((problem.x_test, problem.y_test)).batch(500)
    with clock("scores"):
        found = calculator.estimate_influence_values_in_batches(test, train)
        scores = np.concatenate(
            [np.concatenate([s.numpy() for _, s in of_train], 1) for _, of_train in found]
        )
    return Answer(scores / len(problem.y_train))


def _batches(problem, settings):
    data = tf.data.Dataset.from_tensor_slices((problem.x_train, problem.y_train))
    return data.batch(settings.get("batch", 500))


def _network(weights):
    layers = tf.keras.layers
    body = []
    for kernel in weights[::2]:
        relu = None if kernel is weights[-2] else "relu"
        if kernel.ndim == 4:
            body += [layers.Conv2D(kernel.shape[3], kernel.shape[:2], activation=relu)]
            body += [layers.MaxPooling2D()]
        else:
            body += [layers.Flatten(), layers.Dense(kernel.shape[1], relu)]
    return tf.keras.Sequential([tf.keras.Input((28, 28, 1)), *body])


if __name__ == "__main__":
    packages = ["influenciae", "tensorflow-cpu", "numpy"]
    main({"hvp": hvp, "arnoldi": arnoldi}, prepare, packages, __doc__)
