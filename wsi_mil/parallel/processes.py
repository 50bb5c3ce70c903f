"""Slides in processes of this machine.

Comes in: a picklable function and tasks. Goes out: an ``Outcome`` per slide, as they end. A process that dies
fails only the slide that killed it.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from wsi_mil.parallel.outcome import Outcome, Task, Work, attempt
from wsi_mil.parallel.progress import Watch

_LOOK_S = 5.0  # how often stragglers are looked for

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


def in_processes(
    function: Work[Task],
    tasks: Mapping[str, Task],
    workers: int,
    watch: Watch,
) -> Iterator[Outcome]:
    """Yield what became of each slide, of ``workers`` at a time; they are begun in the order of ``tasks``."""
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
                ready, pending = wait(pending, timeout=_LOOK_S, return_when=FIRST_COMPLETED)
                for future in pending:
                    if future.running():
                        watch.begin(futures[future])
                watch.say()
                for future in ready:
                    slide_id = futures[future]
                    watch.end(slide_id)
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
