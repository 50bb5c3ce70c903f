"""The heatmap as a layer over the slide's picture: one pixel per cell of the grid, a palette, transparency.

Comes in: a heatmap's values. Goes out: small PNGs as data URIs, and where they lie on the slide. The page
lays them over the picture; nothing is blended here.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_mil.colours import FAINTEST, SIGNED, colours_for
from wsi_mil.store import Heatmap

_SHADES = 63  # more are not told apart, and take more bytes


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One quantity of one output: a picture whose pixels are cells; ``low`` and ``high`` of its colours.

    ``box`` is (left, top, width, height) as parts of the slide's width and height.
    """

    uri: str
    model: str
    quantity: str
    output: str
    low: float
    high: float
    box: tuple[float, float, float, float]


def layers(heatmap: Heatmap, model: str, budget: int) -> tuple[list[Layer], list[str]]:
    """Return the layers of a heatmap that fit into ``budget`` bytes, and the names of those that do not.

    The one that the overlay shows comes first and is always there, of coarser cells where it must be; then
    the other quantities of that output, then the other outputs.
    """
    found: list[Layer] = []
    left_out = []
    for quantity, output in _in_order(heatmap):
        values = heatmap.values[quantity][heatmap.row(output)]
        if not len(values):
            continue
        low, high = _ends(values, quantity)
        grid = heatmap.grid(quantity, output)
        data = _png(grid, low, high, quantity)
        step = 1
        while not found and len(data) > budget and min(grid.shape) > 8:
            step *= 2
            grid = _halved(grid)
            data = _png(grid, low, high, quantity)
        if found and len(data) > budget:
            left_out.append(f"{quantity} of {output}")
            continue
        budget -= len(data)
        uri = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
        box = _box(heatmap, (grid.shape[0] * step, grid.shape[1] * step))
        found.append(
            Layer(uri=uri, model=model, quantity=quantity, output=output, low=low, high=high, box=box)
        )
    return found, left_out


def gradient(quantity: str) -> str:
    """Return a quantity's colours as a CSS gradient, for its legend."""
    steps = colours_for(quantity)(np.linspace(0, 1, 17))[:, :3]
    colours = [f"rgb({r:.0f} {g:.0f} {b:.0f})" for r, g, b in (steps * 255).tolist()]
    return f"linear-gradient(to right, {', '.join(colours)})"


def _in_order(heatmap: Heatmap) -> Iterator[tuple[str, str]]:
    shown = heatmap.shown["quantity"], heatmap.shown["output"]
    yield shown
    rest = [(quantity, output) for output in heatmap.outputs for quantity in heatmap.values]
    yield from sorted((each for each in rest if each != shown), key=lambda each: each[1] != shown[1])


def _ends(values: NDArray[np.float32], quantity: str) -> tuple[float, float]:
    """Return the values that the first and the last colour stand for: of evidence equally far from zero."""
    low, high = float(values.min()), float(values.max())
    if quantity in SIGNED:
        high = max(abs(low), abs(high))
        low = -high
    return low, high


def _png(grid: NDArray[np.float32], low: float, high: float, quantity: str) -> bytes:
    """Return cells as a PNG with a palette; its colour 0 is transparent, where there is no patch."""
    shade = (grid - low) / (high - low) if high > low else np.where(np.isnan(grid), np.nan, 0.5)
    covered = ~np.isnan(shade)
    codes = np.zeros(grid.shape, np.uint8)
    codes[covered] = 1 + np.rint(np.clip(shade[covered], 0, 1) * (_SHADES - 1))
    steps = np.linspace(0, 1, _SHADES)
    strength = abs(2 * steps - 1) if quantity in SIGNED else steps
    alpha = np.rint(255 * (FAINTEST + (1 - FAINTEST) * strength)).astype(np.uint8)
    colours = np.rint(colours_for(quantity)(steps)[:, :3] * 255).astype(np.uint8)
    image = Image.fromarray(codes, "P")
    image.putpalette(bytes(3) + colours.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes([0]) + alpha.tobytes(), compress_level=9)
    return buffer.getvalue()


def _halved(grid: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the means of two by two cells, of those that have a value."""
    rows, columns = (-(-side // 2) * 2 for side in grid.shape)
    padded = np.full((rows, columns), np.nan, np.float32)
    padded[: grid.shape[0], : grid.shape[1]] = grid
    four = padded.reshape(rows // 2, 2, columns // 2, 2)
    there = ~np.isnan(four)
    count = there.sum(axis=(1, 3))
    sums = np.where(there, four, 0).sum(axis=(1, 3))
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan).astype(np.float32)


def _box(heatmap: Heatmap, shape_rc: Sequence[int]) -> tuple[float, float, float, float]:
    """Return where the cells lie; where patches overlap, a cell is the middle of its patch."""
    geometry = heatmap.geometry
    aside = (geometry.patch_size_l0 - geometry.stride_l0) / 2 if heatmap.has_grid else 0.0
    width, height = geometry.width_l0, geometry.height_l0
    return (
        aside / width,
        aside / height,
        shape_rc[1] * geometry.stride_l0 / width,
        shape_rc[0] * geometry.stride_l0 / height,
    )
