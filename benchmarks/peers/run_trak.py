"""TRAK (Park et al. 2023), in pure PyTorch without its CUDA kernel.

Settings: `dim` of the random projection (0: none, the full gradients), `batch`, `ridge`.

Sign and scale: TRAK predicts the margin from the training examples that are in, so its scores,
(n_train, n_test), are positive where an example raises the margin. Ours is what leaving it out
does: the minus sign. TRAK rescales its scores, so only their order means something here. It
explains the margin whatever the problem's target is.
"""

import logging
import tempfile

import torch
from common import Answer, main
from networks import Prepared
from trak import TRAKer
from trak.projectors import BasicProjector, NoOpProjector, ProjectionType


def trak(problem, prepared, settings, clock):
    network, dim, size = prepared.network, settings.get("dim", 2048), settings.get("batch", 100)
    n, n_test = len(prepared.train[0]), len(prepared.test[0])
    p = sum(v.numel() for v in network.parameters())
    if dim:
        options = {"proj_type": ProjectionType.normal, "device": "cpu"}
        projector = BasicProjector(p, dim, 0, block_size=256, dtype=torch.float32, **options)
    else:
        projector = NoOpProjector(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        traker = TRAKer(
            network,
            "image_classification",
            train_set_size=n,
            save_dir=folder,
            device="cpu",
            projector=projector,
            use_half_precision=False,
            lambda_reg=settings.get("ridge", 0.0),
            logging_level=logging.ERROR,
        )
        traker.load_checkpoint(network.state_dict(), model_id=0)
        with clock("fit"):
            for x, y in prepared.batches(size):
                traker.featurize(batch=[x, y], num_samples=len(y))
            traker.finalize_features()
        with clock("scores"):
            traker.start_scoring_checkpoint("test", network.state_dict(), 0, n_test)
            for x, y in prepared.batches(size, prepared.test):
                traker.score(batch=[x, y], num_samples=len(y))
            scores = traker.finalize_scores("test")
        scores = scores.astype("float64").T.copy()
    return Answer(-scores)


if __name__ == "__main__":
    main({"trak": trak}, Prepared, ["traker", "torch", "numpy"], __doc__)
