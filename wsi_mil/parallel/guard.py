"""Watch children while they work: end one that makes no progress, or takes too much memory.

Comes in: children, and the limits of what each is at. Goes out: nothing; a child that was ended says why.
"""

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wsi_mil import pulse
from wsi_mil.parallel.children import Child

_LOOK_S = 0.1
_PAGE = os.sysconf("SC_PAGE_SIZE")

AUTO_S, AUTO_S_GIB, AUTO_S_PATCHES = 300.0, 10.0, 1.0
"""Seconds without progress after which a slide is given up: so many, and more for each GiB of its file and
for each thousand of its patches."""
_LEAST_MIB = 2048
_PART = 0.9  # of the machine's memory that all readers together may take


@dataclass(frozen=True)
class Limits:
    """What a slide may take: ``seconds`` without any progress and MiB of memory; 0 is no limit."""

    seconds: float = 0.0
    memory_mib: float = 0.0


def limits_of(
    timeout: float | None, memory_mib: int | None, processes: int, *, size: float = 0, patches: float = 0
) -> Limits:
    """Return a slide's limits from the settings; None is what suits its ``size`` in bytes and its patches.

    ``processes`` share the machine's memory.
    """
    if timeout is None:
        timeout = AUTO_S + AUTO_S_GIB * size / 2**30 + AUTO_S_PATCHES * patches / 1000
    if memory_mib is None:
        memory_mib = max(_LEAST_MIB, int(_PART * machine_mib() / max(processes, 1)))
    return Limits(timeout, memory_mib)


def machine_mib() -> float:
    """Return the MiB that this machine, or our container or job on it, has."""
    total = float(_PAGE * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            total = min(total, float(Path(path).read_text()))
    return total / 2**20


def memory_of(pid: int) -> float:
    """Return the MiB of memory that are a process's own: not those that it shares; 0 where it is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0.0
    return (int(pages[1]) - int(pages[2])) * _PAGE / 2**20


@dataclass
class _Watched:
    limits: Limits
    steps: int
    since: float


class Guard:
    """A thread that looks at children ten times a second. Use it as a context manager."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._watched: dict[Child, _Watched] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="guard", daemon=True)

    def __enter__(self) -> "Guard":
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def watch(self, child: Child, limits: Limits) -> None:
        """Watch a child from now on, or under other limits."""
        with self._lock:
            self._watched[child] = _Watched(limits, -1, time.monotonic())

    def forget(self, child: Child) -> None:
        """Watch a child no more."""
        with self._lock:
            self._watched.pop(child, None)

    def _work(self) -> None:
        while not self._stop.wait(_LOOK_S):
            with self._lock:
                watched: Mapping[Child, _Watched] = dict(self._watched)
            for child, each in watched.items():
                if not child.ended_for:
                    _look_at(child, each)


def _look_at(child: Child, watched: _Watched) -> None:
    now, limits = time.monotonic(), watched.limits
    steps, resting = pulse.steps_of(child.page)
    if steps != watched.steps or resting:
        watched.steps, watched.since = steps, now
    elif 0 < limits.seconds < now - watched.since:
        child.kill(f"no progress for {limits.seconds:g} s (--slide-timeout)")
    taken = memory_of(child.process.pid) if limits.memory_mib else 0.0
    if taken > limits.memory_mib:
        child.kill(
            f"its process took {taken:.0f} MiB of memory, more than the {limits.memory_mib:.0f} of "
            "--slide-memory-mib,"
        )
