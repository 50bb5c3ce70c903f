"""Does reading keep a device of any speed busy, and what does that cost the process of the device?

    make bench-feed            (or: python -m benchmarks.feed --folder bench --append)

Slides are mosaics of the CMU slide of ../shared, or drawn tissue, and the table says which; "half" reads
0.25 um slides at 0.5 um, "native" slides of 0.5 um. The device is simulated: it takes patches at a set rate,
and its work is a pause that releases the interpreter's lock, as a GPU's does. Time of the lock is bounded
from above: it is the processor time of the device's process, all of its threads, over the patches that it
moved (whatever holds the lock and runs spends processor time). Each figure is the median of ``--rounds``.
"""

import argparse
import os
import queue
import resource
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.embed import PATCH
from benchmarks.read import mosaic
from benchmarks.results import publish
from pipelines.pyramid import write_pyramid
from wsi_mil import blocks, parallel, store
from wsi_mil.embed.work import Work
from wsi_mil.geometry import PatchGeometry, grid_l0
from wsi_mil.readers import Feed, Job, Readers, ReadSettings
from wsi_mil.slide import open_slide

BATCH, SLOT = 64, 64
DIM = 1024
RATES = (300, 600, 900, 1200, 1500)
SLIDES, SIDE = 16, 20
"""How many slides of SIDE x SIDE patches."""


def make(folder: Path) -> str:
    """Write the slides, where they are not yet; return words for them."""
    words = folder / "feed-words.txt"
    if words.is_file():
        return words.read_text()
    folder.mkdir(parents=True, exist_ok=True)
    picture, text = mosaic()
    rng = np.random.default_rng(0)
    for kind, mpp, count, rows, columns in (
        ("half", 0.25, SLIDES, SIDE, SIDE), ("native", 0.5, SLIDES, SIDE, SIDE), ("small", 0.25, 200, 5, 10),
    ):  # fmt: skip
        (folder / kind).mkdir(exist_ok=True)
        factor = round(0.5 / mpp)
        high, wide = rows * PATCH * factor, columns * PATCH * factor
        for number in range(count):
            top, left = (int(rng.integers(0, 512)) for _ in range(2))
            shifted = np.tile(
                picture, (-(-(top + high) // len(picture)), -(-(left + wide) // len(picture)), 1)
            )
            part = shifted[top : top + high, left : left + wide]
            write_pyramid(folder / kind / f"s{number:03d}.tiff", np.ascontiguousarray(part), mpp)
    words.write_text(text)
    return text


def jobs_of(folder: Path, kind: str) -> list[Job]:
    """Return the jobs of all slides of a kind."""
    jobs = []
    for path in sorted((folder / kind).glob("*.tiff")):
        with open_slide(path) as slide:
            plan = PatchGeometry.plan(
                width_l0=slide.width_l0,
                height_l0=slide.height_l0,
                mpp_l0=slide.mpp_l0,
                mpp=0.5,
                patch_px=PATCH,
            )
        coords = grid_l0(plan)
        patches = store.Patches(
            slide_id=path.stem, slide_path=path.absolute(), reader="openslide", mpp_source="given",
            geometry=plan, coords=coords, tissue_fraction=np.ones(len(coords), np.float32), record={},
        )  # fmt: skip
        jobs.append(Job.of(patches))
    return jobs


class Given:
    """A source of jobs that are there."""

    def __init__(self, jobs: list[Job]) -> None:
        self._jobs = deque(jobs)

    @property
    def over(self) -> bool:
        return not self._jobs

    def take(self) -> Job | None:
        return self._jobs.popleft() if self._jobs else None


def plan(readers: int) -> Readers:
    """Return readers as a GPU has them."""
    slots = 2 * readers + 4 * -(-BATCH // SLOT)
    return Readers(readers, slots, SLOT, PATCH, ReadSettings(), lambda _: parallel.Limits(300, 4096))


def warm_up(folder: Path, readers: int) -> None:
    """Start the readers: they are kept for the next feed."""
    feed = Feed(Given(jobs_of(folder, "small")[: 4 * readers]), plan(readers), BATCH)
    for batch in feed:
        feed.release(batch)


def reading(folder: Path, kind: str, readers: int) -> tuple[float, float]:
    """Return patches per second of reading alone, and microseconds of this process's processor per patch."""
    warm_up(folder, readers)
    jobs = jobs_of(folder, kind)
    feed = Feed(Given(jobs), plan(readers), BATCH)
    count, start, used = 0, time.perf_counter(), time.process_time()
    with closing(iter(feed)) as batches:
        for batch in batches:
            count += batch.count
            feed.release(batch)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    assert count == sum(each.count for each in jobs)
    assert not any(each.failure for each in jobs)
    return count / seconds, used / count * 1e6


def threads(folder: Path, kind: str) -> tuple[float, float]:
    """The same of two threads of this process, one slide after the other: as it was before."""
    count, jobs = 0, jobs_of(folder, kind)
    start, used = time.perf_counter(), time.process_time()
    for job in jobs:
        patches = job.patches
        with open_slide(patches.slide_path) as slide:
            for batch in blocks.stream(slide, patches.coords, patches.geometry, batch_size=SLOT, workers=2):
                count += len(batch.patches)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    return count / seconds, used / count * 1e6


class SimulatedDevice:
    """An engine that computes nothing: a batch takes its patches over the rate, in a thread that sleeps."""

    def __init__(self, rate: float) -> None:
        self.rate, self.batch_size, self.depth = rate, BATCH, 2
        self.device = torch.device("cuda")  # by its name only: batches are on their way while others are read
        self.encoder = SimpleNamespace(name="simulated", dim=DIM, patch_px=PATCH, weights_digest="0" * 16)
        self.busy = self.seconds = 0.0
        self.first: float | None = None
        self.last = 0.0
        self._todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.under_way = 0
        self._next = 0.0
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, *pieces: np.ndarray) -> None:
        self.under_way += 1
        self.first = self.first or time.perf_counter()
        self._todo.put(sum(map(len, pieces)))

    def result(self) -> tuple[np.ndarray, float]:
        count = self._done.get()
        self.under_way -= 1
        return np.zeros((count, DIM), np.float16), count / self.rate

    def _work(self) -> None:
        while True:
            count = self._todo.get()
            # Against the clock, so that pauses that last too long do not add up.
            begin = max(time.perf_counter(), self._next)
            self._next = begin + count / self.rate
            time.sleep(max(self._next - time.perf_counter(), 0))
            self.busy += count / self.rate
            self.last = time.perf_counter()
            self._done.put(count)

    def pinned(self, _memory: np.ndarray) -> Any:
        return closing(SimpleNamespace(close=lambda: None))


def simulated(folder: Path, kind: str, rate: float) -> tuple[float, float, float]:
    """Return how busy a device of a rate was, patches per second, and microseconds of this process a patch.

    From slides to files; from the first batch on, because a start of half a second is not what is asked.
    """
    warm_up(folder, 2)
    jobs = jobs_of(folder, kind)
    device = SimulatedDevice(rate)
    with tempfile.TemporaryDirectory(dir=folder) as run:
        failed: list[str] = []
        work = Work(
            engine=device,  # type: ignore[arg-type]
            precision="fp32",  # type: ignore[arg-type]
            target=store.open_features(Path(run), "simulated", "hdf5", None),
            allowed="", advance=lambda _: None,
            finished=lambda job, outcome: failed.append(job.slide_id) if outcome.status == "failed" else None,
        )  # fmt: skip
        used = time.process_time()
        work.run(Given(jobs), plan(2), lambda _: None, lambda: None)
        end, used = time.perf_counter(), time.process_time() - used
        assert not failed
        assert len(list(Path(run).rglob("*.h5"))) == len(jobs)
    count, seconds = sum(each.count for each in jobs), end - (device.first or 0.0)
    return device.busy / seconds, count / seconds, used / count * 1e6


def median(measure: Callable[[], tuple[float, ...]], rounds: int) -> list[float]:
    """Return the median of each figure."""
    return [statistics.median(each) for each in zip(*(measure() for _ in range(rounds)), strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--append", action="store_true")
    given = parser.parse_args()
    folder, rounds = given.folder / "feed", given.rounds
    words = make(folder)
    lines = [f"Slides: {words}. {os.cpu_count()} cores; medians of {rounds} rounds.", ""]
    lines += ["| reading alone | patches/s | processor of this process, us a patch |", "|---|---|---|"]
    alone = {}
    for kind in ("half", "native"):
        # Side by side in each round, so that a slow minute of the machine meets all of them.
        found = [
            (reading(folder, kind, 1), reading(folder, kind, 2), threads(folder, kind)) for _ in range(rounds)
        ]
        for name, place in (("1 reader", 0), ("2 readers", 1), ("2 threads of this process", 2)):
            rate, used = (statistics.median(one[place][k] for one in found) for k in range(2))
            lines.append(f"| {kind}, {name} | {rate:.0f} | {used:.1f} |")
            alone[kind, name] = rate
        two, old = (statistics.median(one[1][0] / one[k][0] for one in found) for k in (0, 2))
        lines.append(
            f"| {kind}, ratio within a round: 2 readers to 1, to 2 threads | {two:.2f}, {old:.2f} | |"
        )
    lines += [
        "",
        "| simulated device, half | busy | patches/s | of reading alone | us a patch |",
        "|---|---|---|---|---|",
    ]
    for kind, rates in (("half", RATES), ("small", RATES[:3])):
        for rate in rates:
            busy, reached, used = median(lambda k=kind, r=rate: simulated(folder, k, r), rounds)  # type: ignore[misc]
            part = reached / alone["half", "2 readers"]
            lines.append(
                f"| {rate} patches/s{', 200 slides of 50' if kind == 'small' else ''} | {busy:.1%} | "
                f"{reached:.0f} | {part:.1%} | {used:.1f} |"
            )
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines += ["", f"Largest resident memory of this process, libraries included: {most:.0f} MiB."]
    publish("Feeding a device", lines, append=given.append)


if __name__ == "__main__":
    main()
