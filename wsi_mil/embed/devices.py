"""Several devices: a process for each, which take slides from the run's claims until none is left.

Comes in: the devices' names and what each process is to do. Goes out: news of all of them at one listener.
Processes share nothing but the run folder, so that one that dies leaves the others at work.
"""

import contextlib
import functools
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from wsi_mil import parallel
from wsi_mil.errors import WsiMilError
from wsi_mil.parallel import Child, Outcome

Target = Callable[..., dict[str, Any]]


class Listener(Protocol):
    """Whoever is told how the work goes on."""

    def advance(self, patches: int) -> None:
        """Hear of patches that were computed."""

    def finished(self, outcome: Outcome) -> None:
        """Hear what became of a slide."""

    def say(self, words: str) -> None:
        """Hear what a user should know."""


class Messages:
    """The listener in a process that is not the user's own: it sends everything there. For any thread."""

    def __init__(self, channel: Connection) -> None:
        """Send through ``channel``, which nobody else writes to: a process that dies in it harms no other."""
        self._channel = channel
        self._lock = threading.Lock()

    def advance(self, patches: int) -> None:
        """Tell of patches that were computed."""
        self.send("advance", patches)

    def finished(self, outcome: Outcome) -> None:
        """Tell of a slide."""
        self.send("finished", outcome)

    def say(self, words: str) -> None:
        """Tell people something."""
        self.send("say", words)

    def send(self, kind: str, content: Any) -> None:
        """Send anything else."""
        # Nobody listens any more when the command ends: this process is being ended too.
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._channel.send((kind, content))


def run_on(
    devices: Sequence[str], target: Target, arguments: tuple[Any, ...], listener: Listener
) -> dict[str, Any]:
    """Call ``target(*arguments, device, messages)`` in a process per device; return the facts each returned.

    ``listener`` is told what the processes tell. A process that dies is named there; the others go on. A
    device that is named twice has two processes.

    Raises:
        WsiMilError: what a process raised; the others are ended.
    """
    facts: dict[str, Any] = {"device": list(devices)}
    processes: dict[Connection, tuple[str, Child]] = {}
    try:
        for name, device in _named(devices):
            child = parallel.Child()
            processes[child.channel] = name, child
            child.ask(functools.partial(_enter, target, arguments, device))
        running = dict(processes)
        while running:
            ready = wait(list(running))
            for receiver in [each for each in running if each in ready]:
                if not _listen(*running[receiver], listener, facts):
                    del running[receiver]
    except BaseException:
        for _, child in processes.values():
            child.process.terminate()
        for _, child in processes.values():
            with contextlib.suppress(EOFError, OSError):  # until it has ended: nothing half-written stays
                while child.channel.recv():
                    pass
        raise
    finally:
        for _, child in processes.values():
            child.close()
    return facts


def _listen(name: str, child: Child, listener: Listener, facts: dict[str, Any]) -> bool:
    """Take the next message of a process to the listener or the facts; False where it has ended."""
    try:
        kind, content = child.channel.recv()
    except (EOFError, OSError):  # its end, or in the middle of a message
        listener.say(f"embed: the process on {name} died ({child.how_it_ended()}); the others go on")
        return False
    if kind == "error":
        raise content
    if kind == "over":
        facts |= {"precision": content.get("precision"), name: content}
        return False
    getattr(listener, kind)(content)
    return True


def _named(devices: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield a name for each process, and its device."""
    seen: Counter[str] = Counter()
    for device in devices:
        seen[device] += 1
        yield device if seen[device] == 1 else f"{device} ({seen[device]})", device


def _enter(target: Target, arguments: tuple[Any, ...], device: str, channel: Connection) -> None:
    previous = signal.signal(signal.SIGTERM, _interrupt)  # leave nothing half-written
    messages = Messages(channel)
    last: tuple[str, Any]
    try:
        try:
            last = "over", target(*arguments, device, messages)
        except WsiMilError as error:
            last = "error", error
        signal.signal(signal.SIGTERM, previous)  # nothing is open any more
        messages.send(*last)
    except KeyboardInterrupt:
        raise SystemExit(1) from None


def _interrupt(_signal: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise KeyboardInterrupt
