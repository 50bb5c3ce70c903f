"""Pictures of values on patches: the overlay with its legend, and sheets of patches.

Comes in: pixels of the slide and values per patch. Goes out: rasters and encoded pictures. It knows no model
or run.
"""

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsi_mil.colours import COLOURS, FAINTEST, SIGNED_COLOURS
from wsi_mil.geometry import PatchGeometry, boxes_rc

_TABLES = {
    signed: np.rint(colours(np.arange(256))[:, :3] * 255).astype(np.uint8)
    for signed, colours in ((False, COLOURS), (True, SIGNED_COLOURS))
}
"""Made once: matplotlib's colours are filled in at their first use, which two threads may not share."""

_DPI = 100
_STRIP_PX = 64  # the lowest rows of the picture, with the scale bar
_BARS_UM = (50, 100, 200, 500, 1000, 2000, 5000, 10_000)


@dataclass(frozen=True)
class Legend:
    """What the colours mean: ``words`` beside the bar, the values at its ``ends``, and whether it is signed.

    ``note`` is a warning below the title, such as that the picture is smoothed.
    """

    words: str
    ends: tuple[float, float] = (0.0, 1.0)
    signed: bool = False
    note: str = ""


def spread(
    values: NDArray[np.float32],
    coords: NDArray[np.int64],
    geometry: PatchGeometry,
    shape_rc: tuple[int, int],
) -> NDArray[np.float32]:
    """Return a raster (height, width) of the whole slide with each patch's value over its square.

    Where patches overlap their values are averaged; NaN where there is none.
    """
    return next(strips(values, coords, geometry, shape_rc, max(1, shape_rc[0])))


def strips(
    values: NDArray[np.float32],
    coords: NDArray[np.int64],
    geometry: PatchGeometry,
    shape_rc: tuple[int, int],
    height: int,
) -> Iterator[NDArray[np.float32]]:
    """Yield the raster of ``spread`` in strips of ``height`` rows, the last one as it comes."""
    edges = np.rint(boxes_rc(coords, geometry, shape_rc)).astype(np.int64)
    top, left, bottom, right = np.clip(edges, 0, [*shape_rc, *shape_rc]).T
    raw, seen = values.astype(np.float64), (bottom > top) & (right > left)
    for first in range(0, shape_rc[0], height):
        last = min(first + height, shape_rc[0])
        here = np.flatnonzero(seen & (top < last) & (bottom > first))
        boxes = np.maximum(top[here], first) - first, np.minimum(bottom[here], last) - first
        yield _summed(raw[here], *boxes, left[here], right[here], (last - first, shape_rc[1]))


def _summed(
    raw: NDArray[np.float64],
    top: NDArray[np.int64],
    bottom: NDArray[np.int64],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    shape_rc: tuple[int, int],
) -> NDArray[np.float32]:
    """Return a raster with the mean of the values (n,) whose boxes of whole pixels hold a pixel; else NaN.

    The time does not depend on the size of a box: four corners of each, then two cumulative sums.
    """
    height, width = shape_rc
    sums = np.zeros((2, height + 1, width + 1))
    for y, x, sign in ((top, left, 1), (bottom, right, 1), (top, right, -1), (bottom, left, -1)):
        np.add.at(sums[0], (y, x), sign * raw)
        np.add.at(sums[1], (y, x), sign)
    for axis in (1, 2):
        np.cumsum(sums, axis=axis, out=sums)
    total, count = sums[:, :height, :width]
    covered = count > 0.5
    raster = np.full((height, width), np.nan, dtype=np.float32)
    raster[covered] = total[covered] / count[covered]
    return raster


def smoothed(raster: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """Return the raster blurred by a Gaussian, where it has values and of its values only."""
    covered = ~np.isnan(raster)
    total = cv2.GaussianBlur(np.where(covered, raster, 0).astype(np.float32), (0, 0), sigma_px)
    weight = cv2.GaussianBlur(covered.astype(np.float32), (0, 0), sigma_px)
    blurred = np.full(raster.shape, np.nan, np.float32)
    blurred[covered] = total[covered] / weight[covered]
    return blurred


def colours_of(values: NDArray[np.float32], *, signed: bool = False) -> NDArray[np.uint8]:
    """Return the colours (..., 3) of values on 0..1."""
    picked: NDArray[np.uint8] = _TABLES[signed][np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)]
    return picked


def blend(
    picture: NDArray[np.uint8], raster: NDArray[np.float32], opacity: float, *, signed: bool = False
) -> NDArray[np.uint8]:
    """Return the picture with colours where the raster (values 0..1) has a value; elsewhere untouched.

    The opacity rises with the value, to ``opacity`` where it is 1 (signed: with the distance from 0.5): what
    matters stands out, and the stain stays as it is elsewhere.
    """
    covered = ~np.isnan(raster)
    values = np.clip(raster[covered], 0, 1)
    weight = np.abs(values - 0.5) * 2 if signed else values
    strength = (opacity * (FAINTEST + (1 - FAINTEST) * weight))[:, None]
    mixed = picture.copy()
    colours = colours_of(values, signed=signed)
    mixed[covered] = np.rint((1 - strength) * picture[covered] + strength * colours).astype(np.uint8)
    return mixed


def overlay(
    picture: NDArray[np.uint8],
    um_per_pixel: float,
    title: str,
    legend: Legend,
    opacity: float,
    kind: str = "jpg",
) -> bytes:
    """Return the blended picture, encoded, with a title, a colour bar and a scale bar.

    The colour bar shows the colours as they were blended with ``opacity``, over white.
    """
    height, width = picture.shape[:2]
    margin, bar_room = 24, 150
    total_width = max(width, 420) + 2 * margin + bar_room
    letters = int((total_width - 2 * margin) / 12)  # of the font below, were they all capitals
    text = f"{title}\n{legend.note}" if legend.note else title
    lines = [part for line in text.split("\n") for part in textwrap.wrap(line, letters)]
    top = 20 + 26 * len(lines)
    total_height = max(height, 300) + top + margin
    # A hair more: of some sizes the product with the resolution, rounded down, is a pixel less.
    size = (total_width + 1e-3) / _DPI, (total_height + 1e-3) / _DPI
    figure = Figure(figsize=size, dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)

    def place(left: float, bottom: float, across: float, up: float) -> tuple[float, float, float, float]:
        return left / total_width, bottom / total_height, across / total_width, up / total_height

    # One picture pixel is one canvas pixel. What no scale bar covers is copied, which is far quicker.
    strip = min(height, _STRIP_PX)
    axes = figure.add_axes(place(margin, total_height - top - height, width, strip))
    axes.imshow(picture[height - strip :], interpolation="nearest", aspect="auto")
    axes.axis("off")
    _draw_scale_bar(axes, width, strip, um_per_pixel)
    figure.text(
        margin / total_width, 1 - 14 / total_height, "\n".join(lines), ha="left", va="top", fontsize=13,
        linespacing=1.4, parse_math=False,
    )  # fmt: skip
    bar_height = min(max(height, 300), 420)
    bar = figure.add_axes(
        place(margin + max(width, 420) + 20, margin + (max(height, 300) - bar_height) / 2, 16, bar_height)
    )
    shown = blend(
        np.full((1, 256, 3), 255, np.uint8), np.linspace(0, 1, 256, dtype=np.float32)[None], opacity,
        signed=legend.signed,
    )  # fmt: skip
    colours = ScalarMappable(Normalize(*legend.ends), ListedColormap(shown[0] / 255))
    words = "\n".join(textwrap.wrap(legend.words, max(20, bar_height // 9)))
    figure.colorbar(colours, cax=bar).set_label(words, fontsize=11, parse_math=False)
    with warnings.catch_warnings():
        # A slide's name may be in a script that the font lacks: boxes in the title, the folder has the name.
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.array(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    pixels[top : top + height - strip, margin : margin + width] = picture[: height - strip]
    return encoded(pixels, kind)


def top_patches_jpeg(
    patches: Sequence[NDArray[np.uint8]], captions: Sequence[str], side: int = 224, columns: int = 6
) -> bytes:
    """Return a JPEG with the patches side by side, in their order, each with its caption below."""
    return encoded(sheet(patches, captions, side, columns), "jpg")


def sheet(
    patches: Sequence[NDArray[np.uint8]], captions: Sequence[str], side: int, columns: int = 6
) -> NDArray[np.uint8]:
    """Return the patches side by side, in their order, each with its caption (lines) below.

    Patches of another size than ``side`` are resampled; of that size they are there pixel for pixel.
    """
    font = ImageFont.load_default(size=13)
    gap, caption = 8, 6 + 16 * max((text.count("\n") + 1 for text in captions), default=1)
    columns = min(columns, len(patches))
    rows = -(-len(patches) // columns)
    page = Image.new("RGB", (gap + columns * (side + gap), gap + rows * (side + caption + gap)), "white")
    draw = ImageDraw.Draw(page)
    for index, (patch, text) in enumerate(zip(patches, captions, strict=True)):
        x = gap + index % columns * (side + gap)
        y = gap + index // columns * (side + caption + gap)
        square = Image.fromarray(patch)
        if square.size != (side, side):
            square = square.resize((side, side), Image.Resampling.BICUBIC)
        page.paste(square, (x, y))
        draw.multiline_text((x, y + side + 3), text, fill="black", font=font, spacing=3)
    return np.asarray(page)


def encoded(pixels: NDArray[np.uint8], kind: str) -> bytes:
    """Return pixels as a JPEG or PNG file."""
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    if kind == "png":
        picture.save(buffer, "PNG", compress_level=4)
    else:
        picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _draw_scale_bar(axes: object, width: int, height: int, um_per_pixel: float) -> None:
    wanted = width * um_per_pixel / 5
    length = max((each for each in _BARS_UM if each <= wanted), default=_BARS_UM[0])
    pixels = length / um_per_pixel
    label = f"{length} µm" if length < 1000 else f"{length} µm ({length / 1000:g} mm)"
    x, y = 14, height - 18
    axes.add_patch(Rectangle((x - 6, y - 24), pixels + 12, 36, color="white", alpha=0.8, lw=0))  # type: ignore[attr-defined]
    axes.add_patch(Rectangle((x, y), pixels, 5, color="black", lw=0))  # type: ignore[attr-defined]
    axes.text(x + pixels / 2, y - 4, label, ha="center", va="bottom", fontsize=10)  # type: ignore[attr-defined]
