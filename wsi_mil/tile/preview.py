"""The picture of a slide with its tissue, its patches, and those that were left out, by reason."""

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_mil import geometry
from wsi_mil.tile.grid import Tiling

OUTLINE_RGB, PATCH_RGB = (0, 110, 60), (20, 60, 200)
REASON_RGB = {
    "tissue": (240, 150, 0),
    "pen": (220, 0, 140),
    "focus": (0, 170, 200),
    "sample": (150, 150, 150),
}
"""Colours that stay apart on pink, brown, blue and black; each reason also has its stroke (``_mark``)."""


def draw_preview(tiling: Tiling) -> NDArray[np.uint8]:
    """Return the picture of the whole slide with the tissue outlined and the patches framed.

    Patches that were left out although they have tissue or pen are smaller frames in the colour of the
    reason, crossed out but for those that ``--max-patches`` passed over.
    """
    height, width = tiling.picture.shape[:2]
    plan = tiling.patches.geometry
    shade = tiling.picture.copy()
    boxes = np.rint(geometry.boxes_rc(tiling.rejected.coords, plan, (height, width))).astype(int)
    for reason, colour in REASON_RGB.items():
        _mark(shade, boxes[tiling.rejected.reason == reason], colour, crossed=reason != "sample")
    kept = np.rint(geometry.boxes_rc(tiling.patches.coords, plan, (height, width))).astype(np.int32)
    if len(kept):
        top, left, bottom, right = kept.T - np.array([[0], [0], [1], [1]], np.int32)
        frames = np.stack([left, top, right, top, right, bottom, left, bottom], axis=1).reshape(-1, 4, 2)
        stroke = _stroke(round(float(np.mean(right - left))) + 1)
        cv2.polylines(shade, list(frames), isClosed=True, color=PATCH_RGB, thickness=stroke)
    canvas = np.asarray(cv2.addWeighted(shade, 0.6, tiling.picture, 0.4, 0), dtype=np.uint8)
    contours, _ = cv2.findContours(tiling.tissue.mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    scale = np.array([width, height]) / tiling.tissue.mask.shape[::-1]
    for contour in contours:
        points = np.rint((contour + 0.5) * scale - 0.5).astype(np.int32)
        cv2.polylines(canvas, [points], isClosed=True, color=OUTLINE_RGB, thickness=2)
    return canvas


def _mark(
    canvas: NDArray[np.uint8], boxes: NDArray[np.int64], colour: tuple[int, int, int], crossed: bool
) -> None:
    """Frame boxes inside of where the frames of kept neighbours run, and cross them out."""
    for top, left, bottom, right in boxes.tolist():
        stroke = _stroke(right - left)
        first, last = (left + stroke, top + stroke), (right - 1 - stroke, bottom - 1 - stroke)
        cv2.rectangle(canvas, first, last, colour, stroke)
        if crossed:
            cv2.line(canvas, first, last, colour, stroke)


def _stroke(side: int) -> int:
    """Return the width of lines that are seen and hide nothing, for frames of ``side`` pixels."""
    return 1 if side < 24 else 2
