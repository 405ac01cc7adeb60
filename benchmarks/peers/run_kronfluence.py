"""kronfluence: EK-FAC and K-FAC.

Settings: `batch` examples per batch, `heuristic_damping` (kronfluence's own choice, a tenth of the
mean eigenvalue of each layer, in place of λ).

Sign and scale: pairwise scores are +∇f(test)ᵀ (F + λI)⁻¹ ∇ℓ(train) with F the block-diagonal
Kronecker approximation of the mean true Fisher matrix, labels drawn from the model: divided by n
they are ours.
"""

import tempfile

import torch
from common import Answer, main
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from networks import Prepared, Ready, cross_entropy, target_function


def factored(problem, prepared, settings, clock, *, strategy):
    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            x, y = batch
            logits = model(x)
            if sample:
                probabilities = logits.softmax(-1).detach()
                y = torch.multinomial(probabilities, 1).flatten()
            return cross_entropy(logits, y, reduction="sum")

        def compute_measurement(self, batch, model):
            x, y = batch
            return target_function(problem)(model(x), y)

    task, size = Classification(), settings.get("batch", 500)
    # Kronfluence wraps the modules that it is given.
    network = prepare_model(prepared.rebuilt(), task)
    loading = DataLoaderKwargs(collate_fn=lambda batch: batch)
    damping = None if settings.get("heuristic_damping") else problem.damping
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "peer", network, task, cpu=True, disable_tqdm=True, output_dir=folder, log_level=40
        )
        analyzer.set_dataloader_kwargs(loading)
        with clock("fit"):
            analyzer.fit_all_factors(
                "factors",
                Ready(*prepared.train),
                per_device_batch_size=size,
                factor_args=FactorArguments(strategy=strategy),
            )
        with clock("scores"):
            analyzer.compute_pairwise_scores(
                "scores",
                "factors",
                query_dataset=Ready(*prepared.test),
                train_dataset=Ready(*prepared.train),
                per_device_query_batch_size=len(prepared.test[0]),
                per_device_train_batch_size=size,
                score_args=ScoreArguments(damping_factor=damping),
            )
            scores = analyzer.load_pairwise_scores("scores")["all_modules"]
    return Answer(scores.numpy() / len(prepared.train[0]))


def ekfac(*arguments):
    return factored(*arguments, strategy="ekfac")


def kfac(*arguments):
    return factored(*arguments, strategy="kfac")


if __name__ == "__main__":
    packages = ["kronfluence", "torch", "numpy"]
    main({f.__name__: f for f in (ekfac, kfac)}, Prepared, packages, __doc__)
