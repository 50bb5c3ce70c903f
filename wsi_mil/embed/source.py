"""Which slide is next: slides are taken, not dealt out, so that any number of processes share a run.

Comes in: the slides to embed. Goes out: one ``Job`` after the other, claimed by this process. A slide that
another process works on is waited for at the end, and taken over if that process is gone.
"""

import time
from collections.abc import Callable, Iterator

from wsi_mil import store
from wsi_mil.errors import FormatError, StoreError
from wsi_mil.parallel import Outcome
from wsi_mil.readers import Job

_LOOK_S = 1.0  # how often a slide that others work on is looked at


class Source:
    """Gives jobs by ``take``; ``over`` when there will be no more.

    ``finished`` is called for slides that others did. ``is_done`` tells whether a job's features are there.
    """

    def __init__(
        self,
        jobs: list[Job],
        claims: store.Claims,
        is_done: Callable[[Job], bool],
        finished: Callable[[Job, Outcome], None],
        say: Callable[[str], None],
    ) -> None:
        """Take nothing yet."""
        self.over = not jobs
        self._left = list(jobs)
        self._claims, self._is_done, self._finished, self._say = claims, is_done, finished, say
        self._others: dict[str, str] = {}
        self._jobs = self._claimed()
        self._looked = 0.0

    def take(self) -> Job | None:
        """Return the next slide that is ours now; None where others work on those that are left."""
        if time.monotonic() - self._looked < _LOOK_S:
            return None
        job = next(self._jobs, None)
        self.over = not self._left
        if job is None:
            self._looked = time.monotonic()
        return job

    def _claimed(self) -> Iterator[Job | None]:
        told = False
        while self._left:
            before = len(self._left)
            for job in list(self._left):
                ours = False
                try:
                    if self._claims.take(job.slide_id):
                        self._left.remove(job)
                        ours = not self._done_by_others(job)
                    else:
                        self._look_at_holder(job)
                except (
                    StoreError,
                    FormatError,
                ) as error:  # the disk is full; others embed with other settings
                    self._fail(job, str(error))
                if ours:
                    yield job
            if self._left and len(self._left) == before:
                if not told:
                    who = ", ".join(sorted(set(self._others.values())))
                    self._say(f"waiting for {len(self._left)} slides that {who} work on")
                    told = True
                yield None

    def _done_by_others(self, job: Job) -> bool:
        if not self._is_done(job):
            return False
        self._claims.give_back(job.slide_id)
        reason = f"embedded by {self._others.get(job.slide_id, 'another process')} meanwhile"
        self._finished(job, Outcome(slide_id=job.slide_id, status="skipped", reason=reason))
        return True

    def _look_at_holder(self, job: Job) -> None:
        holder = self._claims.holder(job.slide_id)
        if holder is None:
            return  # given back this moment: ours in the next round
        if holder.alive or holder.run != self._claims.run:  # of another command, just dead: ours in the next
            self._others[job.slide_id] = str(holder)
            return
        # Of this very command: what it died of may be this slide.
        self._fail(
            job, f"{holder} died while it worked on this slide (out of memory, or a crash in a library)"
        )

    def _fail(self, job: Job, reason: str) -> None:
        if job in self._left:
            self._left.remove(job)
        self._finished(job, Outcome(slide_id=job.slide_id, status="failed", reason=reason))
