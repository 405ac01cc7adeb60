"""How Dask's tasks are computed: in turn on one machine, all at once on a cluster."""

import contextlib
import sys


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
    import dask

    for task in tasks:
        with connected():
            (found,) = dask.compute(task)
        yield found
        del found


def all_of(tasks):
    """What each task gives, where only that is large which they are made from."""
    if client_of() is None:
        yield from one_by_one(tasks)
        return
    import dask

    with connected():
        found = dask.compute(*tasks)
    yield from found


@contextlib.contextmanager
def connected():
    """Say what it means where the scheduler of a cluster is lost.

    Raises:
        ConnectionError: it is.
    """
    if client_of() is None:
        yield
        return
    from distributed import CancelledError
    from distributed.comm import CommClosedError

    try:
        yield
    except (CommClosedError, CancelledError, TimeoutError) as error:
        raise ConnectionError(
            "The connection to Dask's scheduler was lost in the middle of a pass over the data. "
            "Nothing is half-done: connect anew, and call again; with `store=` the call goes on "
            "where it was."
        ) from error
