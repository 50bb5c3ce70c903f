"""Features on their way to the store, in a thread of its own: the encoder does not wait for the disk.

Comes in: features of slides, batch by batch, and word that a slide has ended. Goes out: an ``Outcome`` per
slide. A slide whose features cannot be written (NaN, a full disk) fails alone.
"""

import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil import parallel, store
from wsi_mil.blocks import BrokenPatch
from wsi_mil.parallel import Outcome
from wsi_mil.readers import Job
from wsi_mil.store import FeaturesHead, FeaturesWriter

_WAITING = 8  # batches that were computed and not yet written
_LISTED = 20  # patches that a row of the stage's table names

_Open = tuple[AbstractContextManager[FeaturesWriter], FeaturesWriter]


class Writing:
    """Writes what it is given in order; use it as a context manager.

    ``head`` makes a job's head of features; ``finished`` is called with each job and its outcome, in the
    writing thread. Leaving the context waits for what was given; leaving it by an exception leaves nothing
    half-written behind.
    """

    def __init__(
        self,
        target: store.FeatureStore,
        head: Callable[[Job], FeaturesHead],
        finished: Callable[[Job, Outcome], None],
    ) -> None:
        """Write nothing yet."""
        self._target, self._head, self._finished = target, head, finished
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING)
        self._open: dict[Job, _Open] = {}
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="write", daemon=True)

    def __enter__(self) -> "Writing":
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the thread; slides that have not ended by now are dropped."""
        try:
            self._finish(error)
        except BaseException as late:  # Ctrl-C while the last slides are written
            self._finish(late)
            raise
        if error is None and self._error is not None:
            raise self._error

    def _finish(self, error: BaseException | None) -> None:
        if error is not None:
            self._error = self._error or error  # what waits in the queue is not written any more
        self._queue.put(None)
        # Not join(): one that Ctrl-C interrupts takes the thread for ended from then on (Python before 3.13).
        self._ended.wait()
        for job in list(self._open):
            self._drop(job, error or RuntimeError("the slide did not end"))

    def put(self, job: Job, rows: NDArray[np.int64], features: NDArray[np.float16]) -> None:
        """Write ``features`` (n, D) of the patches ``rows`` (n,) of a job."""
        self._give(lambda: self._put(job, rows, features))

    def end(self, job: Job) -> None:
        """Publish a job's features, or drop them where it has failed."""
        self._give(lambda: self._end(job))

    def _give(self, step: Callable[[], None]) -> None:
        if self._error is not None:
            raise self._error
        self._queue.put(step)

    def _work(self) -> None:
        while (step := self._queue.get()) is not None:
            if self._error is not None:
                continue
            try:
                step()
            except BaseException as error:  # raised where the next is given
                self._error = error
        self._ended.set()

    def _put(self, job: Job, rows: NDArray[np.int64], features: NDArray[np.float16]) -> None:
        if job.failure:
            return
        start = time.perf_counter()
        with parallel.contained(job.slide_id, job.started) as result:
            self._writer(job).put(rows, features)
        job.write += time.perf_counter() - start
        if result.failure:
            job.failure = result.failure
            self._drop(job, RuntimeError(result.failure.reason))

    def _end(self, job: Job) -> None:
        start = time.perf_counter()
        facts: dict[str, Any] = {}
        if job.failure is None:
            with parallel.contained(job.slide_id, job.started) as result:
                writer = self._writer(job)
                job.broken.sort(key=lambda each: each.index)
                writer.leave_out([asdict(each) for each in job.broken])
                self._open.pop(job)[0].__exit__(None, None, None)
                facts = self._facts(job)
            job.failure = result.failure
        job.write += time.perf_counter() - start
        if job.failure is not None:
            self._drop(job, RuntimeError(job.failure.reason))
            self._finished(job, job.failure)
            return
        outcome = Outcome(
            slide_id=job.slide_id,
            status="done",
            seconds=time.perf_counter() - job.started,
            facts=facts | {"write": round(job.write, 2)},
        )
        self._finished(job, outcome)

    def _writer(self, job: Job) -> FeaturesWriter:
        if job not in self._open:
            context = self._target.writer(self._head(job), job.patches.coords)
            self._open[job] = context, context.__enter__()
        return self._open[job][1]

    def _drop(self, job: Job, error: BaseException) -> None:
        """End the writing of a job so that nothing of it stays."""
        opened = self._open.pop(job, None)
        if opened is not None:
            with parallel.contained(job.slide_id, job.started):  # it was told already; this is its end
                opened[0].__exit__(type(error), error, error.__traceback__)

    def _facts(self, job: Job) -> dict[str, Any]:
        return {
            "patches": job.count - len(job.broken),
            "left_out": len(job.broken),
            "read_wait": round(job.read_wait, 2),
            "compute": round(job.compute, 2),
            "read_by": job.read_by,
            "checksum": self._target.summary(job.slide_id).checksums.get("features", ""),
            "reason": left_out_words(tuple(job.broken), job.count),
        }


def left_out_words(broken: tuple[BrokenPatch, ...], count: int) -> str:
    """Return which of a slide's patches could not be read, or ""."""
    if not broken:
        return ""
    listed = "; ".join(
        f"patch {each.index} at level-0 ({each.x_l0}, {each.y_l0}), {each.where}: {each.reason}"
        for each in broken[:_LISTED]
    )
    more = f"; and {len(broken) - _LISTED} more, all in the features file" if len(broken) > _LISTED else ""
    return f"left out {len(broken)} of {count} patches that cannot be read: {listed}{more}"
