"""Passes where the chunks are: a task for each on Dask's distributed scheduler."""

import dataclasses

from keras_influence.engine.data.compute import awaited, client_of, started
from keras_influence.engine.passes.journey import Parcel
from keras_influence.engine.passes.run import Run
from keras_influence.engine.passes.sums import added, in_eights


@dataclasses.dataclass(frozen=True)
class _Sent:
    """What all tasks of a pass share: it goes to the scheduler once, and to each worker once."""

    ground: Parcel
    values: tuple


def total(work, ground, batches, values):
    """As `passes.total`; sums are added up where they are made, and one comes back."""
    import dask

    add = dask.delayed(_added, pure=False)
    tasks = _tasks(_sum, work, ground, batches, values)
    while len(tasks) > 1:
        tasks = list(in_eights(tasks, lambda some: add(list(some))))
    return awaited(*started(client_of(), tasks))


def each(work, ground, batches, values):
    """As `passes.each`; results stay where they are until it is their turn."""
    tasks = _tasks(_list, work, ground, batches, values)
    futures = started(client_of(), tasks)[::-1]
    while futures:
        # Popped, so that the cluster may forget it.
        yield from awaited(futures.pop())


def _tasks(kind, work, ground, batches, values):
    import dask

    # One key of its own, with no look into it: as an argument of each task it would be sent with
    # each. Scattered, it would be lost with the worker that holds it.
    sent = dask.delayed(_Sent(Parcel.of(ground), values), traverse=False, pure=False)
    return batches.tasks(kind, sent, work)


# ---- what runs on a worker


def _sum(arrays, place, sent, work):
    # In this order: the settings of Keras come with the ground, and data are cast by them.
    ground = sent.ground.arrived()
    return work(ground, Run(place.batches(arrays), place.number, place.start), *sent.values)


def _list(arrays, place, sent, work):
    return list(_sum(arrays, place, sent, work))


def _added(parts):
    return added(parts)
