"""How Dask's tasks are computed: in turn on one machine, all at once on a cluster."""

import contextlib
import sys

# Seconds between looks at a cluster that is waited for, and how many of them may find it stuck.
_LOOK, _PATIENCE = 5.0, 6

_MEMORY = (
    "A worker needs 0.7 GB for TensorFlow beside the chunks that it works on. Give workers more "
    "memory (`memory_limit=`), or the data smaller chunks: `x.rechunk({0: ...})`, before they are "
    "persisted."
)


def client_of():
    """The `distributed.Client` that Dask would compute with now, None if there is none."""
    if "distributed" not in sys.modules:
        return None
    import dask
    from distributed import Client

    found = getattr(dask.base.get_scheduler(), "__self__", None)
    return found if isinstance(found, Client) else None


def one_by_one(tasks):
    """What each task gives, one held in memory at a time."""
    for task in tasks:
        (found,) = _computed([task])
        yield found
        del found


def all_of(tasks):
    """What each task gives, where only that is large which they are made from."""
    return one_by_one(tasks) if client_of() is None else _computed(tasks)


def _computed(tasks):
    client = client_of()
    if client is not None:
        return map(awaited, started(client, tasks))
    import dask

    return dask.compute(*tasks)


def started(client, tasks):
    """Tasks on a cluster, as futures."""
    with connected():
        return client.compute(tasks)


def awaited(future):
    """What a future gives, once it is there.

    Raises:
        ConnectionError: the scheduler is lost.
        MemoryError: all workers have stopped for want of memory.
        RuntimeError: workers die of a task again and again.
    """
    stuck = 0
    with connected():
        while not _is_done(future):
            stuck = stuck + 1 if _is_stuck(future.client) else 0
            if stuck >= _PATIENCE:
                future.cancel()
                raise MemoryError(
                    "All workers of the cluster have stopped, because they are at the limit of their memory. "
                    + _MEMORY
                )
        return future.result()


def _is_done(future):
    from distributed import TimeoutError, wait

    try:
        wait(future, timeout=_LOOK)
    except TimeoutError:
        return False
    return True


def _is_stuck(client):
    """Whether each worker has paused, as it does near its limit of memory, and nothing runs."""
    found = client.scheduler_info()
    workers = list(found["workers"].values())
    # Some versions show a few workers only.
    if not workers or found.get("n_workers", len(workers)) > len(workers):
        return False
    running = [worker["metrics"].get("task_counts", {}).get("executing") for worker in workers]
    return not any(running) and all(worker["status"] == "paused" for worker in workers)


@contextlib.contextmanager
def connected():
    """Say what it means where a cluster fails.

    Raises:
        ConnectionError: its scheduler is lost.
        RuntimeError: its workers die of a task again and again.
    """
    from distributed import CancelledError, KilledWorker, TimeoutError
    from distributed.comm import CommClosedError

    try:
        yield
    except (CommClosedError, CancelledError, TimeoutError) as error:
        raise ConnectionError(
            "The connection to Dask's scheduler was lost in the middle of a pass over the data. "
            "Nothing is half-done: connect anew, and call again; with `store=` the call goes on "
            "where it was."
        ) from error
    except KilledWorker as error:
        raise RuntimeError(
            f"{error.allowed_failures + 1} workers died of one task, most often because they came "
            f"to the limit of their memory; their logs say more. {_MEMORY}"
        ) from error
