"""A pass over data, as a sum or batch by batch: the one place that knows where data are."""

from keras_influence.engine.data.chunked import ChunkedBatches
from keras_influence.engine.data.compute import client_of
from keras_influence.engine.passes import cluster
from keras_influence.engine.passes.run import Run
from keras_influence.engine.passes.sums import summed


def total(work, ground, batches, *values, step=None):
    """The sum over a data set of what `work` gives for runs of its batches.

    In which order it is added up depends on the chunks of the data alone: it is the same bits
    on one machine and on a cluster.

    Args:
        work: a function of (ground, run, *values) that gives an array, or a list of such results;
            it can be imported from where it is.
        ground: the `Ground`.
        batches: `Batches`, or a list of batches.
        values: what else it takes.
        step: called with the number of batches that are done.
    """
    if not isinstance(batches, ChunkedBatches):
        return work(ground, Run(_counted(batches, step)), *values)
    if client_of() is not None:
        return cluster.total(work, ground, batches, values)
    parts = (
        work(ground, Run(_counted(part, step, place.number), place.number, place.start), *values)
        for place, part in batches.chunk_by_chunk()
    )
    return summed(parts, len(batches.places))


def each(work, ground, batches, *values):
    """What a generator `work(ground, run, *values)` gives, batch after batch.

    Args:
        As of `total`.
    """
    if not isinstance(batches, ChunkedBatches):
        yield from work(ground, Run(batches), *values)
    elif client_of() is not None:
        yield from cluster.each(work, ground, batches, values)
    else:
        for place, part in batches.chunk_by_chunk():
            yield from work(ground, Run(part, place.number, place.start), *values)


def spread(batches):
    """How many chunks of a data set are worked on at once elsewhere; 0 if passes are made here."""
    if not isinstance(batches, ChunkedBatches) or client_of() is None:
        return 0
    return max(1, min(len(batches.places), sum(client_of().nthreads().values())))


def _counted(batches, step, done=0):
    for count, batch in enumerate(batches, done + 1):
        yield batch
        if step is not None:
            step(count)
