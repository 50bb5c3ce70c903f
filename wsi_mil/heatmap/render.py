"""Pictures and outlines of values on patches: the overlay with its legend, the top patches, GeoJSON.

Comes in: pixels of the slide and values per patch. Goes out: JPEG bytes and text. It knows no model or run.
"""

import io
import json
import textwrap
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsi_mil.geometry import PatchGeometry, boxes_rc

COLOURS = colormaps["viridis"]
"""Perceptually uniform and readable by the colour-blind; its green and yellow are unlike any H&E stain."""

_FAINTEST = 1 / 3
"""Opacity of the lowest value, as a part of that of the highest: the dark violet at the low end of the
colours is close to haematoxylin, and laid on in full it would look like stain."""

LEGENDS = {
    "minmax": "attention, min-max within the slide",
    "percentile": "attention, percentile within the slide",
}

_DPI = 100
_BARS_UM = (50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def spread(
    values: NDArray[np.float32],
    coords: NDArray[np.int64],
    geometry: PatchGeometry,
    shape_rc: tuple[int, int],
) -> NDArray[np.float32]:
    """Return a raster (height, width) of the whole slide with each patch's value over its square.

    Where patches overlap their values are averaged; NaN where there is none. The time does not depend on the
    size of a patch: four corners per patch, then two cumulative sums.
    """
    height, width = shape_rc
    edges = np.rint(boxes_rc(coords, geometry, shape_rc)).astype(np.int64)
    top, left, bottom, right = np.clip(edges, 0, [height, width, height, width]).T
    sums = np.zeros((2, height + 1, width + 1))
    for y, x, sign in ((top, left, 1), (bottom, right, 1), (top, right, -1), (bottom, left, -1)):
        np.add.at(sums[0], (y, x), sign * values.astype(np.float64))
        np.add.at(sums[1], (y, x), sign)
    total, count = sums.cumsum(axis=1).cumsum(axis=2)[:, :height, :width]
    covered = count > 0.5
    raster = np.full(shape_rc, np.nan, dtype=np.float32)
    raster[covered] = total[covered] / count[covered]
    return raster


def blend(picture: NDArray[np.uint8], raster: NDArray[np.float32], opacity: float) -> NDArray[np.uint8]:
    """Return the picture with colours where the raster (values 0..1) has a value; elsewhere untouched.

    The opacity rises with the value, to ``opacity`` where it is 1: what matters stands out, and the stain
    stays as it is elsewhere.
    """
    covered = ~np.isnan(raster)
    values = np.clip(raster[covered], 0, 1)
    strength = (opacity * (_FAINTEST + (1 - _FAINTEST) * values))[:, None]
    colours = COLOURS(values)[:, :3] * 255
    mixed = picture.copy()
    mixed[covered] = np.rint((1 - strength) * picture[covered] + strength * colours).astype(np.uint8)
    return mixed


def overlay_jpeg(
    picture: NDArray[np.uint8], um_per_pixel: float, title: str, legend: str, opacity: float
) -> bytes:
    """Return the blended picture as a JPEG with a title, a colour bar named ``legend`` and a scale bar.

    The colour bar shows the colours as they were blended with ``opacity``, over white.
    """
    height, width = picture.shape[:2]
    margin, bar_room = 24, 130
    total_width = max(width, 420) + 2 * margin + bar_room
    letters = int((total_width - 2 * margin) / 12)  # of the font below, were they all capitals
    lines = [part for line in title.split("\n") for part in textwrap.wrap(line, letters)]
    top = 20 + 26 * len(lines)
    total_height = height + top + margin
    figure = Figure(figsize=(total_width / _DPI, total_height / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)

    def place(left: float, bottom: float, across: float, up: float) -> tuple[float, float, float, float]:
        return left / total_width, bottom / total_height, across / total_width, up / total_height

    axes = figure.add_axes(place(margin, margin, width, height))  # one picture pixel is one canvas pixel
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    axes.axis("off")
    _draw_scale_bar(axes, width, height, um_per_pixel)
    figure.text(
        margin / total_width, 1 - 14 / total_height, "\n".join(lines), ha="left", va="top", fontsize=13,
        linespacing=1.4, parse_math=False,
    )  # fmt: skip
    bar_height = min(height, 420)
    bar = figure.add_axes(
        place(margin + max(width, 420) + 20, margin + (height - bar_height) / 2, 16, bar_height)
    )
    shown = blend(
        np.full((1, 256, 3), 255, np.uint8), np.linspace(0, 1, 256, dtype=np.float32)[None], opacity
    )
    colours = ScalarMappable(Normalize(0, 1), ListedColormap(shown[0] / 255))
    figure.colorbar(colours, cax=bar).set_label(legend, fontsize=12)
    with warnings.catch_warnings():
        # A slide's name may be in a script that the font lacks: boxes in the title, the folder has the name.
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return _jpeg(pixels[..., :3])


def top_patches_jpeg(
    patches: Sequence[NDArray[np.uint8]], captions: Sequence[str], side: int = 224, columns: int = 6
) -> bytes:
    """Return a JPEG with the patches side by side, in their order, each with its caption below."""
    font = ImageFont.load_default(size=13)
    gap, caption = 8, 22
    columns = min(columns, len(patches))
    rows = -(-len(patches) // columns)
    sheet = Image.new("RGB", (gap + columns * (side + gap), gap + rows * (side + caption + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (patch, text) in enumerate(zip(patches, captions, strict=True)):
        x = gap + index % columns * (side + gap)
        y = gap + index // columns * (side + caption + gap)
        sheet.paste(Image.fromarray(patch).resize((side, side), Image.Resampling.BICUBIC), (x, y))
        draw.text((x, y + side + 3), text, fill="black", font=font)
    return _jpeg(np.asarray(sheet))


def to_geojson(
    coords: NDArray[np.int64],
    geometry: PatchGeometry,
    columns: dict[str, NDArray[np.float32]],
) -> str:
    """Return the patches as GeoJSON tiles that QuPath opens, with ``columns`` as their measurements.

    Rectangles are in level-0 (x, y), as QuPath wants them.
    """
    features = []
    size = geometry.patch_size_l0
    for index, (x, y) in enumerate(coords.tolist()):
        right, bottom = round(x + size, 2), round(y + size, 2)
        ring = [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {
                    "objectType": "tile",
                    "measurements": {name: float(values[index]) for name, values in columns.items()},
                },
            }
        )
    return json.dumps({"type": "FeatureCollection", "features": features})


def _draw_scale_bar(axes: object, width: int, height: int, um_per_pixel: float) -> None:
    wanted = width * um_per_pixel / 5
    length = max((each for each in _BARS_UM if each <= wanted), default=_BARS_UM[0])
    pixels = length / um_per_pixel
    label = f"{length} µm" if length < 1000 else f"{length / 1000:g} mm"
    x, y = 14, height - 18
    axes.add_patch(Rectangle((x - 6, y - 24), pixels + 12, 36, color="white", alpha=0.8, lw=0))  # type: ignore[attr-defined]
    axes.add_patch(Rectangle((x, y), pixels, 5, color="black", lw=0))  # type: ignore[attr-defined]
    axes.text(x + pixels / 2, y - 4, label, ha="center", va="bottom", fontsize=10)  # type: ignore[attr-defined]


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
