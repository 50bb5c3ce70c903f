"""Stream the patches of a slide in batches: threads read ahead of whoever asks for the next batch."""

import math
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_mil import parallel, pulse
from wsi_mil.blocks.cache import empty_pixels
from wsi_mil.blocks.reader import BlockPatches, Chunk, PatchReader, SlidePatches, place
from wsi_mil.blocks.table import BlockError, NoTableError, open_table
from wsi_mil.errors import SlideError
from wsi_mil.geometry import PatchGeometry
from wsi_mil.slide import Slide

_AHEAD = 2  # batches on their way, at least; more of them would only leave the processor's caches
_TASK = 8  # at most so many patches are read by a thread in one go
_FETCHED = (
    64  # patches whose bytes are asked for ahead of those that are read, where they come from a network
)
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


@dataclass(frozen=True)
class Filled:
    """Patches ``first`` and following of the coords: ``patches`` (n, patch_px, patch_px, 3) uint8 RGB, in
    memory of the caller's; those of ``broken`` hold anything."""

    first: int
    patches: NDArray[np.uint8]
    broken: tuple[BrokenPatch, ...] = ()


Take = Callable[[int], NDArray[np.uint8] | None]
"""Gives memory for up to so many patches, at least one; None where there is none now and patches are on their
way into what it gave before."""


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
    workers = workers or parallel.cpu_count()
    waiting = (_ahead(workers, batch_size) + 1) * batch_size * geometry.patch_px**2 * 3
    filled = stream_into(
        slide,
        coords,
        geometry,
        own_memory(batch_size, geometry.patch_px),
        ahead=_ahead(workers, batch_size),
        workers=workers,
        memory_mib=max(memory_mib - waiting / 2**20, 0),
        max_broken=max_broken,
        note=note,
    )
    with closing(filled):
        for each in filled:
            index = np.arange(each.first, each.first + len(each.patches))
            if not each.broken:
                yield Batch(index, each.patches)
                continue
            keep = ~np.isin(index, [one.index for one in each.broken])
            yield Batch(index[keep], each.patches[keep], each.broken)


def stream_into(
    slide: Slide,
    coords: NDArray[np.int64],
    geometry: PatchGeometry,
    take: Take,
    *,
    ahead: int = 1,
    workers: int = 1,
    memory_mib: float = 256,
    max_broken: float = 0.01,
    note: Callable[[str], None] | None = None,
) -> Generator[Filled]:
    """Write the patches at level-0 (x, y) ``coords`` (N, 2) into what ``take`` gives; yield what is ready.

    ``ahead`` pieces of memory are on their way at a time. With one worker it is this thread that reads.
    ``memory_mib``: of decoded blocks. Else as ``stream``.

    Raises:
        SlideError: more than ``max_broken`` of the patches cannot be read.
    """
    if not len(coords):
        return
    coords = np.asarray(coords, dtype=np.int64)
    reader = _open_reader(slide, coords, geometry, int(memory_mib * 2**20), note or (lambda _: None))
    broken = 0
    try:
        # Its threads end before the file is closed: the file's number may be another's a moment later.
        with closing(_fill(reader, coords, take, ahead, workers)) as filled:
            for each in filled:
                broken += len(each.broken)
                if broken > max_broken * len(coords):
                    first = each.broken[0]
                    raise SlideError(
                        f"{slide.path}: {broken} or more of {len(coords)} patches cannot be read, more than "
                        f"the {max_broken:.2%} that may be left out (--max-broken); patch {first.index} at "
                        f"level-0 ({first.x_l0}, {first.y_l0}), {first.where}: {first.reason}. Copy the file "
                        "again."
                    )
                yield each
    finally:
        reader.close()


def own_memory(batch_size: int, side: int) -> Take:
    """Return what gives memory for ``batch_size`` patches at a time, used again when nobody holds it."""
    memory = _BatchMemory(batch_size, side)
    return lambda most: memory.take()[:most]


def _ahead(workers: int, batch_size: int) -> int:
    return max(_AHEAD, math.ceil(2 * _TASK * workers / batch_size))


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
    """A piece on its way: threads write its patches, and return those that broke."""

    first: int
    patches: NDArray[np.uint8]
    parts: list[Future[list[tuple[int, BlockError]]]]


class _Here:
    """What a thread pool is for many threads, for this one alone: what is submitted is done at once."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        """Do nothing."""


def _fill(
    reader: PatchReader, coords: NDArray[np.int64], take: Take, ahead: int, workers: int
) -> Generator[Filled]:
    count, first, fetched = len(coords), 0, 0
    chunks: dict[int, Chunk] = {}
    queue: deque[_Reading] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read") if workers > 1 else _Here()

    def begin() -> bool:
        """Read into the next piece of memory; False where there is none now."""
        nonlocal first, fetched
        number = first // _CHUNK
        before = number * _CHUNK
        patches = take(min(before + _CHUNK, count) - first)  # no piece lies in two chunks
        if patches is None:
            return False
        for each in (number, number + 1):
            if each not in chunks and each * _CHUNK < count:
                chunks[each] = reader.expect(each * _CHUNK, min((each + 1) * _CHUNK, count))
        chunks.pop(number - 1, None)  # its last pieces hold it as long as they need it
        chunk, size = chunks[number], len(patches)
        target = min(first + size + _FETCHED, before + _CHUNK, count)
        fetched = max(fetched, first)
        if target > fetched:
            reader.fetch(chunk, fetched - before, target - before)
            fetched = target
        step = size if workers == 1 else max(1, min(_TASK, ahead * size // (2 * workers)))
        parts = [
            pool.submit(
                _read_part, reader, chunk, before, first, range(k, min(k + step, size)), patches, coords
            )
            for k in range(0, size, step)
        ]
        queue.append(_Reading(first, patches, parts))
        first += size
        return True

    with _one_cv2_thread():
        try:
            while first < count or queue:
                while first < count and len(queue) < ahead and begin():
                    pass
                yield _finish(queue.popleft(), coords)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read_part(
    reader: PatchReader,
    chunk: Chunk,
    before: int,
    first: int,
    part: range,
    patches: NDArray[np.uint8],
    coords: NDArray[np.int64],
) -> list[tuple[int, BlockError]]:
    """Read the patches ``part`` of a piece that starts at ``first``, of a chunk that starts at ``before``."""
    broken = []
    for k in part:
        x, y = coords[first + k].tolist()
        pulse.at(f"reading the patch at level-0 ({x}, {y}) from level {reader.level}")
        try:
            reader.read(chunk, first - before + k, patches[k])
        except BlockError as error:
            broken.append((k, error))
    return broken


def _finish(reading: _Reading, coords: NDArray[np.int64]) -> Filled:
    reading.parts[-1].result()  # wait once, for what likely ends last: waking up costs the readers time
    broken = [each for part in reading.parts for each in part.result()]
    return Filled(
        reading.first,
        reading.patches,
        tuple(
            BrokenPatch(
                reading.first + k,
                int(coords[reading.first + k, 0]),
                int(coords[reading.first + k, 1]),
                error.where,
                error.reason,
            )
            for k, error in broken
        ),
    )


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
