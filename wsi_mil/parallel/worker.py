"""What a Dask worker is asked to do: to say who it is, and one slide at a time.

Comes in: work that ``cluster`` has packed. Goes out: an ``Outcome`` by an event. It runs in the worker's
process, and knows nothing of the other workers.
"""

import pickle
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import distributed

import wsi_mil
from wsi_mil.parallel.child import unpacked
from wsi_mil.parallel.guard import Limits
from wsi_mil.parallel.outcome import attempt, contained
from wsi_mil.parallel.processes import in_process, limit_cores

_SEE_S = 5.0  # how long a worker looks for a file that was just written: file systems on a network are late

_alone = threading.Lock()  # of a worker's process: held by a task that uses all of it


def about(beacon: Path | None, prepare: bytes | None) -> dict[str, Any]:
    """Get ready; say who this worker is, and whether it sees a file that the client has just written."""
    deadline = time.monotonic() + _SEE_S
    while beacon is not None and not beacon.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    said = {"version": wsi_mil.__version__, "sees": beacon is None or beacon.exists(), "reason": ""}
    if said["sees"] and prepare is not None:
        limit_cores(distributed.get_worker().state.nthreads)
        with _alone, contained("", 0.0) as result:
            pickle.loads(prepare)()
        said["reason"] = result.failure.reason if result.failure else ""
    return said


def at_work(dask_worker: distributed.Worker) -> set[Any]:
    """Return the keys of the tasks that a worker has begun."""
    return {each.key for each in (*dask_worker.state.executing, *dask_worker.state.long_running)}


def work_on(slide_id: str, packed: bytes, limits: Limits | None, alone: bool, topic: str) -> None:
    """Do one slide, and tell what became of it; with ``limits`` in a process that may die of it."""
    worker = distributed.get_worker()
    limit_cores(worker.state.nthreads if alone else 1)
    with _alone if alone else nullcontext():
        if limits is None:
            outcome = attempt(slide_id, unpacked, packed)
        else:
            outcome = in_process(slide_id, packed, limits)
    # Not the task's result: that would be asked for and fetched, at twice the cost.
    worker.log_event(topic, pickle.dumps((worker.get_current_task(), outcome)))
