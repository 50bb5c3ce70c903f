"""Look at one slide: open it, ask what it says of itself, read a few pixels, and say what is wrong.

Comes in: a path or URL. Goes out: an ``Inspection``; what is wrong with the file is in it and never raised.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from wsi_mil import blocks
from wsi_mil.blocks import LevelBlocks
from wsi_mil.config import Icc, Location
from wsi_mil.errors import SlideError
from wsi_mil.geometry import is_enlarged
from wsi_mil.inspect import probes
from wsi_mil.inspect.facts import Inspection, LevelFacts, Probe
from wsi_mil.slide import Reader, Slide, decide, fingerprint, open_slide

_READ_AHEAD = 65_536  # bytes: a directory, or a block
_ANY_MPP = 1.0  # the slide is opened with it, so that one without a resolution can be looked at
_PATCH_UM = 128.0  # the side of a patch with tile's defaults
_TILE_MPP = 0.5  # and its resolution
_WHOLE_READ = 500_000_000  # pixels that tile has to decode for its thumbnail, if there is no smaller level
_OTHER_OBJECTIVE = 1.5  # the nominal magnification and 10 / mpp differ by more than this factor


def inspect_slide(
    path: Location,
    slide_id: str | None = None,
    *,
    reader: Reader = "auto",
    slide_mpp: float | None = None,
    mpp: float | None = None,
    icc: Icc = "none",
) -> Inspection:
    """Return what is known of a slide, with what will fail in `tile` and what to do.

    ``slide_mpp`` overrides what the file says of its resolution; ``mpp`` is what it is to be tiled at; with
    ``icc`` "srgb" it has to have a profile.
    """
    start = time.perf_counter()
    slide_id = slide_id or PurePosixPath(str(path)).stem

    def open_it(icc: Icc = "none") -> Slide:
        return open_slide(path, reader, _ANY_MPP, icc, read_ahead=_READ_AHEAD)

    try:
        slide = open_it()
    except SlideError as error:
        return Inspection(
            slide_id=slide_id,
            path=str(path),
            problems=(_without_path(error, path),),
            seconds=time.perf_counter() - start,
        )
    with slide:
        bytes_now = ""
        with contextlib.suppress(SlideError):  # the file went away: what is read of it next says so
            bytes_now = fingerprint(path)
        found = _describe(slide, open_it)
        problems, remarks = list(_damage(found.levels, found.probes)), list(_notes(slide, found.levels))
        resolution = None
        try:
            resolution = decide(slide.statements, path, slide_mpp)
            remarks += [resolution.note] if resolution.note else []
            problems += _too_coarse(resolution.mpp, mpp)
            remarks += _of_resolution(slide, resolution.mpp, mpp)
        except SlideError as error:
            problems.insert(0, _without_path(error, path))
        if icc != "none":
            problems += _icc_problem(open_it, path, icc)
        remarks += _darkness(slide) if not problems else []
    return dataclasses.replace(
        found,
        slide_id=slide_id,
        fingerprint=bytes_now,
        mpp=resolution.mpp if resolution else None,
        mpp_source=resolution.source if resolution else "",
        problems=tuple(problems),
        remarks=tuple(remarks),
        seconds=time.perf_counter() - start,
    )


def _describe(slide: Slide, open_it: Callable[[], Slide]) -> Inspection:
    """Return what a slide says of itself and what of it can be read, without a verdict."""
    levels = tuple(_level(slide, level, each) for level, each in enumerate(blocks.survey(slide)))
    probed = probes.probe(slide, open_it)
    slow = levels[0].fast_path_reason
    if not slow and (levels[0].beyond or any(each.reason for each in probed)):
        slow = "parts of it cannot be read"
    slow = slow or probes.fast_path_reason(slide)
    return Inspection(
        slide_id="",
        path=str(slide.path),
        bytes=slide.path.stat().st_size if isinstance(slide.path, Path) else None,
        reader=slide.reader,
        vendor=slide.vendor,
        width=slide.width_l0,
        height=slide.height_l0,
        levels=levels,
        mpp_statements=tuple(map(str, slide.statements)),
        objective=slide.objective,
        compression=levels[0].compression,
        icc_profile=slide.profile,
        bounds=slide.bounds,
        fast_path=not slow,
        fast_path_reason=slow,
        probes=probed,
    )


def _level(slide: Slide, level: int, surveyed: LevelBlocks) -> LevelFacts:
    width, height = slide.level_sizes[level]
    stated = slide.block_sizes[level]
    block_width, block_height = stated if all(stated) else surveyed.block
    return LevelFacts(
        width=width,
        height=height,
        downsample=1 / slide.level_scale(level)[0],
        block_width=block_width,
        block_height=block_height,
        compression=surveyed.compression,
        blocks=surveyed.blocks,
        empty=surveyed.empty,
        beyond=surveyed.beyond,
        fast_path_reason=surveyed.reason,
    )


def _damage(levels: tuple[LevelFacts, ...], probed: tuple[Probe, ...]) -> Iterator[str]:
    """Yield what of the file is missing or cannot be read."""
    beyond = {level: each.beyond for level, each in enumerate(levels) if each.beyond}
    if beyond:
        listed = ", ".join(f"{count} of level {level}" for level, count in beyond.items())
        yield f"the file is cut off: {listed} blocks lie beyond its end. Copy it again."
    bare = [str(level) for level, each in enumerate(levels) if each.blocks and each.empty == each.blocks]
    if bare:
        yield f"there is nothing in level {', '.join(bare)}: all blocks are empty. Copy it again."
    failed = [each for each in probed if each.reason]
    if len(failed) == len(probed) and failed:
        yield f"it opens, and nothing in it can be read: {failed[0].reason}"
    elif failed and not beyond:
        names = ", ".join(f"{each.name} of level {each.level}" for each in failed)
        yield f"{len(failed)} of {len(probed)} probes cannot be read ({names}): {failed[0].reason}"


def _notes(slide: Slide, levels: tuple[LevelFacts, ...]) -> Iterator[str]:
    """Yield what to know of a slide besides its resolution."""
    if slide.reading_note:
        yield slide.reading_note
    empty = sum(each.empty for each in levels)
    total = sum(each.blocks or 0 for each in levels)
    if empty:
        yield f"{empty} of {total} blocks are empty, which reads as background"
    smallest = slide.level_sizes[-1]
    if math.prod(smallest) > _WHOLE_READ:
        yield (
            f"its smallest level is {smallest[0]} x {smallest[1]}: tile decodes all of it for the thumbnail, "
            "which takes minutes; a converter can add levels"
        )


def _too_coarse(mpp_l0: float, mpp: float | None) -> Iterator[str]:
    if mpp is not None and is_enlarged(mpp, mpp_l0):
        yield (
            f"its {mpp_l0:g} um per pixel are coarser than --mpp {mpp:g}: tile it at {mpp_l0:g} or coarser, "
            "or with --allow-upsampling."
        )


def _of_resolution(slide: Slide, mpp_l0: float, mpp: float | None) -> Iterator[str]:
    """Yield what to know of a slide once its resolution is known."""
    if mpp is None and is_enlarged(_TILE_MPP, mpp_l0):
        yield f"it is coarser than tile's {_TILE_MPP} um per pixel: give tile --mpp {mpp_l0:g} or coarser"
    side_um = min(slide.width_l0, slide.height_l0) * mpp_l0
    if side_um < _PATCH_UM:
        yield f"it is {side_um:.3g} um wide or high: no patch of {_PATCH_UM:g} um (tile's default) fits on it"
    if slide.objective:
        factor = slide.objective * mpp_l0 / 10
        if max(factor, 1 / factor) > _OTHER_OBJECTIVE:
            yield (
                f"the objective is said to be {slide.objective:g}x, and {mpp_l0:g} um per pixel are those of "
                f"about {10 / mpp_l0:.3g}x: see whether the resolution is right"
            )


def _darkness(slide: Slide) -> Iterator[str]:
    with contextlib.suppress(SlideError):  # what cannot be read there is found where it is needed
        if probes.is_dark(slide):
            yield "its background is dark: fluorescence, or an empty scan"


def _icc_problem(open_it: Callable[[Icc], Slide], path: Location, icc: Icc) -> Iterator[str]:
    try:
        open_it(icc).close()
    except SlideError as error:
        yield _without_path(error, path)


def _without_path(error: SlideError, path: Location) -> str:
    return str(error).removeprefix(f"{path}: ")
