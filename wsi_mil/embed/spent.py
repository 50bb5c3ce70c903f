"""What the time of an embedding went into, and what would make it shorter.

Comes in: seconds, as they are spent. Goes out: a line for people, and the same as facts.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from wsi_mil import parallel
from wsi_mil.readers import Batch, Times

_SOME = 0.1  # of the time: what is waited for less is not what limits
_CPU_READS = 0.5  # a CPU that computes reads in between: that is no waste before it is most of the time


@dataclass
class Spent:
    """Seconds of one process: ``waiting`` for patches (but for the first ones, ``starting``), ``computing``,
    and ``writing``, that is waiting for the disk; ``seconds`` in all. ``times`` are those of its readers."""

    times: Times
    seconds: float = 0.0
    starting: float = 0.0
    waiting: float = 0.0
    computing: float = 0.0
    writing: float = 0.0
    patches: int = 0

    def waited_for(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches, and note how long each was waited for."""
        start = time.perf_counter()
        for batch in batches:
            waited = time.perf_counter() - start
            if self.starting:
                self.waiting += waited
            else:
                self.starting = waited
            yield batch
            start = time.perf_counter()

    def facts(self, device: str) -> dict[str, Any]:
        """Return it for stage.json."""
        limit, advice = self._limit(device)
        return {
            "patches": self.patches,
            "patches_per_second": round(self.patches / max(self.seconds, 1e-9), 1),
            "limited_by": limit,
            "advice": advice,
            "device_busy": round(self._part(self.computing), 3),
            "waiting_for_patches": round(self._part(self.waiting), 3),
            "waiting_for_disk": round(self._part(self.writing), 3),
            "starting_seconds": round(self.starting, 2),
            "readers": self.times.readers,
            "reader_threads": self.times.threads,
        }

    def words(self, device: str) -> str:
        """Return it as a line for people."""
        facts = self.facts(device)
        return (
            f"{facts['patches']} patches in {self.seconds:.1f} s, {facts['patches_per_second']:g} a second; "
            f"{device} was busy {facts['device_busy']:.0%} of the time; what limited it: "
            f"{facts['limited_by']}" + (f" ({facts['advice']})" if facts["advice"] else "")
        )

    def _part(self, seconds: float) -> float:
        return min(seconds / max(self.seconds - self.starting, 1e-9), 1.0)

    def _limit(self, device: str) -> tuple[str, str]:
        """Return what limited the work, and what to change, or ""."""
        waiting, writing = self._part(self.waiting), self._part(self.writing)
        if self.starting > self.seconds / 2:
            return "starting", "too few patches to tell"
        if writing > max(_SOME, waiting):
            return "writing", "put --run on a faster disk"
        if waiting <= (_CPU_READS if device == "cpu" else _SOME):
            return "computing", "a GPU is many times as fast" if device == "cpu" else ""
        if self.times.remote:
            return "network", "bring the slides nearer, or try more --readers"
        cores, readers = parallel.cpu_count(), self.times.readers
        used = f"{readers} readers of {self.times.threads} threads on {cores} cores"
        if readers * self.times.threads < cores - 1:
            return "reading", f"{used}; try --readers {max(1, (cores - 1) // self.times.threads)}"
        return "reading", f"{used}: all are at work; more cores, or a faster disk"
