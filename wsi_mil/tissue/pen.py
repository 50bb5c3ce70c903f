"""Ink of marker pens on bright slides: black, blue, green and red.

No stain of tissue absorbs as ink does: blue ink takes most of the red light and lets blue through, green ink
takes least of the green, red ink takes green and blue alike, black ink takes all. Strokes are wide: what is
thinner than ``WIDTH_UM`` (rims of bubbles, edges of the coverslip, folds) is no stroke.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_mil.tissue.mask import Mask, blur, disc, drop_pieces, extremes, picked

WIDTH_UM = 80.0
_MARGIN_UM = 8.0
_MIN_AREA_UM2 = 40_000.0
_BLACK = 95  # ink that takes all: no channel above this, and no colour
_PADDING = 14
_PALER = 0.6
_MIXED = 56  # hundredths of optical density, mean of the channels: one ink over another
_FRAMED = 0.5  # of the outline of such a place is along strokes
_HALO_UM = 48.0
_BORDER_SHARE = 0.4  # of a side of the slide: what lies along it for longer is an edge and not a stroke


def find_ink(thumbnail: NDArray[np.uint8], mpp: float) -> Mask:
    """Return where there is ink, with a margin for the stroke's soft edge."""
    smooth = blur(thumbnail, 4.0, mpp)
    if not _may_be_ink(smooth, mpp):
        return np.zeros(thumbnail.shape[:2], np.uint8)
    ink = _coloured(smooth, mpp) | _black(smooth, mpp)
    if not ink.any():
        return ink
    ink |= _mixed(smooth, ink, mpp)
    ink = np.asarray(cv2.morphologyEx(ink, cv2.MORPH_CLOSE, disc(WIDTH_UM / 2 / mpp)), dtype=np.uint8)
    ink = _strokes(ink, mpp)
    ink = drop_pieces(ink, _MIN_AREA_UM2 / mpp**2)
    return np.asarray(cv2.dilate(ink, disc(_MARGIN_UM / mpp)), dtype=np.uint8)


def without_halo(mask: Mask, ink: Mask, mpp: float) -> Mask:
    """Return a tissue mask without what is thin and lies along ink: the rim of a stroke looks so."""
    if not ink.any():
        return mask
    near = np.asarray(cv2.dilate(ink, disc(_HALO_UM / mpp))) > 0
    opened = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc(_HALO_UM / 3 / mpp)), dtype=np.uint8)
    return np.where(near, opened & ~ink, mask)


def _strokes(mask: Mask, mpp: float) -> Mask:
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc(WIDTH_UM / 2 / mpp)), dtype=np.uint8)


def _may_be_ink(picture: NDArray[np.uint8], mpp: float) -> bool:
    """Tell whether there is ink as dense as every stroke is somewhere, of which no disc is overlooked."""
    radius = round(WIDTH_UM / 3 / mpp)  # of the smallest disc that a stroke must hold, in pixels
    step = max(1, int(radius * np.sqrt(2)))
    few = np.ascontiguousarray(picture[::step, ::step])
    return bool(_is_dark(*extremes(few)).any()) or any(
        (hue & (strength > least)).any() for hue, strength, least in _inks(few)
    )


def _inks(picture: NDArray[np.uint8]) -> list[tuple[NDArray[np.bool_], NDArray[np.uint8], int]]:
    """Return of blue, green and red ink where its hue is, a density, and from which on it is a stroke."""
    channels = cv2.split(picture)
    red, green, blue = (_density(channel) for channel in channels)
    return [
        ((red > _density(channels[1], 0.98)) & (red > _density(channels[2], 2.5)), red, 42),
        ((green < _density(channels[0], 0.72)) & (green < _density(channels[2], 0.8)), red, 38),
        (
            (blue > _density(channels[1], 0.66))
            & (blue < _density(channels[1], 1.15))
            & (red < _density(channels[1], 0.3)),
            green,
            55,
        ),
    ]


def _coloured(picture: NDArray[np.uint8], mpp: float) -> Mask:
    """Return where blue, green or red ink is, by ratios of the channels' optical densities.

    Wide and dense strokes, and the paler ink of the same colour that touches them.
    """
    found = np.zeros(picture.shape[:2], np.uint8)
    for hue, strength, least in _inks(picture):
        dense = np.where(hue & (strength > least), np.uint8(255), np.uint8(0))
        if dense.any() and (dense := _strokes(dense, mpp)).any():
            _, labels = cv2.connectedComponents((hue & (strength > _PALER * least)).astype(np.uint8))
            held = np.zeros(labels.max() + 1, bool)
            held[np.unique(labels[dense > 0])] = True
            held[0] = False
            found |= picked(labels, held)
    return found


def _mixed(picture: NDArray[np.uint8], ink: Mask, mpp: float) -> Mask:
    """Return what is as dense as ink, as wide as a stroke and framed by ink: one ink over another.

    Its hue is nobody's (red over blue is a dark purple), so density must do, in the mean of the channels.
    Blood, melanin and strong stain are as dense, which is why only what has strokes along a good part of its
    outline counts, and nothing where no stroke was found.
    """
    red, green, blue = (_density(channel, 1 / 3) for channel in cv2.split(picture))
    density = red + green + blue  # at most 3 times 80
    dense = np.where((density > _MIXED) & (ink == 0), np.uint8(255), np.uint8(0))
    mask = _strokes(dense, mpp)
    if not mask.any():
        return mask
    _, labels = cv2.connectedComponents(mask)
    outline = (mask > 0) & (np.asarray(cv2.erode(mask, disc(1))) == 0)
    near = np.asarray(cv2.dilate(ink, disc(2 * _MARGIN_UM / mpp))) > 0
    lengths, framed = (
        np.bincount(labels[where], minlength=labels.max() + 1) for where in (outline, outline & near)
    )
    held = framed > _FRAMED * lengths
    held[0] = False
    return picked(labels, held)


def _density(channel: Any, times: float = 1.0) -> NDArray[np.uint8]:
    """Return hundredths of optical density of a channel against glass, times a factor; at most 255."""
    density = -100 * times * np.log10(np.maximum(np.arange(256), 1) / 245)
    return np.asarray(cv2.LUT(channel, np.clip(np.rint(density), 0, 255).astype(np.uint8)), dtype=np.uint8)


def _black(picture: NDArray[np.uint8], mpp: float) -> Mask:
    """Return where black ink is; neither padding nor what lies along the slide's border."""
    highest, lowest = extremes(picture)
    dark = _is_dark(highest, lowest)
    padding = np.where(highest <= _PADDING, np.uint8(255), np.uint8(0))
    if not dark.any():
        return np.zeros(dark.shape, np.uint8)
    near_padding = np.asarray(cv2.dilate(padding, disc(3))) > 0  # its edge is not black any more
    mask = np.where(dark & ~near_padding, np.uint8(255), np.uint8(0))
    mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc(WIDTH_UM / 3 / mpp)), dtype=np.uint8)
    _, labels = cv2.connectedComponents(mask)
    along = np.zeros(labels.max() + 1, bool)
    for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        along |= np.bincount(side, minlength=len(along)) > _BORDER_SHARE * len(side)
    along[0] = True
    return picked(labels, ~along)


def _is_dark(highest: NDArray[np.uint8], lowest: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return (highest < _BLACK) & (highest - lowest < 26)
