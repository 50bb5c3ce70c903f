"""Slides in processes of this machine, each watched.

Comes in: a picklable function and tasks. Goes out: an ``Outcome`` per slide, as they end. A process that
dies, hangs or takes too much memory fails the slide that it had, and no other.
"""

import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from wsi_mil.parallel import children
from wsi_mil.parallel.child import OneSlide
from wsi_mil.parallel.guard import Guard, Limits
from wsi_mil.parallel.outcome import Outcome, Task, Work
from wsi_mil.parallel.progress import Watch

_LOOK_S = 0.25  # how often children that were ended are looked for, should their channel not say so

_share: int | None = None  # cores of the task that this process works on, where that is not all of them


def cpu_count() -> int:
    """Return the cores that this process may use: a Slurm job may have fewer than the node."""
    if _share is not None:
        return _share
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_cores(count: int | None) -> None:
    """Say how many cores ``cpu_count`` returns from now on: a cluster's worker has its share of a machine."""
    global _share  # noqa: PLW0603 - a fact about this process, as its affinity is
    _share = count


@dataclass
class _Sitting:
    """A slide that a child has in hand."""

    slide_id: str
    child: children.Child
    started: float


def in_processes(
    function: Work[Task],
    tasks: Mapping[str, Task],
    workers: int,
    watch: Watch,
    limits: Callable[[Task], Limits] | None = None,
) -> Generator[Outcome]:
    """Yield what became of each slide, of ``workers`` at a time; they are begun in the order of ``tasks``.

    ``limits`` says what a slide may take.
    """

    def packed(slide_id: str) -> tuple[bytes, Limits]:
        task = tasks[slide_id]
        return pickle.dumps((function, task)), limits(task) if limits else Limits()

    yield from _one_by_one(tasks, packed, workers, watch)


def in_process(slide_id: str, packed: bytes, limits: Limits) -> Outcome:
    """Return what became of one slide in a process of its own; ``packed`` is a pickled (function, task)."""
    (outcome,) = _one_by_one([slide_id], lambda _: (packed, limits), 1, Watch("", {}))
    return outcome


def guarded(function: Callable[..., Any], limits: Limits, instead: Any) -> Callable[..., Any]:
    """Return what calls ``function`` in a process of its own, and gives ``instead`` where that dies of it."""

    def call(*arguments: Any) -> Any:
        packed = pickle.dumps((_value, (function, arguments)))
        outcome = in_process(getattr(function, "__name__", "a call"), packed, limits)
        return instead if outcome.status == "failed" else outcome.facts["value"]

    return call


def _value(call: tuple[Callable[..., Any], tuple[Any, ...]]) -> dict[str, Any]:
    function, arguments = call
    return {"value": function(*arguments)}


def _one_by_one(
    slide_ids: Iterable[str], packed: Callable[[str], tuple[bytes, Limits]], workers: int, watch: Watch
) -> Generator[Outcome]:
    """Yield the slides' outcomes.

    A slide whose process was killed from outside (the system does that where memory runs out, and may hit the
    wrong one) is tried once more.
    """
    waiting = deque(slide_ids)
    at_work: list[_Sitting] = []
    again: set[str] = set()
    ended: list[Outcome] = []
    try:
        with Guard() as guard:
            while waiting or at_work or ended:
                while waiting and len(at_work) < workers:
                    at_work.append(_begin(waiting.popleft(), packed, guard))
                    watch.begin(at_work[-1].slide_id)
                yield from ended  # only now: the children have something to do meanwhile
                ended.clear()
                ready = wait([each.child.channel for each in at_work], timeout=_LOOK_S)
                watch.say()
                for sitting in [s for s in at_work if s.child.channel in ready or s.child.ended_for]:
                    guard.forget(sitting.child)
                    at_work.remove(sitting)
                    outcome = _outcome_of(sitting, again)
                    if outcome is None:
                        waiting.appendleft(sitting.slide_id)
                        watch.drop(sitting.slide_id)
                    else:
                        watch.end(sitting.slide_id)
                        ended.append(outcome)
    finally:
        # Ctrl-C: slides in flight are not waited for; their temporary files are swept by the stage.
        for each in at_work:
            each.child.close()


def _begin(slide_id: str, packed: Callable[[str], tuple[bytes, Limits]], guard: Guard) -> _Sitting:
    work, limits = packed(slide_id)
    child = children.take()
    guard.watch(child, limits)
    child.ask(OneSlide(slide_id, work))
    return _Sitting(slide_id, child, time.perf_counter())


def _outcome_of(sitting: _Sitting, again: set[str]) -> Outcome | None:
    """Return what became of a slide; None where it is to be tried once more."""
    child, slide_id = sitting.child, sitting.slide_id
    try:
        if not child.ended_for:
            outcome: Outcome = pickle.loads(child.channel.recv_bytes())
            children.give_back(child)
            return outcome
    except (EOFError, OSError):
        pass
    innocent = child.killed_by_others and slide_id not in again
    reason = child.how_it_ended()
    child.close()
    if innocent:
        again.add(slide_id)
        return None
    seconds = time.perf_counter() - sitting.started
    twice = ", twice" if slide_id in again else ""
    return Outcome(slide_id=slide_id, status="failed", seconds=seconds, reason=reason + twice)
