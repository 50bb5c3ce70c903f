"""One process at work: slides from a source, through the encoder on one device, into a store.

Comes in: jobs. Goes out: features, and an ``Outcome`` for each slide.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_mil import blocks, parallel, store
from wsi_mil.blocks import BrokenPatch
from wsi_mil.embed.engine import Engine
from wsi_mil.embed.precision import Precision
from wsi_mil.embed.spent import Spent
from wsi_mil.embed.writing import Writing
from wsi_mil.encoders import Encoder
from wsi_mil.parallel import Outcome
from wsi_mil.readers import Batch, Feed, Job, Part, Readers, ReadSettings, Source, read_open_slide
from wsi_mil.slide import Slide

_AHEAD = 2  # batches that threads of this process read ahead


@dataclass(frozen=True)
class Embedding:
    """What ``embed_slide`` returns.

    ``features`` (n, D) float16; ``index`` (n,) their rows in the patches' coords, rising: all but those of
    ``broken``. ``read_wait``, ``compute``: seconds. ``read_by``: how the pixels were read.
    """

    features: NDArray[np.float16]
    index: NDArray[np.int64]
    broken: tuple[BrokenPatch, ...]
    read_wait: float
    compute: float
    read_by: str


def embed_slide(
    slide: Slide,
    patches: store.Patches,
    encoder: Encoder,
    *,
    device: torch.device | None = None,
    precision: str = "fp32",
    batch_size: int = 32,
    workers: int = 0,
    memory_mib: int = 256,
    max_broken: float = 0.01,
    advance: Callable[[int], None] | None = None,
) -> Embedding:
    """Return the features of a slide's patches, in the order of ``patches.coords``.

    ``precision`` is fp32 or bf16. ``advance`` is called with the patches of each batch.

    Raises:
        SlideError: more than ``max_broken`` of the patches cannot be read; fewer are left out, and said.
    """
    device = device or encoder.device
    engine = Engine(encoder, device, precision, batch_size=batch_size)
    job = Job.of(patches)
    features = np.empty((len(patches.coords), encoder.dim), dtype=np.float16)
    present = np.zeros(len(features), dtype=bool)

    def note(words: str) -> None:
        job.read_by = words

    threads = workers or parallel.cpu_count()
    settings = ReadSettings(threads, _AHEAD if threads > 1 else 1, memory_mib, max_broken)
    take = blocks.own_memory(batch_size, patches.geometry.patch_px)
    parts = read_open_slide(slide, patches, take, settings, note)
    with closing(parts), closing(compute(_batches(parts, job), engine)) as computed:
        for batch, values in computed:
            (_, rows), *_ = batch.rows
            good = rows >= 0
            features[rows[good]], present[rows[good]] = values[good], True
            if advance:
                advance(len(rows))
    index = np.flatnonzero(present)
    kept = features if len(index) == len(features) else features[index]
    broken = tuple(sorted(job.broken, key=lambda each: each.index))
    return Embedding(kept, index, broken, job.read_wait, job.compute, job.read_by)


def _batches(parts: Iterable[Part], job: Job) -> Iterator[Batch]:
    """Yield the parts of one slide as batches of their own."""
    for each in parts:
        job.broken += each.broken
        yield Batch((each.patches,), ((job, each.rows),), ())


def encode(
    encoder: Encoder, patches: NDArray[np.uint8], device: torch.device, precision: str = "fp32"
) -> NDArray[np.float16]:
    """Return (N, D) features of (N, height, width, 3) uint8 patches, in one batch."""
    engine = Engine(encoder, device, precision, batch_size=len(patches))
    engine.submit(patches)
    return engine.result()[0]


def compute(
    batches: Iterable[Batch], engine: Engine, feed: Feed | None = None
) -> Generator[tuple[Batch, NDArray[np.float16]]]:
    """Yield each batch with its features (n, D), in order; jobs are told the seconds they took.

    ``feed``, where they come from, is given back what was computed.
    """
    under_way: deque[Batch] = deque()
    none = np.empty((0, engine.encoder.dim), np.float16)

    def collect() -> tuple[Batch, NDArray[np.float16]]:
        batch = under_way.popleft()
        if not batch.rows:
            return batch, none
        features, seconds = engine.result()
        for job, rows in batch.rows:
            job.compute += seconds * len(rows) / len(features)
        if feed is not None:
            feed.release(batch)
            feed.batch_size = min(feed.batch_size, engine.batch_size)  # less after memory ran out
        return batch, features

    start = time.perf_counter()
    for batch in batches:
        waited = time.perf_counter() - start
        for job, rows in batch.rows:
            job.read_wait += waited * len(rows) / batch.count
        while engine.under_way >= engine.depth:
            yield collect()
        if batch.rows:
            engine.submit(*batch.pieces)
        under_way.append(batch)
        if engine.device.type == "cpu" or not batch.rows:
            while under_way:  # the CPU computes when it is told to: nothing runs ahead
                yield collect()
        start = time.perf_counter()
    while under_way:
        yield collect()


@dataclass(frozen=True)
class Work:
    """What a process needs besides its jobs.

    ``advance`` is called with how many patches were computed, ``finished`` with each job and its outcome.
    ``allowed``: what ``check_fit`` let pass, for the files' notes.
    """

    engine: Engine
    precision: Precision
    target: store.FeatureStore
    allowed: str
    advance: Callable[[int], None]
    finished: Callable[[Job, Outcome], None]

    def run(
        self, source: Source, readers: Readers, say: Callable[[str], None], check: Callable[[], None]
    ) -> Spent:
        """Embed every job and write its features; return what the time went into.

        ``say`` is told how slides are read that are not read by their blocks. ``check`` is called between
        batches, and while one is waited for: what it raises ends the work.

        Raises:
            ConfigError: the device's memory does not suffice for a single patch, or no reader can be started.
        """
        feed = Feed(source, readers, self.engine.batch_size, say, check)
        spent = Spent(feed.times)
        start = time.perf_counter()
        # However it ends, the readers end first, then the writer: none is left with a file in its hands.
        with (
            Writing(self.target, self._head, self.finished) as writing,
            self.engine.pinned(feed.ring.memory),
            closing(iter(feed)) as batches,
            closing(compute(spent.waited_for(batches), self.engine, feed)) as computed,
        ):
            for batch, features in computed:
                check()
                given = time.perf_counter()
                spent.patches += self._give(writing, batch, features)
                spent.writing += time.perf_counter() - given
        spent.seconds, spent.computing = time.perf_counter() - start, self.engine.seconds
        return spent

    def _give(self, writing: Writing, batch: Batch, features: NDArray[np.float16]) -> int:
        """Hand the features of a batch to the writer; return how many patches they are of."""
        first = count = 0
        for job, rows in batch.rows:
            good = rows >= 0
            writing.put(job, rows[good], features[first : first + len(rows)][good])
            first += len(rows)
            count += int(good.sum())
        for job in batch.ends:
            writing.end(job)
        self.advance(count)
        return count

    def _head(self, job: Job) -> store.FeaturesHead:
        patches, encoder = job.patches, self.engine.encoder
        notes = {"precision": str(self.precision), "encoder_patch_px": encoder.patch_px}
        return store.FeaturesHead(
            slide_id=patches.slide_id,
            slide_path=patches.slide_path,
            reader=patches.reader,
            geometry=patches.geometry,
            encoder=encoder.name,
            weights_digest=encoder.weights_digest,
            patches_digest=patches.digest,
            dim=encoder.dim,
            record=job.record,
            mpp_source=patches.mpp_source,
            notes=notes | ({"allowed": self.allowed} if self.allowed else {}),
        )
