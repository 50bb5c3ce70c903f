"""Processes of this machine that are asked to do things, and that may die of it.

Comes in: work. Goes out: a ``Child`` that does it, its answers, and words for how it ended. Children are
fresh interpreters: OpenSlide, OpenCV and torch hold threads and locks that do not survive a fork, and what
``multiprocessing`` starts imports the user's main module. A child that has done its work is kept for a few
seconds, for the next stage or call.
"""

import atexit
import contextlib
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import spawn, util
from multiprocessing.connection import Connection, Pipe

from wsi_mil import pulse
from wsi_mil.parallel.child import IDLE_S, ChildWork

_KEPT_S = IDLE_S / 2  # of the time for which an idle child waits: it never ends in the moment it is taken
_END_S = 2.0  # a process that is deaf to SIGKILL for so long waits for a disk; it is left behind

_WORDS = {
    signal.SIGSEGV: "a library crashed",
    signal.SIGBUS: "a library crashed, or a file became shorter while it was read",
    signal.SIGABRT: "a library gave up",
    signal.SIGILL: "a library crashed",
    signal.SIGFPE: "a library crashed",
    signal.SIGKILL: "its process was killed, most likely because the machine's memory ran out",
}

_idle: list["Child"] = []
_lock = threading.Lock()
_left_behind: list[subprocess.Popen[bytes]] = []


class Child:
    """One process. ``channel`` is what it listens to; ``ended_for`` why it was ended on purpose, or ""."""

    def __init__(self) -> None:
        """Start it."""
        self.ended_for = ""
        self.idle_since = time.monotonic()
        self.channel, theirs = Pipe(duplex=True)
        lifeline, self._lifeline = os.pipe()
        page = memory_file("wsi-mil-pulse", pulse.SIZE)
        try:
            self.page = mmap.mmap(page, pulse.SIZE)
            code = (
                f"import sys; sys.path[:] = {sys.path!r}; from wsi_mil.parallel.child import main; "
                f"main({theirs.fileno()}, {page}, {lifeline})"
            )
            flags = util._args_from_interpreter_flags()  # type: ignore[attr-defined]
            with without_interrupts():
                self.process = subprocess.Popen(
                    [os.fsdecode(spawn.get_executable() or sys.executable), *flags, "-c", code],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), page, lifeline),
                )
        finally:
            theirs.close()
            os.close(page)
            os.close(lifeline)
        self._closing = threading.Lock()
        self._closed = False

    def ask(self, work: ChildWork) -> None:
        """Give it something to do."""
        where = None
        with contextlib.suppress(OSError):  # the folder that we stand in is gone
            where = os.getcwd()  # noqa: PTH109 - it travels as text
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dead: its channel says so
            self.channel.send_bytes(pickle.dumps((where, pickle.dumps(work))))

    def kill(self, why: str = "") -> None:
        """End it now; for any thread. Its channel is closed by ``close`` alone."""
        self.ended_for = self.ended_for or why
        self.process.kill()

    def close(self) -> None:
        """End it, if it has not ended, and let go of all that belongs to it."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self.process.kill()
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            _left_behind.append(self.process)
        self.channel.close()
        os.close(self._lifeline)
        # The page is not closed: another thread may just be looking at it. It goes with the last who does.

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    @property
    def killed_by_others(self) -> bool:
        """Whether it ended by a SIGKILL that was not ours: its work may be innocent."""
        return not self.ended_for and self._code() == -signal.SIGKILL

    def how_it_ended(self) -> str:
        """Return why it ended and what it was at, in words for people."""
        at = pulse.words_of(self.page)
        where = f" while {at}" if at else ""
        if self.ended_for:
            return self.ended_for + where
        code = self._code()
        if code is not None and code < 0:
            number = signal.Signals(-code)
            return f"{_WORDS.get(number, 'its process was ended')} ({number.name}){where}"
        return f"its process ended with exit code {code}{where}"

    def _code(self) -> int | None:
        try:
            return self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return None


def take() -> Child:
    """Return a child that has nothing to do: one that is there, or a new one."""
    ended = []
    try:
        with _lock:
            while _idle:
                child = _idle.pop()
                if time.monotonic() - child.idle_since < _KEPT_S and child.alive:
                    return child
                ended.append(child)
    finally:
        for each in ended:
            each.close()
    return Child()


def give_back(child: Child) -> None:
    """Keep a child that has done what it was asked for a few seconds."""
    child.idle_since = time.monotonic()
    with _lock:
        _idle.append(child)
        old = [each for each in _idle if time.monotonic() - each.idle_since > _KEPT_S]
        _idle[:] = [each for each in _idle if each not in old]
    for each in old:
        each.close()


def end_idle() -> None:
    """End the children that have nothing to do."""
    with _lock:
        idle, _idle[:] = list(_idle), []
    for each in idle:
        each.close()


def memory_file(name: str, size: int) -> int:
    """Return the number of an open file of ``size`` bytes that is memory and has no place in a folder.

    Not /dev/shm: a container's is 64 MiB, and what a killed process leaves there stays.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create(name)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Start processes that ignore Ctrl-C from their first moment on: it is the parent that ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


atexit.register(end_idle)

__all__ = [
    "Child",
    "ChildWork",
    "Connection",
    "end_idle",
    "give_back",
    "memory_file",
    "take",
    "without_interrupts",
]
