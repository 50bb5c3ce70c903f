"""From what files, slides and flags say to the geometry of a slide's patches, or to what is missing.

Comes in: facts, each of which may be absent. Goes out: a ``PatchGeometry``, or the facts that nothing gives
and the flags that would. Nothing is guessed: magnifications are not resolutions, and a step is read off the
coords only where they show it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil.config import ImportConfig
from wsi_mil.errors import FormatError
from wsi_mil.exchange.slides import SlideFacts
from wsi_mil.geometry import PatchGeometry, on_grid, step_of
from wsi_mil.store.foreign import Facts

TOLERANCE = 0.05
"""Patches may be this much finer or coarser than --mpp says: tools that tile at nominal magnifications give
every slide a resolution of its own, and a model needs one name for them."""

_SAME_MPP = 0.01
_ROUNDING = 0.51  # of a level-0 pixel: the tools round the size of a patch

_SLIDES = "or --slides FOLDER to read it from the slides"
_FLAGS = {
    "mpp_l0": f"the microns per pixel of level 0 (--slide-mpp N, {_SLIDES})",
    "size": "the slide's width and height (--slides FOLDER, or a manifest with columns width,height,mpp)",
    "mpp": "the microns per pixel of the patches (--mpp N)",
    "patch_px": "the side of the patches in pixels (--patch-px N)",
    "mpp or patch_px": "the resolution of the patches (--mpp N, or --patch-px N for their side in pixels)",
    "overlap": "the overlap of neighbouring patches, which the coords do not show (--overlap-px N, mostly 0)",
    "encoder": "the name of the encoder (--encoder NAME)",
}

Corners = Callable[[float, float], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The geometry, where its mpp comes from, what is remarkable; or else what is ``missing``."""

    geometry: PatchGeometry | None = None
    mpp_source: str = ""
    notes: dict[str, Any] | None = None
    missing: tuple[str, ...] = ()


def describe(missing: tuple[str, ...]) -> str:
    """Return what is missing, and the flags that give it, as one phrase."""
    return "; ".join(_FLAGS[each] for each in missing)


def resolve(
    facts: Facts, config: ImportConfig, slide: SlideFacts | None, corners: Corners, where: object
) -> Resolved:
    """Return the geometry of one slide's patches. ``corners(mpp_l0, patch_size_l0)`` are their coords.

    Raises:
        FormatError: facts contradict each other.
    """
    mpp_l0, mpp_source = _mpp_l0(facts, config, slide, where)
    width, height = _size(facts, slide, where)
    missing = [name for name, value in (("mpp_l0", mpp_l0), ("size", width)) if value is None]
    facts = _with_flags(facts, config, where)
    missing += _missing_scale(facts)
    if mpp_l0 is None or width is None or height is None or missing:
        return Resolved(missing=tuple(missing))
    size_l0, mpp, patch_px = _scale(facts, config, mpp_l0, where)
    notes: dict[str, Any] = {}
    exact = size_l0 * mpp_l0 / patch_px
    if abs(exact - mpp) > 1e-6 * mpp:
        notes["mpp_exact"] = round(exact, 9)
    coords = corners(mpp_l0, size_l0)
    outside = _outside(coords, size_l0, (width, height), facts.beyond_l0, where)
    if outside:
        notes["outside"] = outside
    step = _step(facts, config, coords, size_l0, patch_px)
    if step is None:
        return Resolved(missing=("overlap",))
    if not on_grid(coords, step):
        notes["grid"] = "none"
    geometry = PatchGeometry(
        mpp=mpp, patch_px=patch_px, patch_size_l0=size_l0, stride_l0=step,
        width_l0=width, height_l0=height, mpp_l0=mpp_l0,
    )  # fmt: skip
    return Resolved(geometry=geometry, mpp_source=mpp_source, notes=notes)


def _mpp_l0(
    facts: Facts, config: ImportConfig, slide: SlideFacts | None, where: object
) -> tuple[float | None, str]:
    given: list[tuple[float | None, str]] = [
        (facts.mpp_l0, "file"),
        (slide.mpp_l0 if slide else None, slide.mpp_source if slide else ""),
        (config.slide_mpp, "given"),
    ]
    known = [(value, name) for value, name in given if value is not None]
    if not known:
        return None, ""
    first, source = known[0]
    for value, name in known[1:]:
        if abs(value - first) > _SAME_MPP * first:
            raise FormatError(
                f"{where}: level 0 has {first:g} microns per pixel ({source}) or {value:g} ({name}); "
                "leave out --slide-mpp, or correct the manifest's mpp."
            )
    return first, source


def _size(facts: Facts, slide: SlideFacts | None, where: object) -> tuple[int | None, int | None]:
    if slide is None:
        return facts.width_l0, facts.height_l0
    if facts.width_l0 is not None and (facts.width_l0, facts.height_l0) != (slide.width_l0, slide.height_l0):
        raise FormatError(
            f"{where}: made from a slide of {facts.width_l0} x {facts.height_l0} pixels; {slide.path} has "
            f"{slide.width_l0} x {slide.height_l0}: it is another slide, or was converted."
        )
    return slide.width_l0, slide.height_l0


def _with_flags(facts: Facts, config: ImportConfig, where: object) -> Facts:
    """Fill in from the flags what the files do not say; refuse flags that contradict them."""
    patch_px, mpp = facts.patch_px, facts.mpp
    if config.patch_px is not None:
        if patch_px not in {None, config.patch_px} and not facts.patch_px_free:
            raise FormatError(f"{where}: patches of {patch_px} pixels, not --patch-px {config.patch_px}.")
        patch_px = config.patch_px
    if config.overlap_px is not None and patch_px is not None and config.overlap_px >= patch_px:
        raise FormatError(f"{where}: patches of {patch_px} pixels cannot overlap by {config.overlap_px}.")
    if config.mpp is not None:
        if mpp is not None and abs(mpp - config.mpp) > TOLERANCE * mpp:
            raise FormatError(f"{where}: patches at {mpp:g} microns per pixel, not --mpp {config.mpp:g}.")
        mpp = config.mpp
    free = facts.patch_px_free and config.patch_px is None
    return replace(facts, patch_px=patch_px, mpp=mpp, patch_px_free=free)


def _missing_scale(facts: Facts) -> list[str]:
    if facts.patch_size_l0 is not None:
        return ["mpp or patch_px"] if facts.mpp is None and facts.patch_px is None else []
    return [name for name in ("mpp", "patch_px") if getattr(facts, name) is None]


def _scale(facts: Facts, config: ImportConfig, mpp_l0: float, where: object) -> tuple[float, float, int]:
    """Return the side of a patch in level-0 pixels, its mpp and its side in pixels."""
    size_l0, mpp, patch_px = facts.patch_size_l0, facts.mpp, facts.patch_px
    if size_l0 is None:
        assert mpp is not None
        assert patch_px is not None
        return _tidy(patch_px * mpp / mpp_l0), mpp, patch_px
    if mpp is None:
        assert patch_px is not None
        return size_l0, _tidy(size_l0 * mpp_l0 / patch_px), patch_px
    pixels, rounding = size_l0 * mpp_l0 / mpp, _ROUNDING * mpp_l0 / mpp
    if patch_px is None:
        patch_px = max(1, round(pixels))
        allowed = rounding
    else:
        allowed = max(TOLERANCE * patch_px, rounding)
    if abs(pixels - patch_px) > allowed:
        said = f"--mpp {config.mpp:g}" if config.mpp is not None else f"the {mpp:g} that its files say"
        raise FormatError(
            f"{where}: a patch is {size_l0:g} level-0 pixels of {mpp_l0:g} microns, which is "
            f"{pixels:g} pixels at {said}; wanted {patch_px}"
            + (" (--patch-px, where the patches were resized)." if facts.patch_px_free else ".")
        )
    exact = patch_px * mpp / mpp_l0
    return (_tidy(exact) if abs(exact - size_l0) <= _ROUNDING else size_l0), mpp, patch_px


def _tidy(value: float) -> float:
    """Return a number without the noise of its last digits: 0.5, not 0.49999999999999994."""
    return float(f"{value:.12g}")


def _outside(
    coords: NDArray[np.int64], size_l0: float, size: tuple[int, int], beyond_l0: int, where: object
) -> int:
    """Return how many patches lie wholly beyond the right and lower edges, as the tool may place them."""
    before, after = coords + size_l0 <= 0, coords >= size
    wrong = np.flatnonzero((before | (coords >= np.add(size, beyond_l0))).any(axis=1))
    if len(wrong):
        raise FormatError(
            f"{where}: {len(wrong)} of {len(coords)} patches lie outside the slide of {size[0]} x "
            f"{size[1]} pixels, the first is patch {wrong[0]} at {coords[wrong[0]].tolist()} (level-0 x, y): "
            "the slide, its resolution or the unit of the coords is another."
        )
    return int(after.any(axis=1).sum())


def _step(
    facts: Facts, config: ImportConfig, coords: NDArray[np.int64], size_l0: float, patch_px: int
) -> float | None:
    """Return the step between patches: as given, as the coords show it, or as the tool says.

    Some tools step by whole pixels; of a given step that is a fraction, what the coords lie on is taken.
    """
    said = tuple(each for each in facts.steps_l0 if each > 0)
    if config.overlap_px is not None:
        said = (_tidy((patch_px - config.overlap_px) * size_l0 / patch_px),)
    tried = said if config.overlap_px is not None else (*said, size_l0)
    candidates = [step for each in tried for step in (each, float(int(each + 1e-6)), float(round(each)))]
    for step in candidates:
        if step > 0 and on_grid(coords, step):
            return step
    return step_of(coords) or (said[0] if said else None)
