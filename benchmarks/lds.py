"""Linear datamodelling scores of attribution methods, all against the same retrained models.

Protocol (Park et al. 2023, section 2). Data: the first training and test images of Fashion-MNIST.
Models: `lds_models.py`; `mlp` is 784-64-10, `conv` a net of 8 and 16 filters 3 x 3, stride 2, both
with L2 of 1e-3 on kernels and SGD with momentum for 30 epochs on 1,000 images; `astra`,
`dattri_lr` and `dattri_mlp` are published protocols. Random subsets of half the data (seed 0), each
trained from scratch with seeds 0, 1, 2 (of the published ones with five); the output is the margin
log(p / (1 - p)) of the right class or the loss, averaged over the seeds. Scores are of models
trained on all data with seeds 100, 101, 102; the rows "x 3" are the mean of the scores of all three.
The interval is a 95 % bootstrap interval over test examples; the table is over the first 100 of
them (--tests).

    python benchmarks/lds.py FOLDER [--models mlp conv] [--only-train] [--export OUT] [--peers DIR]
        [--methods SOURCE TRAK]  (rows whose names begin so; all by default)

FOLDER keeps the outputs of the subset models and all scores, so that a second call resumes;
--seeds 1 trains with the first seed alone, and a later call with more goes on from there.

--truth DIR takes outputs and masks from DIR/<model>.npz instead, as --export writes them;
`results/lds_truth` has those of the published protocols, as means over the seeds.

--export writes OUT/<model>.npz for other libraries, plain arrays only:
    x_train (n, 28, 28, 1) float32, y_train (n,) int64, x_test, y_test likewise
    outputs (subsets, seeds, n_test): margin or loss by subset, seed and test example
    masks (subsets, n) bool: which training examples a subset had
    weights_<k>_<i>: weight i of reference model k = 0..2, trained on all data, in the order of
        Keras's `model.weights`: kernel, bias of each layer; dense kernels are (in, out), conv
        kernels (height, width, in, out), activations are flattened as (height, width, channel)
    logits_<k> (n_test, 10): what reference model k says, to check a port against
--peers DIR reads DIR/<model>/<method>.npz files with `scores` (n_test, n) in this package's
sign (positive: leaving the training example out raises the margin), and adds them as rows. Where
the output is the loss they are turned round: it falls as the margin rises, and ranks are all that count.
"""

import argparse
import dataclasses
import itertools
import os
import pathlib
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from lds_methods import METHODS
from lds_models import PROTOCOLS
from problems import environment
from scipy.stats import spearmanr

from keras_influence.evaluation import SubsetOutputs, lds, subset_outputs

REFERENCES = (100, 101, 102)


def main(options):
    print(environment(), flush=True)
    for kind in options.models:
        protocol, folder = PROTOCOLS[kind], options.folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        train, unseen, name = protocol.data()
        keras.utils.set_random_seed(0)
        outputs = known(options.truth, kind, protocol)
        if outputs is None:
            outputs = trained(protocol, unseen, train, folder, options.seeds or protocol.seeds)
        print(f"\n{kind}, {name}, n = {len(train[1])}. {outputs!r}")
        print(f"Correlation of one seed's outputs with another's: {agreement(outputs)}", flush=True)
        models = [reference(protocol, seed, train, folder) for seed in REFERENCES]
        if options.export is not None:
            write(options.export, kind, train, unseen, outputs, models)
        if not options.only_train:
            test, outputs = first(options.tests, unseen, outputs)
            table(kind, folder, outputs, models, train, test, options)


def trained(protocol, test, train, folder, seeds):
    """The outputs of models of random subsets, kept in the folder."""
    start = time.perf_counter()
    outputs = subset_outputs(
        protocol.build(),
        test,
        train,
        fit=protocol.fit,
        target=protocol.target,
        subsets=protocol.subsets,
        seeds=tuple(range(seeds)),
        folder=folder / "outputs",
    )
    print(f"{time.perf_counter() - start:.0f} s", flush=True)
    return outputs


def known(folder, kind, protocol):
    """The same from a file, for who does not want to train; None if there is none."""
    if folder is None or not (folder / f"{kind}.npz").exists():
        return None
    with np.load(folder / f"{kind}.npz") as file:
        outputs, masks = file["outputs"], file["masks"]
    target = protocol.target.__name__ if protocol.target else "test loss"
    return SubsetOutputs(outputs, masks, tuple(range(outputs.shape[1])), target)


def agreement(outputs):
    """Spearman correlation over subsets between two seeds, mean over pairs and test examples."""
    count = outputs.outputs.shape[1]
    pairs = itertools.combinations(range(count), 2)
    found = [spearmanr(*outputs.outputs[:, pair, i].T)[0] for pair in pairs for i in range(60)]
    return f"{np.nanmean(found):.2f}" if found else "one seed"


def first(count, test, outputs):
    """The first test examples, and their outputs."""
    outputs = dataclasses.replace(outputs, outputs=outputs.outputs[:, :, :count])
    return (test[0][:count], test[1][:count]), outputs


def reference(protocol, seed, train, folder):
    """A model trained on all data from that seed, kept in the folder."""
    file = folder / f"reference_{seed}.weights.h5"
    keras.utils.set_random_seed(seed)
    model = protocol.build()
    if not file.exists():
        protocol.fit(model, {"x": train[0], "y": train[1]})
        model.save_weights(file)
    model.load_weights(file)
    return model


def write(folder, kind, train, test, outputs, models):
    """What another library needs, as plain arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"outputs": outputs.outputs, "masks": outputs.masks}
    for part, (x, y) in (("train", train), ("test", test)):
        arrays |= {f"x_{part}": x, f"y_{part}": y}
    for k, model in enumerate(models):
        arrays |= {f"weights_{k}_{i}": v.numpy() for i, v in enumerate(model.weights)}
        arrays[f"logits_{k}"] = model.predict(test[0], verbose=0)
    np.savez_compressed(folder / f"{kind}.npz", **arrays)
    print(f"exported {folder / kind}.npz", flush=True)


def table(kind, folder, outputs, models, train, test, options):
    """One row per method, best first."""
    rows = []
    chosen = {name: row for name, row in METHODS.items() if name.startswith(tuple(options.methods))}
    for name, (compute, count) in sorted(chosen.items(), key=lambda item: item[1][1]):
        parts, seconds = zip(
            *(scores(folder, kind, name, compute, k, models[k], test, train) for k in range(count))
        )
        rows.append((lds(parts[0], outputs), name, f"{seconds[0]:.0f}"))
        if count > 1:
            total = f"{sum(seconds):.0f}"
            rows.append((lds(np.mean(parts, 0), outputs), f"{name} x {count}", total))
    for file in sorted((options.peers / kind).glob("*.npz")) if options.peers else ():
        values = np.load(file)["scores"][: len(test[1])] * (1 if PROTOCOLS[kind].target else -1)
        rows.append((lds(values, outputs), f"peer: {file.stem}", ""))
    print(f"\n| {kind}: method | LDS | 95 % interval | seconds |\n|---|---|---|---|")
    for score, name, seconds in sorted(rows, key=lambda row: -row[0].mean):
        low, high = score.interval
        print(f"| {name} | {score.mean:.3f} | {low:.3f} to {high:.3f} | {seconds} |")
    print(flush=True)


def scores(folder, kind, name, compute, k, model, test, train):
    """A method's scores for reference model k and the seconds they took, kept in the folder."""
    slug = "".join(c if c.isalnum() else "_" for c in name)
    file = folder / f"scores_{slug}_{k}_{len(test[1])}.npz"
    if not file.exists():
        keras.utils.set_random_seed(REFERENCES[k])
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = np.asarray(compute(PROTOCOLS[kind], model, test, train))
        np.savez(file, scores=values, seconds=time.perf_counter() - start)
        print(f"{name}, model {k}: {time.perf_counter() - start:.0f} s", flush=True)
    with np.load(file) as found:
        return found["scores"], float(found["seconds"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--models", nargs="+", default=["mlp", "conv"], choices=PROTOCOLS)
    parser.add_argument("--seeds", type=int, help="of each subset; default: the protocol's")
    parser.add_argument("--only-train", action="store_true")
    parser.add_argument("--export", type=pathlib.Path)
    parser.add_argument("--peers", type=pathlib.Path)
    parser.add_argument("--truth", type=pathlib.Path, help="a folder of outputs")
    parser.add_argument("--tests", type=int, default=100, help="test examples in the table")
    parser.add_argument("--methods", nargs="+", default=[""], help="beginnings of rows' names")
    main(parser.parse_args())
