"""Map a function over slides, in this process, local processes or on a Dask cluster, and see how it goes.

A slide's failure is kept to itself wherever it is worked on. ``outcome`` says what became of a slide,
``progress`` what people see of it; ``places`` chooses between ``processes`` and ``cluster``, which alone
imports Dask, and only when it is asked for.
"""

from wsi_mil.parallel.outcome import Contained, Outcome, StageResult, attempt, contained
from wsi_mil.parallel.places import Place, as_they_end, local_cluster, map_slides
from wsi_mil.parallel.processes import cpu_count, enter_worker, limit_cores, without_interrupts
from wsi_mil.parallel.progress import Watch, console, progress

__all__ = [
    "Contained",
    "Outcome",
    "Place",
    "StageResult",
    "Watch",
    "as_they_end",
    "attempt",
    "console",
    "contained",
    "cpu_count",
    "enter_worker",
    "limit_cores",
    "local_cluster",
    "map_slides",
    "progress",
    "without_interrupts",
]
