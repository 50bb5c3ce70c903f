"""What people see while slides are worked on: the same wherever that is.

Comes in: outcomes. Goes out: a bar on a terminal, a line per slide in a log file, failures at once, and
word of slides that take much longer than others.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from wsi_mil.parallel.outcome import Outcome

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""Where progress and remarks go: standard error, so that standard output stays clean."""

LATE_S, LATE_TIMES, LATE_AFTER = 60.0, 4.0, 5
"""A slide is said to be late after a minute and 4 times what its cost lets expect, once 5 have ended."""


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


class Watch:
    """Who works on what and since when: names the stragglers. ``costs``: see ``map_slides``."""

    def __init__(self, title: str, costs: Mapping[str, float]) -> None:
        """Watch nothing yet."""
        self._title, self._costs = title, costs
        self._running: dict[str, tuple[float, str]] = {}
        self._rates: list[float] = []
        self._said: dict[str, float] = {}

    def begin(self, slide_id: str, where: str = "") -> None:
        """Note that the work on a slide begins; more than once is once."""
        self._running.setdefault(slide_id, (time.monotonic(), where))

    def end(self, slide_id: str) -> None:
        """Note that it ended, and how long it took."""
        started, _ = self._running.pop(slide_id, (None, ""))
        self._said.pop(slide_id, None)
        if started is not None:
            self._rates.append((time.monotonic() - started) / self._cost(slide_id))

    def drop(self, slide_id: str) -> None:
        """Note that it is not worked on any more, and did not end."""
        self._running.pop(slide_id, None)

    def say(self) -> None:
        """Print the slides that are late, each again when it has taken twice as long."""
        if len(self._rates) < LATE_AFTER:
            return
        rate, now = statistics.median(self._rates), time.monotonic()
        for slide_id, (started, where) in self._running.items():
            seconds, expected = now - started, rate * self._cost(slide_id)
            if seconds < max(LATE_S, LATE_TIMES * expected, 2 * self._said.get(slide_id, 0.0)):
                continue
            self._said[slide_id] = seconds
            console.print(
                f"{self._title}: {slide_id} is late: {seconds:.0f} s so far{where and f' on {where}'}, about "
                f"{expected:.0f} s would be usual",
                markup=False,
            )

    def _cost(self, slide_id: str) -> float:
        return self._costs.get(slide_id, 0.0) or 1.0
