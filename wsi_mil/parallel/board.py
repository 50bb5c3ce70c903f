"""Who works on what in a cluster: which slide is next and where, and what becomes of those whose worker died.

Comes in: slides in their order, workers that come and go. Goes out: a slide and a worker, again and again. It
knows no Dask, no files and no clock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from wsi_mil.parallel.outcome import Outcome

RETRIES = 2
"""A slide whose worker died is tried again so often; then it is what kills them."""


@dataclass
class Seat:
    """A worker: ``slots`` slides at a time, of which it has ``running``; ``open`` where it may take more."""

    address: str
    host: str
    slots: int
    open: bool = True
    running: set[str] = field(default_factory=set)


class Board:
    """Hands out slides, the first ones first; those that were with a worker that died are tried again alone.

    Tried once more, a slide is next: most deaths are not its fault. Tried a second time it waits until
    nothing else does, so that one that kills every worker keeps no other from being done.
    """

    def __init__(self, slide_ids: Iterable[str]) -> None:
        """Hand out nothing yet."""
        self.seats: dict[str, Seat] = {}
        self._waiting = list(reversed(list(slide_ids)))  # the next one is the last: it is taken off the end
        self._again: list[str] = []
        self._last: list[str] = []
        self._deaths: dict[str, list[Seat]] = {}

    @property
    def left(self) -> int:
        """How many slides have not ended."""
        waiting = len(self._again) + len(self._waiting) + len(self._last)
        return waiting + sum(len(seat.running) for seat in self.seats.values())

    def next(self) -> tuple[str, Seat] | None:
        """Return a slide and the worker that it now is with; None where there is none, or no room."""
        reserved: Seat | None = None
        for slide_id in self._again:
            seat = self._seat_for(slide_id)
            if seat is not None:
                return self._take(self._again, slide_id, seat)
            # It needs a worker to itself: the one that is soonest free takes nothing else.
            open_ = [each for each in self.seats.values() if each.open and not self._is_apart(each)]
            reserved = min(open_, key=lambda each: len(each.running), default=None)
        if self._waiting:
            seat = self._seat_for(self._waiting[-1], reserved)
            return self._take(self._waiting, self._waiting[-1], seat) if seat else None
        if self._last and not self._again:
            seat = self._seat_for(self._last[0])
            return self._take(self._last, self._last[0], seat) if seat else None
        return None

    def was_lost(self, slide_id: str) -> bool:
        """Tell whether a worker died with a slide."""
        return slide_id in self._deaths

    def ended(self, slide_id: str) -> None:
        """Take a slide off its worker."""
        for seat in self.seats.values():
            seat.running.discard(slide_id)

    def taken_back(self, slide_id: str) -> None:
        """Take a slide off a worker that has not begun it; it is next."""
        self.ended(slide_id)
        (self._again if slide_id in self._deaths else self._waiting).append(slide_id)

    def lost(self, address: str) -> tuple[list[str], list[Outcome]]:
        """Take a worker away that died; return the slides to be tried again, and those that are given up."""
        seat = self.seats.pop(address)
        return self._again_or_failed(seat, sorted(seat.running))

    def dropped(self, slide_id: str) -> tuple[list[str], list[Outcome]]:
        """Take a slide off a worker that did not do it, and was not seen to die; else as ``lost``."""
        seat = next(each for each in self.seats.values() if slide_id in each.running)
        seat.running.discard(slide_id)
        return self._again_or_failed(seat, [slide_id])

    def _again_or_failed(self, seat: Seat, slide_ids: Sequence[str]) -> tuple[list[str], list[Outcome]]:
        again, failed = [], []
        for slide_id in slide_ids:
            deaths = self._deaths.setdefault(slide_id, [])
            deaths.append(seat)
            if len(deaths) > RETRIES:
                names = ", ".join(each.address for each in deaths)
                reason = (
                    f"{len(deaths)} workers died while they worked on it ({names}): it kills them, by the "
                    "memory that it needs or by a crash in a library"
                )
                failed.append(Outcome(slide_id=slide_id, status="failed", reason=reason))
                continue
            again.append(slide_id)
            (self._again if len(deaths) == 1 else self._last).append(slide_id)
        return again, failed

    def _take(self, queue: list[str], slide_id: str, seat: Seat) -> tuple[str, Seat]:
        queue.remove(slide_id) if queue[-1] != slide_id else queue.pop()
        seat.running.add(slide_id)
        return slide_id, seat

    def _seat_for(self, slide_id: str, reserved: Seat | None = None) -> Seat | None:
        """Return the worker with the most room; if it can be, on another machine than where it was lost."""
        room = 1 if slide_id in self._deaths else None
        fits = [
            each
            for each in self.seats.values()
            if each.open
            and each is not reserved
            and not self._is_apart(each)
            and len(each.running) < (room or each.slots)
        ]
        hosts = {each.host for each in self._deaths.get(slide_id, [])}
        return min(fits, key=lambda each: (each.host in hosts, len(each.running) / each.slots), default=None)

    def _is_apart(self, seat: Seat) -> bool:
        """Whether a worker has a slide that must be alone."""
        return any(slide_id in self._deaths for slide_id in seat.running)
