"""Whether a map lies where it should: stored coords, thumbnail and slide compared at sampled patches.

Comes in: an open slide, the picture that is drawn on, and patches. Goes out: how far they are apart, or an
error. A patch's place in the picture comes from its stored coords and the stored size of the slide; what is
there is compared with what the slide shows at these coords in finer pixels.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_mil.errors import SlideError
from wsi_mil.geometry import PatchGeometry, boxes_rc
from wsi_mil.slide import Slide

LIMIT_PX = 0.5
"""Most pixels of the overlay that the map may be off."""

_WINDOW = 48
"""Side of what is compared, in pixels of the overlay: small enough for a piece of tissue to stand out."""

_SHARP = 4
"""Pixels of the slide that are read for one of the overlay, each way: shifts are told apart to a quarter."""

_REACH = 3
"""Farthest shift that is looked for, in pixels of the overlay."""

_CONTRAST = 4.0
"""Standard deviation (of 255) below which a window shows nothing to compare."""

_ALIKE = 0.5
"""Correlation below which two windows do not show the same."""

_CLEARLY = 0.02
"""By how much the correlation must be better elsewhere for a window to count as misaligned."""


@dataclass(frozen=True)
class Alignment:
    """How far the picture is off at the patches compared: ``off_px`` (K,), in pixels of the overlay.

    ``judged`` of them had something to compare; ``unlike`` did not look the same at all.
    """

    off_px: NDArray[np.float64]
    judged: int
    unlike: int

    def facts(self) -> dict[str, float]:
        """Return it for a heatmap's facts."""
        off = float(np.median(self.off_px)) if len(self.off_px) else 0.0
        largest = float(self.off_px.max()) if len(self.off_px) else 0.0
        return {"compared": self.judged, "median_off_px": round(off, 3), "largest_off_px": round(largest, 3)}


def check_alignment(
    slide: Slide,
    picture: NDArray[np.uint8],
    coords: NDArray[np.int64],
    geometry: PatchGeometry,
    samples: int = 12,
) -> Alignment:
    """Compare the picture with the slide at patches in the corners, the middle and between.

    Raises:
        SlideError: the slide has another size than its patches say; or at a third or more of the patches that
            show anything the picture is off by more than half a pixel, or shows something else.
    """
    if (slide.width_l0, slide.height_l0) != (geometry.width_l0, geometry.height_l0):
        raise SlideError(
            f"{slide.path}: {slide.width_l0} x {slide.height_l0} pixels, and its patches are of a slide of "
            f"{geometry.width_l0} x {geometry.height_l0}; it was replaced. Tile and embed it again."
        )
    off, unlike = [], 0
    for index in _sampled(coords, samples):
        found = _compare(slide, picture, coords[index], geometry)
        if found is None:
            continue
        shift, alike = found
        if alike < _ALIKE:
            unlike += 1
        else:
            off.append(shift)
    alignment = Alignment(np.array(off), len(off) + unlike, unlike)
    wrong = unlike + int((alignment.off_px > LIMIT_PX).sum())
    if alignment.judged >= 2 and wrong * 3 >= alignment.judged:
        median = float(np.median(alignment.off_px)) if off else float("nan")
        raise SlideError(
            f"{slide.path}: the map does not lie over the slide: at {wrong} of {alignment.judged} patches "
            f"compared the overlay shows another place (off by {median:.2f} of its pixels in the middle, "
            f"{unlike} unlike). Coords and slide do not belong together, or its levels do not; tile it again."
        )
    return alignment


def _sampled(coords: NDArray[np.int64], samples: int) -> list[int]:
    """Return patches nearest to the corners and the middle, and others spread evenly over the list."""
    low, high = coords.min(axis=0), coords.max(axis=0)
    ends = np.array([[low[0], low[1]], [high[0], low[1]], [low[0], high[1]], high, (low + high) / 2])
    near = [int(((coords - end) ** 2).sum(axis=1).argmin()) for end in ends]
    even = np.linspace(0, len(coords) - 1, samples).astype(int).tolist()
    return list(dict.fromkeys([*near, *even]))[:samples]


def _compare(
    slide: Slide, picture: NDArray[np.uint8], corner: NDArray[np.int64], geometry: PatchGeometry
) -> tuple[float, float] | None:
    """Return (how far the picture is off in its pixels, how alike it is there); None where nothing shows."""
    shape_rc = picture.shape[0], picture.shape[1]
    top, left, bottom, right = boxes_rc(corner[None], geometry, shape_rc)[0]
    side = min(_WINDOW, *shape_rc)
    row = int(np.clip(round((top + bottom - side) / 2), 0, shape_rc[0] - side))
    column = int(np.clip(round((left + right - side) / 2), 0, shape_rc[1] - side))
    here = _grey(picture[row : row + side, column : column + side])
    if here.std() < _CONTRAST:
        return None
    # Where this window lies on the slide, by the stored coords of the patch that is in it.
    scale_xy = geometry.width_l0 / shape_rc[1], geometry.height_l0 / shape_rc[0]
    x_l0 = corner[0] + (column - left - _REACH) * scale_xy[0]
    y_l0 = corner[1] + (row - top - _REACH) * scale_xy[1]
    wide = (side + 2 * _REACH) * _SHARP
    mpp = geometry.mpp_l0 * float(np.mean(scale_xy)) / _SHARP
    sharp = _grey(slide.read(float(x_l0), float(y_l0), wide, mpp))
    at, alike = {}, 0.0
    for down in range(_SHARP):
        for across in range(_SHARP):
            part = sharp[down : wide - _SHARP + down, across : wide - _SHARP + across]
            small = cv2.resize(part, None, fx=1 / _SHARP, fy=1 / _SHARP, interpolation=cv2.INTER_AREA)
            scores = cv2.matchTemplate(small, here, cv2.TM_CCOEFF_NORMED)
            for (y, x), score in np.ndenumerate(scores):
                at[y + down / _SHARP - _REACH, x + across / _SHARP - _REACH] = float(score)
    best = max(at, key=lambda each: at[each])
    alike = max(at[best], at[0.0, 0.0])
    return (float(np.hypot(*best)) if at[best] > at[0.0, 0.0] + _CLEARLY else 0.0), alike


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
