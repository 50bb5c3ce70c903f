"""Several devices: a process for each, which take slides from the run's claims until none is left.

Comes in: the devices' names and what each process is to do. Goes out: news of all of them at one seat.
Processes share nothing but the run folder, so that one that dies leaves the others at work.
"""

import multiprocessing
import queue
import signal
from collections.abc import Callable, Sequence
from typing import Any

from wsi_mil import parallel
from wsi_mil.errors import WsiMilError
from wsi_mil.parallel import Outcome

_LOOK_S = 0.5  # how often silent processes are looked at

Target = Callable[..., dict[str, Any]]


class Messages:
    """The seat of a process that is not the user's own: everything is sent there."""

    def __init__(self, channel: Any, device: str) -> None:
        """Send through ``channel``, a queue between processes."""
        self._channel, self._device = channel, device

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
        self._channel.put((self._device, kind, content))


def run_on(devices: Sequence[str], target: Target, arguments: tuple[Any, ...], seat: Any) -> dict[str, Any]:
    """Call ``target(*arguments, device, messages)`` in a process per device; return the facts each returned.

    ``seat`` is told what the processes tell. A process that dies is named there; the others go on.

    Raises:
        WsiMilError: what a process raised; the others are ended.
    """
    # "spawn": CUDA and the threads of torch and OpenSlide do not survive a fork.
    context = multiprocessing.get_context("spawn")
    channel = context.Queue()
    processes = {
        name: context.Process(target=_enter, args=(target, arguments, name, channel), name=f"embed {name}")
        for name in devices
    }
    facts: dict[str, Any] = {"device": list(devices)}
    running = set(devices)
    for each in processes.values():
        each.start()
    try:
        while running:
            try:
                name, kind, content = channel.get(timeout=_LOOK_S)
            except queue.Empty:
                for name in [each for each in running if not processes[each].is_alive()]:
                    code = processes[name].exitcode
                    seat.say(f"embed: the process on {name} died (exit code {code}); the others go on")
                    running.discard(name)
                continue
            if kind == "over":
                running.discard(name)
                facts |= {"precision": content.get("precision")} | {name: content}
            elif kind == "error":
                raise content
            else:
                getattr(seat, kind)(content)
    except BaseException:
        for each in processes.values():
            each.terminate()
        raise
    finally:
        for each in processes.values():
            each.join()
    return facts


def _enter(target: Target, arguments: tuple[Any, ...], device: str, channel: Any) -> None:
    parallel.enter_worker()
    signal.signal(signal.SIGTERM, _interrupt)  # leave nothing half-written
    messages = Messages(channel, device)
    try:
        facts = target(*arguments, device, messages)
    except WsiMilError as error:
        messages.send("error", error)
    except KeyboardInterrupt:
        pass
    else:
        messages.send("over", facts)


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt
