"""One slide on its way: which patches, what became of it so far, and how its pixels are read.

Comes in: patches of a run. Goes out: their pixels, in pieces. It knows nothing of processes and batches.
"""

import functools
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil import blocks, store
from wsi_mil.blocks import BrokenPatch, Take
from wsi_mil.config import Location
from wsi_mil.errors import FormatError, SlideError
from wsi_mil.locate import SlideFinder
from wsi_mil.parallel import Outcome
from wsi_mil.slide import Slide, open_slide


@dataclass(eq=False)
class Job:
    """One slide on its way: its patches, the record of its features, and what became of it so far.

    ``finder`` says where the slide lies. ``count``: how many patches it has; they are loaded when they are
    first asked for, so that the coords of a cohort do not sit in memory together. ``read_wait``, ``compute``,
    ``write``: seconds. ``failure`` is set by whoever meets it; the others then leave the slide. ``read_by``:
    how its pixels are read. ``told``: which rows came already; ``again``: it is read once more, because its
    reader was killed.
    """

    slide_id: str
    count: int
    load: Callable[[], store.Patches]
    record: dict[str, Any] = field(default_factory=dict)
    finder: SlideFinder = SlideFinder()
    started: float = field(default_factory=time.perf_counter)
    read_wait: float = 0.0
    compute: float = 0.0
    write: float = 0.0
    read_by: str = "blocks"
    broken: list[BrokenPatch] = field(default_factory=list)
    failure: Outcome | None = None
    told: NDArray[np.bool_] | None = None
    again: bool = False

    @classmethod
    def of(cls, patches: store.Patches) -> "Job":
        """Return the job of patches that are in memory."""
        return cls(patches.slide_id, len(patches.coords), lambda: patches)

    @functools.cached_property
    def patches(self) -> store.Patches:
        """Where the slide's patches lie.

        Raises:
            FormatError: their file is damaged, or is another than when the work was planned.
        """
        patches = self.load()
        if self.record and patches.digest != self.record["patches_digest"]:
            raise FormatError(
                f"{self.slide_id}: its patches changed while the run was under way; run `wsi-mil embed` "
                "again when `wsi-mil tile` has ended."
            )
        return patches

    def found_at(self, path: Location) -> None:
        """Note where the slide lies."""
        vars(self)["patches"] = replace(self.patches, slide_path=path)

    def forget(self) -> None:
        """Let go of the patches: the slide has ended."""
        vars(self).pop("patches", None)


@dataclass(frozen=True)
class Part:
    """Some patches of one slide: ``rows`` (n,) of its coords, -1 where a patch could not be read, and
    ``patches`` (n, height, width, 3) uint8; ``broken`` are those that could not be read."""

    rows: NDArray[np.int64]
    patches: NDArray[np.uint8]
    broken: tuple[BrokenPatch, ...]


@dataclass(frozen=True)
class ReadSettings:
    """How slides are read: ``threads`` read one slide, ``ahead`` pieces of memory at a time; see
    ``EmbedConfig`` for the others."""

    threads: int = 1
    ahead: int = 1
    memory_mib: float = 256
    max_broken: float = 0.01


Say = Callable[[str], None]


def read_job(patches: store.Patches, take: Take, settings: ReadSettings, say: Say) -> Generator[Part]:
    """Open the slide of ``patches``, which lies where they say, and yield its parts in what ``take`` gives.

    ``say`` is told how its pixels are read, where that is not by their blocks.

    Raises:
        SlideError: the slide cannot be opened or read, or is not the one that was tiled.
        FormatError: patches lie outside of the slide.
    """
    check_inside(patches)
    reader, mpp = patches.reader, patches.geometry.mpp_l0
    with open_slide(patches.slide_path, reader, mpp, patches.icc) as slide:  # type: ignore[arg-type]
        if (slide.width_l0, slide.height_l0) != (patches.geometry.width_l0, patches.geometry.height_l0):
            raise _replaced(
                patches,
                f"is {slide.width_l0} x {slide.height_l0} pixels and was {patches.geometry.width_l0} x "
                f"{patches.geometry.height_l0} when it was tiled",
            )
        yield from read_open_slide(slide, patches, take, settings, say)


def read_open_slide(
    slide: Slide, patches: store.Patches, take: Take, settings: ReadSettings, say: Say
) -> Generator[Part]:
    """Yield the parts of an open slide; see ``read_job``.

    Raises:
        SlideError: more than ``max_broken`` of the patches cannot be read, or the slide is open with other
            colours than it was tiled with.
    """
    if slide.icc != patches.icc:
        raise SlideError(
            f"{slide.path}: opened with icc {slide.icc!r}, and tiled with {patches.icc!r}: its patches would "
            "have other colours than those that were chosen; open it with icc=patches.icc."
        )
    order = blocks.sweep_order(slide, patches.coords, patches.geometry, int(settings.memory_mib))
    filled = blocks.stream_into(
        slide,
        patches.coords[order],
        patches.geometry,
        take,
        ahead=settings.ahead,
        workers=settings.threads,
        memory_mib=settings.memory_mib,
        max_broken=settings.max_broken,
        note=say,
    )
    with closing(filled):
        for each in filled:
            rows = order[each.first : each.first + len(each.patches)].copy()
            broken = tuple(replace(one, index=int(order[one.index])) for one in each.broken)
            rows[[one.index - each.first for one in each.broken]] = -1
            yield Part(rows, each.patches, broken)


def check_inside(patches: store.Patches) -> None:
    """Raise FormatError where a patch lies wholly outside of its slide; one across the edge is filled up."""
    plan = patches.geometry
    corner, size = patches.coords, plan.patch_size_l0
    outside = (corner + size <= 0).any(axis=1) | (corner >= (plan.width_l0, plan.height_l0)).any(axis=1)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise FormatError(
            f"{patches.slide_id}: {int(outside.sum())} of {len(corner)} patches lie outside of the slide, "
            f"the first is patch {first} at level-0 {corner[first].tolist()}, and the slide is "
            f"{plan.width_l0} x {plan.height_l0} pixels. Tile it again: these coords are another "
            "slide's, or of another level."
        )


def _replaced(patches: store.Patches, what: str) -> SlideError:
    return SlideError(f"{patches.slide_path}: {what}: the file was replaced. Tile it again with --overwrite.")
