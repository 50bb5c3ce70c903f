"""Stream the patches of a slide in batches: threads read ahead of whoever asks for the next batch."""

import math
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_mil import parallel
from wsi_mil.blocks.cache import empty_pixels
from wsi_mil.blocks.reader import BlockPatches, Chunk, PatchReader, SlidePatches, place
from wsi_mil.blocks.table import BlockError, NoTableError, open_table
from wsi_mil.errors import SlideError
from wsi_mil.geometry import PatchGeometry
from wsi_mil.slide import Slide

_AHEAD = 2  # batches on their way, at least; more of them would only leave the processor's caches
_TASK = 8  # at most so many patches are read by a thread in one go
_CHUNK = 16_384  # patches planned at a time; the next chunk is planned with it, so that rows share blocks
_LOOKS = 3  # patches tried for the comparison with Slide.read
# Two JPEG 2000 decoders differ by less, and so does OpenSlide where it reads between the pixels of a level;
# two readings of the colours differ by much more.
_GREY_LEVELS = 4


@dataclass(frozen=True)
class BrokenPatch:
    """A patch that was left out: its row in ``coords``, level-0 (x, y), the block at fault and why."""

    index: int
    x_l0: int
    y_l0: int
    where: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Some patches in the order of the coords.

    ``patches`` (n, patch_px, patch_px, 3) uint8 RGB; ``index`` (n,) their rows in ``coords``; ``broken`` the
    patches between them that could not be read.
    """

    index: NDArray[np.int64]
    patches: NDArray[np.uint8]
    broken: tuple[BrokenPatch, ...] = ()


def stream(
    slide: Slide,
    coords: NDArray[np.int64],
    geometry: PatchGeometry,
    *,
    batch_size: int = 32,
    workers: int = 0,
    memory_mib: int = 256,
    max_broken: float = 0.01,
    note: Callable[[str], None] | None = None,
) -> Generator[Batch]:
    """Yield the patches at level-0 (x, y) ``coords`` (N, 2) in batches, in that order.

    ``workers`` threads read (0: one per core) and hold at most ``memory_mib`` MiB of decoded blocks and of
    batches that wait. ``note`` is called with why a slide is read through ``Slide``, where it is.

    Raises:
        SlideError: more than ``max_broken`` of the patches cannot be read.
    """
    if not len(coords):
        return
    coords = np.asarray(coords, dtype=np.int64)
    workers = workers or parallel.cpu_count()
    ahead = max(_AHEAD, math.ceil(2 * _TASK * workers / batch_size))
    budget = max(memory_mib * 2**20 - (ahead + 1) * batch_size * geometry.patch_px**2 * 3, 0)
    reader = _open_reader(slide, coords, geometry, budget, note or (lambda _: None))
    broken = 0
    try:
        # Its threads end before the file is closed: the file's number may be another's a moment later.
        with closing(_batches(reader, coords, geometry.patch_px, batch_size, ahead, workers)) as batches:
            for batch in batches:
                broken += len(batch.broken)
                if broken > max_broken * len(coords):
                    first = batch.broken[0]
                    raise SlideError(
                        f"{slide.path}: {broken} or more of {len(coords)} patches cannot be read, more than "
                        f"the {max_broken:.2%} that may be left out (--max-broken); patch {first.index} at "
                        f"level-0 ({first.x_l0}, {first.y_l0}), {first.where}: {first.reason}. Copy the file "
                        "again."
                    )
                yield batch
    finally:
        reader.close()


def sweep_order(
    slide: Slide, coords: NDArray[np.int64], geometry: PatchGeometry, memory_mib: int = 256
) -> NDArray[np.int64]:
    """Return the order (N,) in which to stream ``coords`` so that each block is decoded once.

    Rows of patches share blocks. Where those of one row would not fit the memory, the slide is swept in
    strips from top to bottom; everywhere else this is the order of the coords themselves.
    """
    place_ = place(slide, coords, geometry)
    # Half of the memory for blocks; 512 pixels of blocks that a window only touches.
    rows = geometry.patch_px * place_.ratio_y + 512
    columns = memory_mib * 2**20 / 2 / (rows * 3)
    if not len(coords) or slide.level_sizes[place_.level][0] <= columns:
        return np.arange(len(coords))
    return np.lexsort((place_.left, place_.top, place_.left // columns))


def _open_reader(
    slide: Slide, coords: NDArray[np.int64], geometry: PatchGeometry, budget: int, note: Callable[[str], None]
) -> PatchReader:
    """Return the reader of blocks, once it agrees with ``Slide.read``; else the one through ``Slide``."""
    placement = place(slide, coords, geometry)
    through_slide = SlidePatches(slide, placement, geometry.patch_px)
    try:
        table = open_table(slide, placement.level)
    except NoTableError as error:
        note(f"read through {slide.reader}: {error}")
        return through_slide
    reader = BlockPatches(table, placement, geometry.patch_px, budget)
    try:
        difference = _difference(
            placement.level, table.compression, reader, through_slide, len(coords), geometry.patch_px
        )
    except BaseException:
        reader.close()
        raise
    if difference:
        reader.close()
        note(f"read through {slide.reader}: {difference}")
        return through_slide
    return reader


def _difference(
    level: int, compression: str, reader: BlockPatches, reference: SlidePatches, count: int, size: int
) -> str:
    """Compare a patch with what ``slide.reader`` gives; return in what they differ, or "".

    A file may say things about its colours that no table shows. One patch tells; a few are tried where the
    first cannot be read by either, and then the slide is in the hands of the counting of broken blocks.
    """
    ours, theirs = (np.empty((size, size, 3), dtype=np.uint8) for _ in range(2))
    for k in np.unique(np.linspace(0, count - 1, _LOOKS).astype(int)).tolist():
        failed = []
        for each, out in ((reader, ours), (reference, theirs)):
            try:
                each.read(each.expect(k, k + 1), 0, out)
            except BlockError as error:
                failed.append((each, error))
        if [each for each, _ in failed] == [reader]:
            return f"{compression} blocks: {failed[0][1]}"
        if failed:
            continue
        difference = np.abs(ours.astype(np.int16) - theirs)
        exact = level == 0 and compression not in {"JPEG 2000", "WebP"}
        if difference.max() > 0 if exact else difference.mean() > _GREY_LEVELS:
            return f"its {compression} blocks decode to other colours (by {difference.max()} grey levels)"
        return ""
    return ""


@dataclass(frozen=True)
class _Reading:
    """A batch on its way: threads write its patches, and return those that broke."""

    first: int
    patches: NDArray[np.uint8]
    parts: list[Future[list[tuple[int, BlockError]]]]


def _batches(
    reader: PatchReader, coords: NDArray[np.int64], size: int, batch_size: int, ahead: int, workers: int
) -> Generator[Batch]:
    chunk_size = math.ceil(_CHUNK / batch_size) * batch_size  # no batch lies in two chunks
    task = max(1, min(_TASK, ahead * batch_size // (2 * workers)))
    starts = deque(range(0, len(coords), batch_size))
    memory = _BatchMemory(batch_size, size)
    chunks: dict[int, Chunk] = {}
    queue: deque[_Reading] = deque()

    def begin(first: int) -> _Reading:
        number = first // chunk_size
        for each in (number, number + 1):
            if each not in chunks and each * chunk_size < len(coords):
                chunks[each] = reader.expect(each * chunk_size, min((each + 1) * chunk_size, len(coords)))
        chunks.pop(number - 1, None)  # its last batches hold it as long as they need it
        last = min(first + batch_size, len(coords))
        chunk, before = chunks[number], number * chunk_size
        patches = memory.take()[: last - first]
        reader.fetch(chunk, first - before, last - before)
        parts = [
            pool.submit(
                _read_part, reader, chunk, first - before, range(k, min(k + task, last - first)), patches
            )
            for k in range(0, last - first, task)
        ]
        return _Reading(first, patches, parts)

    with _one_cv2_thread(), ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        try:
            while starts or queue:
                while starts and len(queue) < ahead:
                    queue.append(begin(starts.popleft()))
                yield _finish(queue.popleft(), coords)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read_part(
    reader: PatchReader, chunk: Chunk, before: int, part: range, patches: NDArray[np.uint8]
) -> list[tuple[int, BlockError]]:
    broken = []
    for k in part:
        try:
            reader.read(chunk, before + k, patches[k])
        except BlockError as error:
            broken.append((k, error))
    return broken


def _finish(reading: _Reading, coords: NDArray[np.int64]) -> Batch:
    reading.parts[-1].result()  # wait once, for what likely ends last: waking up costs the readers time
    broken = [each for part in reading.parts for each in part.result()]
    index = np.arange(reading.first, reading.first + len(reading.patches))
    if not broken:
        return Batch(index, reading.patches)
    keep = np.ones(len(index), dtype=bool)
    keep[[k for k, _ in broken]] = False
    left_out = tuple(
        BrokenPatch(
            int(index[k]), int(coords[index[k], 0]), int(coords[index[k], 1]), error.where, error.reason
        )
        for k, error in broken
    )
    return Batch(index[keep], reading.patches[keep], left_out)


class _BatchMemory:
    """Memory for batches, used again once nobody holds a batch: fresh pages cost as much as the copying."""

    def __init__(self, batch_size: int, size: int) -> None:
        """Hold nothing yet."""
        self._shape = (batch_size, size, size, 3)
        self._free: list[NDArray[np.uint8]] = []

    def take(self) -> NDArray[np.uint8]:
        """Return (batch_size, size, size, 3) with anything in it."""
        memory = self._free.pop() if self._free else empty_pixels(math.prod(self._shape))
        # Every view of ``owner`` (slices, tensors) keeps it alive: when it goes, the last of them has gone.
        owner = np.frombuffer(memory.data, dtype=np.uint8)
        weakref.finalize(owner, self._free.append, memory).atexit = False
        return owner.reshape(self._shape)


@contextmanager
def _one_cv2_thread() -> Iterator[None]:
    """Keep OpenCV from starting threads of its own below ours."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
