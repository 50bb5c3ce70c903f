"""A process that does what another asks of it: the entry point of all worker and reader processes.

Comes in: work through a channel. Goes out: whatever the work tells. It is started by ``children`` as a fresh
interpreter that imports what its work needs and never the user's main module.
"""

import contextlib
import fcntl
import mmap
import os
import pickle
import select
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from wsi_mil import pulse
from wsi_mil.parallel.outcome import Outcome, attempt

IDLE_S = 20.0
"""A process that nobody asks for anything for so long ends."""

_OOM_SCORE = 500  # of 1,000: where memory runs out the system ends this process and not the one that asks

ChildWork = Callable[[Connection], None]
"""What a child is asked to do; it answers through the channel."""


def main(channel: int, page: int, lifeline: int) -> None:
    """Do what comes through the channel until it closes; the numbers are of open files."""
    # It is the parent that ends us, on Ctrl-C and SIGTERM too; both may reach the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_with(lifeline)
    with contextlib.suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    pulse.watch(mmap.mmap(page, pulse.SIZE))
    os.close(page)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        _serve(Connection(channel))


def _serve(channel: Connection) -> None:
    while channel.poll(IDLE_S):
        where, packed = pickle.loads(channel.recv_bytes())
        pulse.at("starting")
        if where is not None:
            os.chdir(where)  # paths may be relative to where the parent stands now
        work: ChildWork = pickle.loads(packed)
        work(channel)
        pulse.rest()


def _end_with(lifeline: int) -> None:
    """End this process when the other end of a pipe closes, that is with the parent, whatever we are at.

    A thread that waits for it would not do: a library that hangs may hold the interpreter's lock.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # it is gone already
        os._exit(1)


class OneSlide:
    """Asks a child for one slide; it answers with the slide's ``Outcome``."""

    def __init__(self, slide_id: str, packed: bytes) -> None:
        """Take ``packed``, a pickled function and its task; what it raises when unpacked is contained."""
        self._slide_id, self._packed = slide_id, packed

    def __call__(self, channel: Connection) -> None:
        """Do it."""
        outcome = attempt(self._slide_id, unpacked, self._packed)
        try:
            message = pickle.dumps(outcome)
        except Exception as error:  # what cannot travel, such as an open file among the facts
            reason = f"its outcome cannot be sent ({type(error).__name__}: {error})"
            message = pickle.dumps(Outcome(slide_id=self._slide_id, status="failed", reason=reason))
        channel.send_bytes(message)


def unpacked(packed: bytes) -> Outcome | None:
    """Call a pickled function with its task."""
    function, task = pickle.loads(packed)
    return function(task)  # type: ignore[no-any-return]
