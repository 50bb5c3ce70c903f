"""What became of a slide, and how its failure is kept to itself.

Comes in: a function of one task. Goes out: an ``Outcome``. The only broad ``except`` of the project is here,
in ``contained``, and it keeps the traceback.
"""

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from wsi_mil.errors import WsiMilError

Task = TypeVar("Task")

_SHOWN = 200  # characters of a reason in a repr


@dataclass(frozen=True, kw_only=True, repr=False)
class Outcome:
    """What became of one slide. ``facts`` are further columns of slides.csv, such as its patches; a
    ``reason`` among them is a remark on a slide that is done."""

    slide_id: str
    status: Literal["done", "skipped", "failed"]
    seconds: float = 0.0
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    traceback: str = ""

    def __repr__(self) -> str:
        """Name the slide and what became of it; facts may hold pictures, and are named only."""
        said = [f"{self.slide_id!r}", self.status, f"{self.seconds:.2f} s"]
        said += [f"reason={_shortened(self.reason)!r}"] if self.reason else []
        said += [f"facts={', '.join(self.facts)}"] if self.facts else []
        return _shortened(f"Outcome({'; '.join(said)})", 2 * _SHOWN)

    def row(self) -> dict[str, object]:
        """Return the outcome as a row of slides.csv."""
        base = {"slide_id": self.slide_id, "status": self.status, "seconds": round(self.seconds, 2)}
        return base | {"reason": self.reason} | dict(self.facts)


Work = Callable[[Task], Mapping[str, Any] | Outcome | None]
"""Does one slide's task. Returns facts about the slide, None where there was nothing left to do (skipped), or
the outcome itself."""


@dataclass(frozen=True, kw_only=True, repr=False)
class StageResult:
    """What a stage's ``run`` returns: every slide's outcome, and the folder where its output lies.

    ``named`` is what the outcomes are of: slides, but for `verify`.
    """

    stage: str
    output: Path | str
    outcomes: list[Outcome] = field(default_factory=list)
    named: str = "slide"

    def __repr__(self) -> str:
        """Say how many slides were done, skipped and failed, and where the output lies."""
        counts = ", ".join(f"{self.count(status)} {status}" for status in ("done", "skipped", "failed"))
        return f"StageResult({self.stage!r}; {counts}; output={str(self.output)!r})"

    @property
    def failed(self) -> list[Outcome]:
        """The slides that failed."""
        return [each for each in self.outcomes if each.status == "failed"]

    def count(self, status: str) -> int:
        """Return how many slides ended as ``status``."""
        return sum(each.status == status for each in self.outcomes)


def _shortened(text: str, most: int = _SHOWN) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def attempt(slide_id: str, function: Work[Task], task: Task) -> Outcome:
    """Call ``function(task)`` and return what became of it; an exception is that slide's failure."""
    start = time.perf_counter()
    facts: Mapping[str, Any] | Outcome | None = None
    with contained(slide_id, start) as result:
        facts = function(task)
    if result.failure:
        return result.failure
    if isinstance(facts, Outcome):
        return facts
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
