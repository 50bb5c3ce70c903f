"""A Dask cluster of this machine, for one command or block.

Comes in: how many workers. Goes out: its scheduler's address. It runs in a process of its own, because Dask's
workers import the main module of the process that starts them, which may be anybody's script.
"""

import contextlib
import functools
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from distributed import LocalCluster

from wsi_mil.errors import ClusterError
from wsi_mil.parallel.children import Child
from wsi_mil.parallel.processes import cpu_count

_END_S = 10.0


@contextmanager
def local_scheduler(workers: int = 0) -> Iterator[str]:
    """Start a Dask cluster on this machine, ``workers`` processes of a thread each; yield its address.

    0 is one per core. It ends with the block.
    """
    child = Child()
    try:
        child.ask(functools.partial(_run_local, workers or cpu_count()))
        try:
            address = child.channel.recv()
        except EOFError as error:
            raise ClusterError(f"--dask local: the cluster did not start: {child.how_it_ended()}.") from error
        yield address
        child.channel.send(None)
        with contextlib.suppress(EOFError, OSError):
            child.channel.poll(_END_S)  # its workers have ended, or it has
    finally:
        child.close()


def _run_local(workers: int, channel: Connection) -> None:
    """In a child: be the cluster until it is not needed any more."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # its workers inherit it, and are ended so
    with LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
        memory_limit=0,  # else each has its part of the machine's: it is paused near that, and killed
    ) as cluster:
        channel.send(str(cluster.scheduler_address))
        with contextlib.suppress(EOFError):
            channel.recv()
    channel.send(None)
