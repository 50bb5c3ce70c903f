"""Map a function over slides, in local processes or on a Dask cluster, and see how it goes.

A slide's failure is kept to itself wherever it is worked on. ``outcome`` says what became of a slide,
``progress`` what people see of it; ``places`` chooses between ``processes`` and ``cluster``, which alone
imports Dask, and only when it is asked for. ``children`` are processes that may die, ``child`` is what runs
in them, and ``guard`` ends those that hang or take too much memory.
"""

from wsi_mil.parallel.children import Child, end_idle, give_back, memory_file, take, without_interrupts
from wsi_mil.parallel.guard import Guard, Limits, limits_of
from wsi_mil.parallel.outcome import Contained, Outcome, StageResult, attempt, contained
from wsi_mil.parallel.places import Place, as_they_end, local_cluster, map_slides
from wsi_mil.parallel.processes import cpu_count, guarded, limit_cores
from wsi_mil.parallel.progress import Watch, console, progress

__all__ = [
    "Child",
    "Contained",
    "Guard",
    "Limits",
    "Outcome",
    "Place",
    "StageResult",
    "Watch",
    "as_they_end",
    "attempt",
    "console",
    "contained",
    "cpu_count",
    "end_idle",
    "give_back",
    "guarded",
    "limit_cores",
    "limits_of",
    "local_cluster",
    "map_slides",
    "memory_file",
    "progress",
    "take",
    "without_interrupts",
]
