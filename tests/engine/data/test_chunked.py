"""Dask arrays as batches: the rows that they were cut from, in their places, and little memory."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_influence.engine.data import batches as data_room

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

X, Y = np.arange(36.0).reshape(12, 3), np.arange(12)
CHUNKS = {"equal": (4, 4, 4), "one": (12,), "unequal": (1, 8, 3), "empty": (0, 5, 0, 7, 0)}


def chunked(sizes=(5, 4, 3)):
    return da.from_array(X, chunks=(sizes, 3)), da.from_array(Y, chunks=(sizes,))


def rows_of(batches):
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


@pytest.mark.parametrize("sizes", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_are_the_rows_in_order(sizes, batch_size):
    batches = data_room.read(chunked(sizes), batch_size)
    x, y = rows_of(batches)
    assert np.array_equal(x, X) and np.array_equal(y, Y)
    assert batches.n == 12
    assert [len(y) for _, y in batches] == [
        len(part)
        for size in sizes
        for part in np.split(np.arange(size), range(batch_size, size, batch_size))
        if len(part)
    ]
    assert len(batches) == len(list(batches))
    again = batches.in_batches_of(2)
    assert np.array_equal(rows_of(again)[1], Y) and len(next(iter(again))[1]) <= 2


@pytest.mark.parametrize("sizes", CHUNKS.values(), ids=CHUNKS)
def test_head_and_subset_take_rows_by_position(sizes):
    batches = data_room.read(chunked(sizes), 3)
    assert batches.head(7)[1].numpy().tolist() == list(range(7))
    assert batches.head(50)[1].numpy().tolist() == list(range(12))
    asked = [11, 0, 4, 4, 7, 1]
    x, y = rows_of(batches.subset(asked))
    assert y.tolist() == asked and np.array_equal(x, X[asked])
    assert batches.subset([]).n == 0


def test_all_parts_are_cut_as_x_is_whatever_they_are():
    x, weights = chunked()[0], np.linspace(1, 2, 12)
    nested = {"a": x, "b": da.from_array(X[:, :1], chunks=(7, 1))}, tf.constant(Y), weights
    for x, y, w in data_room.read(nested, 2):
        here = y.numpy()
        assert np.array_equal(x["a"], X[here]) and np.array_equal(x["b"], X[here, :1])
        assert np.array_equal(w, weights[here])
    texts = np.array([f"text {i}" for i in Y], object)
    for x, y in data_room.read((da.from_array(texts, chunks=5), chunked()[1]), 4):
        assert [t.decode() for t in np.ravel(x)] == [f"text {i}" for i in y.numpy()]


def test_tables_are_what_pandas_tables_are():
    """A filter leaves parts of unknown length, one of them empty; columns are cast as together."""
    dd, pandas = pytest.importorskip("dask.dataframe"), pytest.importorskip("pandas")
    columns = {"a": X[:, 0], "b": np.arange(12) * 3, "label": Y, "weight": Y / 4}
    table = dd.from_pandas(pandas.DataFrame(columns), npartitions=4)
    some = table[table["label"] > 3]
    data = some[["a", "b"]], some["label"], some["weight"]
    batches = data_room.read(data, 2)
    kept = np.arange(4, 12)
    x, y, w = (np.concatenate(part) for part in zip(*batches))
    assert np.array_equal(x, np.stack([X[kept, 0], kept * 3], 1)) and x.dtype == float
    assert np.array_equal(np.ravel(y), kept) and np.array_equal(np.ravel(w), kept / 4)
    assert batches.n == 8 and len(batches) == 5  # Of the parts of 3 rows, one is empty.
    nested = {"a": some["a"], "b": some["b"].to_dask_array(lengths=True)}, some["label"]
    x, _ = data_room.read(nested, 8).head(8)
    assert np.array_equal(np.ravel(x["a"]), X[kept, 0]) and np.array_equal(x["b"], kept * 3)


@pytest.mark.filterwarnings("ignore:Dask currently has limited support")
def test_a_table_of_words():
    dd, pandas = pytest.importorskip("dask.dataframe"), pytest.importorskip("pandas")
    words = dd.from_pandas(pandas.DataFrame({"a": list("abcde")}), npartitions=2)
    found = data_room.read((words["a"], Y[:5]), 2).head(5)[0]
    assert b"".join(np.ravel(found)) == b"abcde"


def test_classes_are_weighted_as_in_fit():
    batches = data_room.read(
        chunked(), 4, class_weight={0: 3.0, **dict.fromkeys(range(1, 12), 1.0)}
    )
    weights = np.concatenate([w for _, _, w in batches])
    assert weights.tolist() == [3.0] + [1.0] * 11


@pytest.mark.parametrize("sizes", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("batch_size", [1, 5, 11])
def test_random_minibatches_prefer_no_example_whatever_the_chunks_are(sizes, batch_size):
    batches = data_room.read(chunked(sizes), 4)
    draws, many = 2000, batches.sampler(batch_size, 5)
    mean, pairs = np.zeros(12), set()
    # Reading is not what is asked here: as many draws as it takes to see a bias of a tenth.
    batches._taken = lambda positions: (None, tf.constant(positions))
    for _ in range(draws):
        some = next(many)[1].numpy()
        assert len(set(some)) == len(some) == batch_size
        mean += np.bincount(some, minlength=12) / batch_size
        pairs |= {(a, b) for a in some for b in some}
    share = batch_size / 12
    error = np.sqrt(share * (1 - share) / draws) / batch_size
    assert np.abs(mean / draws - 1 / 12).max() < 4 * error
    assert batch_size == 1 or len(pairs) == 144


def test_the_rows_of_a_minibatch_belong_together_and_come_again():
    first, again, other = (
        [next(sampler) for _ in range(5)]
        for sampler in (data_room.read(chunked(), 4).sampler(4, seed) for seed in (3, 3, 4))
    )
    for x, y in first:
        assert np.array_equal(x, X[y.numpy()])
    labels = [[y.numpy().tolist() for _, y in some] for some in (first, again, other)]
    assert labels[0] == labels[1] != labels[2]


def noise(seen=None):
    """Chunks that are drawn anew at each pass, or in another order."""
    rng = np.random.default_rng(0)
    if seen is None:
        return da.from_delayed(dask.delayed(rng.normal, pure=False)(size=(6, 3)), (6, 3), float)
    return da.from_delayed(dask.delayed(lambda: rng.permutation(X), pure=False)(), (12, 3), float)


@pytest.mark.parametrize("x", [noise(), noise("order")], ids=["numbers", "order"])
def test_chunks_that_change_from_pass_to_pass_are_refused(x):
    batches = data_room.read((x, Y[: len(x)]), 4)
    for ask in (lambda: list(batches), lambda: batches.subset([0, 3]), lambda: batches.head(2)):
        with pytest.raises(ValueError, match="`train` gives other batches at each pass"):
            ask()


def bad(value):
    x = X.copy()
    x[7, 1] = value
    return da.from_array(x, chunks=(3, 3)), Y


WRONG = {
    "other axes": (
        (da.from_array(X, chunks=(4, 2)), Y),
        r"x of `train`.*first axis alone.*x.rechunk\({0: 'auto', 1: -1}\)",
    ),
    "unknown": (
        (chunked()[0][chunked()[1] > 2], Y[3:]),
        r"x of `train` has chunks of unknown size.*x.compute_chunk_sizes\(\)",
    ),
    "lengths": ((chunked()[0], Y[:7]), r"as many rows in x as in y.*x: \[12\], y: \[7\]"),
    "NaN": (bad(np.nan), r"`train` has NaN.* in x, first in example 7 "),
    "infinite": (bad(-np.inf), r"`train` has NaN.* in x, first in example 7 "),
    "empty": ((chunked()[0][:0], Y[:0]), "at least one example"),
    "not arrays": (
        (chunked()[0], dask.delayed(Y)),
        "y of `train` should be a Dask array or table. Received: Delayed.*from_delayed",
    ),
}


@pytest.mark.parametrize("data, match", WRONG.values(), ids=WRONG)
def test_what_cannot_be_used_is_refused_with_the_way_out(data, match):
    with pytest.raises((ValueError, TypeError), match=match):
        data_room.read(data, 4)


def test_dask_is_not_imported_for_other_data():
    code = (
        "import sys, numpy as np\n"
        "from keras_influence.engine.data import batches\n"
        "list(batches.read((np.ones((4, 2)), np.ones(4))))\n"
        "assert not {'dask', 'distributed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_a_pass_holds_one_chunk_at_a_time():
    chunk, count = 50_000, 50

    def made(block_info=None):
        return np.full((chunk, 20), float(block_info[None]["chunk-location"][0]))

    x = da.map_blocks(made, chunks=((chunk,) * count, (20,)), dtype=float)
    batches = data_room.read((x[: 2 * chunk], np.zeros(2 * chunk)), 1000)  # What is there once.
    list(batches)
    before = _resident("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    batches = data_room.read((x, np.zeros(chunk * count)), 1000)
    means = [float(x[0, 0]) for x, _ in batches][:: chunk // 1000]
    batches.subset(np.arange(0, chunk * count, chunk))
    next(batches.sampler(1000, 0))
    assert means == list(range(count))
    # 400 MB in chunks of 8 MB, and y.
    assert _resident("VmHWM") - before < 70


def _resident(name):
    """Megabytes of this process: now (VmRSS), or the most since they were last cleared (VmHWM)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(name))
