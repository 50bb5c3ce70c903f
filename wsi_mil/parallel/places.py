"""Map a function over slides: in local processes, or on a Dask cluster.

Comes in: a picklable function of one task, and a task per slide id. Goes out: one ``Outcome`` per slide. It
knows nothing of slides, stages or files, but for the folder that all workers of a cluster must see.
"""

import functools
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_mil.config import ClusterConfig
from wsi_mil.parallel.guard import Limits
from wsi_mil.parallel.outcome import Outcome, Task, Work, attempt
from wsi_mil.parallel.processes import cpu_count, in_processes
from wsi_mil.parallel.progress import Watch, progress


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where slides are worked on, and what each needs there.

    ``workers``: processes of this machine (0: one per core). ``cluster`` names a cluster instead. Its workers
    must see the folder ``shared`` under its path. ``alone``: a worker's process takes one slide at a time,
    with all of its threads; else one per thread. ``resource``: where workers offer it (``dask worker
    --resources "GPU=1"``), only they are asked, for one of it per slide. ``prepare`` is called once in each
    worker before its first slide; one where it fails is left out, and said. ``limits`` says what a slide's
    task may take, of so many processes on one machine. Without it nothing limits a slide, and a cluster's
    worker does it in its own process, where what ``prepare`` made is at hand. ``here``: in this process, one
    slide after the other and without limits, for what no other process knows.
    """

    workers: int = 0
    cluster: ClusterConfig | None = None
    shared: Path | None = None
    alone: bool = False
    resource: str = ""
    prepare: Callable[[], None] | None = None
    here: bool = False
    limits: Callable[[Any, int], Limits] | None = None


def map_slides(
    function: Work[Task],
    tasks: Mapping[str, Task],
    *,
    title: str,
    workers: int = 0,
    place: Place | None = None,
    cost: Callable[[Task], float] | None = None,
) -> list[Outcome]:
    """Return the outcome of ``function`` on each slide's task, in the order of ``tasks``.

    ``workers`` 0 is one process per core; ``place`` says more, and in its stead. ``cost`` says how much work
    a task is, in any unit: the largest is begun first, so that it does not end last. A process that dies (out
    of memory, a crash in a C library) fails only the slide that it had.

    Raises:
        ClusterError: the cluster is not to be had, or was lost on the way.
    """
    outcomes: dict[str, Outcome] = {}
    place = place or Place(workers=workers)
    with (
        progress(title, len(tasks)) as report,
        closing(as_they_end(function, tasks, title=title, place=place, cost=cost)) as ended,
    ):
        for outcome in ended:
            outcomes[outcome.slide_id] = outcome
            report(outcome)
    return [outcomes[slide_id] for slide_id in tasks]


def as_they_end(
    function: Work[Task],
    tasks: Mapping[str, Task],
    *,
    title: str,
    place: Place,
    cost: Callable[[Task], float] | None = None,
) -> Generator[Outcome]:
    """Yield the outcomes of ``map_slides`` as the slides end."""
    costs = {slide_id: cost(task) for slide_id, task in tasks.items()} if cost else {}
    tasks = {slide_id: tasks[slide_id] for slide_id in sorted(tasks, key=lambda each: -costs.get(each, 0.0))}
    watch = Watch(title, costs)
    workers = min(place.workers or cpu_count(), len(tasks))
    if place.cluster is not None and place.cluster.on_cluster and tasks:
        # A second, and only where there is a cluster.
        from wsi_mil.parallel.cluster import on_cluster  # noqa: PLC0415

        yield from on_cluster(function, tasks, title, place, watch)
    elif place.here:
        for slide_id, task in tasks.items():
            yield attempt(slide_id, function, task)
    else:
        limits = functools.partial(_limits, place.limits, workers) if place.limits else None
        yield from in_processes(function, tasks, workers, watch, limits)


def _limits(limits: Callable[[Any, int], Limits], processes: int, task: Any) -> Limits:
    return limits(task, processes)


@contextmanager
def local_cluster(workers: int = 0) -> Iterator[str]:
    """Start a Dask cluster on this machine that ends with the block; yield its scheduler's address.

    ``workers`` processes of a thread each; 0 is one per core.
    """
    from wsi_mil.parallel.local import local_scheduler  # noqa: PLC0415 - as above

    with local_scheduler(workers) as address:
        yield address
