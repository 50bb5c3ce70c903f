"""Map a function over slides: in this process or in local processes, with one slide's failure kept to itself.

Comes in: a picklable function of one task, and a task per slide id. Goes out: one ``Outcome`` per slide, in
the order of the tasks. It knows nothing of slides, stages or files. The only broad ``except`` of the project
is here, in ``contained``, and it keeps the traceback.
"""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from wsi_mil.errors import WsiMilError

Task = TypeVar("Task")

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""Where progress and remarks go: standard error, so that standard output stays clean."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one slide. ``facts`` are further columns of slides.csv, such as its patches; a
    ``reason`` among them is a remark on a slide that is done."""

    slide_id: str
    status: Literal["done", "skipped", "failed"]
    seconds: float = 0.0
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    traceback: str = ""

    def row(self) -> dict[str, object]:
        """Return the outcome as a row of slides.csv."""
        base = {"slide_id": self.slide_id, "status": self.status, "seconds": round(self.seconds, 2)}
        return base | {"reason": self.reason} | dict(self.facts)


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage's ``run`` returns: every slide's outcome, and the folder where its output lies.

    ``named`` is what the outcomes are of: slides, but for `verify`.
    """

    stage: str
    output: Path | str
    outcomes: list[Outcome] = field(default_factory=list)
    named: str = "slide"

    @property
    def failed(self) -> list[Outcome]:
        """The slides that failed."""
        return [each for each in self.outcomes if each.status == "failed"]

    def count(self, status: str) -> int:
        """Return how many slides ended as ``status``."""
        return sum(each.status == status for each in self.outcomes)


def attempt(slide_id: str, function: Callable[[Task], Mapping[str, Any] | None], task: Task) -> Outcome:
    """Call ``function(task)`` and return what became of it; an exception is that slide's failure.

    The function returns facts about the slide, or None where there was nothing left to do (skipped).
    """
    start = time.perf_counter()
    facts: Mapping[str, Any] | None = None
    with contained(slide_id, start) as result:
        facts = function(task)
    if result.failure:
        return result.failure
    status: Literal["done", "skipped"] = "skipped" if facts is None else "done"
    return Outcome(slide_id=slide_id, status=status, seconds=time.perf_counter() - start, facts=facts or {})


@dataclass
class Contained:
    """What ``contained`` yields: the ``failure`` of its block, None where there was none."""

    failure: Outcome | None = None
    error: Exception | None = None


@contextmanager
def contained(slide_id: str, start: float) -> Iterator[Contained]:
    """Keep an exception of the block to one slide: it ends as ``failure``, with its traceback.

    ``start`` is when the work on the slide began (``time.perf_counter``).
    """
    result = Contained()
    try:
        yield result
    except Exception as error:
        result.error = error
        reason = str(error) if isinstance(error, WsiMilError) else f"{type(error).__name__}: {error}"
        result.failure = Outcome(
            slide_id=slide_id,
            status="failed",
            seconds=time.perf_counter() - start,
            reason=reason,
            traceback=traceback.format_exc(),
        )


def map_slides(
    function: Callable[[Task], Mapping[str, Any] | None],
    tasks: Mapping[str, Task],
    *,
    title: str,
    workers: int = 0,
) -> list[Outcome]:
    """Return the outcome of ``function`` on each slide's task, in the order of ``tasks``.

    ``workers`` 0 is one process per core; 1 (or a single task) works in this process. A process that dies
    (out of memory, a crash in a C library) fails only the slide that killed it: the slides that were in
    flight are tried again one at a time.
    """
    workers = min(workers or cpu_count(), len(tasks))
    outcomes: dict[str, Outcome] = {}
    with progress(title, len(tasks)) as report:
        results = (
            (attempt(slide_id, function, task) for slide_id, task in tasks.items())
            if workers <= 1
            else _in_processes(function, tasks, workers)
        )
        for outcome in results:
            outcomes[outcome.slide_id] = outcome
            report(outcome)
    return [outcomes[slide_id] for slide_id in tasks]


@contextmanager
def progress(title: str, total: int, unit: str = "slides") -> Iterator[Callable[..., None]]:
    """Yield a function that reports one outcome, or advances by a number of units.

    On a terminal it moves a bar; in a log file it prints a line per slide. A failure is printed at once, with
    its reason.
    """
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    finished = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)

        def report(what: Outcome | int) -> None:
            nonlocal finished
            if isinstance(what, int):
                bar.advance(task, what)
                return
            finished += 1
            if unit == "slides":
                bar.advance(task)
            if what.status == "failed":
                console.print(f"[red]failed[/red] {what.slide_id}: ", end="")
                console.print(what.reason, markup=False)
            elif not console.is_terminal:
                line = f"{title}: {finished} {what.slide_id} {what.status} {what.seconds:.1f} s"
                console.print(line, markup=False, soft_wrap=True)

        yield report


def cpu_count() -> int:
    """Return the cores that this process may use: a Slurm job may have fewer than the node."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_processes(
    function: Callable[[Task], Mapping[str, Any] | None], tasks: Mapping[str, Task], workers: int
) -> Iterator[Outcome]:
    waiting = dict(tasks)
    suspects: dict[str, Task] = {}
    while waiting or suspects:
        # After a crash the slides that were in flight run alone, so that the next crash has one name.
        alone = bool(suspects)
        batch = dict([suspects.popitem()]) if alone else waiting
        with _pool(1 if alone else workers) as pool:
            futures = {
                pool.submit(attempt, slide_id, function, task): slide_id for slide_id, task in batch.items()
            }
            pending: set[Future[Outcome]] = set(futures)
            broken = False
            while pending and not broken:
                ready, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in ready:
                    slide_id = futures[future]
                    try:
                        outcome = future.result()
                    except BrokenProcessPool:
                        broken = True
                        continue
                    waiting.pop(slide_id, None)
                    yield outcome
        if not broken:
            continue
        if alone:
            (slide_id,) = batch
            yield Outcome(
                slide_id=slide_id,
                status="failed",
                reason="the process that worked on it died twice (out of memory, or a crash in a library)",
            )
        else:
            # Any of the first few that had no result may be the culprit: tasks are taken in order.
            suspects = dict(list(waiting.items())[: 2 * workers + 1])
            for slide_id in suspects:
                del waiting[slide_id]


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    # "spawn": OpenSlide, OpenCV and torch hold threads and locks that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=enter_worker)
    try:
        yield pool
    except BaseException:
        # Ctrl-C: do not wait for slides in flight; their temporary files are swept by the stage.
        for process in list(pool._processes.values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown(wait=True)


def enter_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it is gone: a killed parent cannot end its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
