"""One process at work: slides from a source, through the encoder on one device, into a store.

Comes in: jobs. Goes out: features, and an ``Outcome`` for each slide.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_mil import store
from wsi_mil.blocks import BrokenPatch
from wsi_mil.embed.engine import Engine
from wsi_mil.embed.feed import Batch, Feed, Job, Part, Reader, ReadSettings, read_open_slide
from wsi_mil.embed.precision import Precision
from wsi_mil.embed.writing import Writing
from wsi_mil.encoders import Encoder
from wsi_mil.parallel import Outcome
from wsi_mil.slide import Slide

_READERS = 2  # slides that are open at a time where a GPU computes: one is opened while one is read


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
    settings = ReadSettings(batch_size, workers, memory_mib, max_broken)
    features = np.empty((len(patches.coords), encoder.dim), dtype=np.float16)
    present = np.zeros(len(features), dtype=bool)

    def read(job: Job) -> Generator[Part]:
        yield from read_open_slide(slide, job, settings)

    feed = Feed([job], read, batch_size, readers=0)
    with closing(compute(feed, engine)) as computed:
        for batch, values in computed:
            for _, rows in batch.rows:
                features[rows], present[rows] = values, True
                if advance:
                    advance(len(rows))
    if job.error:
        raise job.error
    broken = tuple(sorted(job.broken, key=lambda each: each.index))
    if advance and broken:
        advance(len(broken))
    index = np.flatnonzero(present)
    kept = features if len(index) == len(features) else features[index]
    return Embedding(kept, index, broken, job.read_wait, job.compute, job.read_by)


def encode(
    encoder: Encoder, patches: NDArray[np.uint8], device: torch.device, precision: str = "fp32"
) -> NDArray[np.float16]:
    """Return (N, D) features of (N, height, width, 3) uint8 patches, in one batch."""
    engine = Engine(encoder, device, precision, batch_size=len(patches))
    engine.submit(patches)
    return engine.result()[0]


def compute(feed: Feed, engine: Engine) -> Generator[tuple[Batch, NDArray[np.float16]]]:
    """Yield each batch of a feed with its features (n, D), in order; jobs are told the seconds they took."""
    under_way: deque[Batch] = deque()
    none = np.empty((0, engine.encoder.dim), np.float16)

    def collect() -> tuple[Batch, NDArray[np.float16]]:
        batch = under_way.popleft()
        if not batch.rows:
            return batch, none
        features, seconds = engine.result()
        for job, rows in batch.rows:
            job.compute += seconds * len(rows) / len(features)
        feed.batch_size = min(feed.batch_size, engine.batch_size)  # less after memory ran out
        return batch, features

    start = time.perf_counter()
    with closing(iter(feed)) as batches:
        for batch in batches:
            waited = time.perf_counter() - start
            for job, rows in batch.rows:
                job.read_wait += waited * len(rows) / len(batch.patches)
            while engine.under_way >= engine.depth:
                yield collect()
            if batch.rows:
                engine.submit(batch.patches)
            under_way.append(batch)
            if engine.device.type == "cpu" or not batch.rows:
                while under_way:  # the CPU computes when it is told to: nothing runs ahead
                    yield collect()
            start = time.perf_counter()
    while under_way:
        yield collect()


def readers(device: torch.device) -> int:
    """Return how many slides are read ahead of a device: see ``Feed``.

    A CPU that computes reads in between, with all its cores: threads that read beside it cost more.
    """
    return 0 if device.type == "cpu" else _READERS


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
        self, jobs: Iterable[Job | None], read: Reader, stop: threading.Event, check: Callable[[], None]
    ) -> None:
        """Embed every job and write its features; ``stop`` is what the source of the jobs looks at.

        ``check`` is called between batches, and while one is waited for: what it raises ends the work.

        Raises:
            ConfigError: the device's memory does not suffice for a single patch.
        """
        feed = Feed(jobs, read, self.engine.batch_size, readers(self.engine.device), stop, check)
        try:
            # However it ends, the readers end first, then the writer: none is left with a file in its hands.
            with (
                Writing(self.target, self._head, self.finished) as writing,
                closing(compute(feed, self.engine)) as computed,
            ):
                for batch, features in computed:
                    check()
                    first = 0
                    for job, rows in batch.rows:
                        writing.put(job, rows, features[first : first + len(rows)])
                        first += len(rows)
                        self.advance(len(rows))
                    for job in batch.ends:
                        writing.end(job)
        finally:
            stop.set()

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
