"""Levels, microns per pixel, grids: every coordinate convention of the project, as pure functions.

Frames: ``_l0`` level-0 pixels, ``_px`` pixels at the target mpp, ``_um`` microns, ``_rc`` (row, column) of
a raster. Points are (x, y), arrays are [row, column], and only this module converts between them.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_mil.errors import SlideError

FINER_TOLERANCE = 0.02
"""A target mpp may be this much finer than level 0 (a '0.25' scanner gives 0.2527); beyond, it is refused."""

LEVEL_TOLERANCE = 0.005
"""A level counts as fine enough when it is at most this much coarser than the target (downsamples of real
pyramids are 4.0005, not 4)."""


@dataclass(frozen=True)
class PatchGeometry:
    """Where the patches of one slide lie: their size at the target mpp and in level-0 pixels.

    ``patch_size_l0`` and ``stride_l0`` are exact (not rounded) level-0 pixels; coords are rounded once, from
    multiples of ``stride_l0``. Coords that another tool made may lie on no grid (``on_grid``); ``stride_l0``
    is then the step that the tool says.
    """

    mpp: float
    patch_px: int
    patch_size_l0: float
    stride_l0: float
    width_l0: int
    height_l0: int
    mpp_l0: float

    @classmethod
    def plan(
        cls,
        *,
        width_l0: int,
        height_l0: int,
        mpp_l0: float,
        mpp: float,
        patch_px: int,
        overlap_px: int = 0,
        allow_upsampling: bool = False,
    ) -> "PatchGeometry":
        """Return the geometry of patches of ``patch_px`` pixels at ``mpp`` on a slide.

        Raises:
            SlideError: ``mpp`` is finer than the slide's own by more than ``FINER_TOLERANCE``, without
                ``allow_upsampling``.
        """
        if is_enlarged(mpp, mpp_l0) and not allow_upsampling:
            raise SlideError(
                f"--mpp {mpp:g} is finer than the slide's own {mpp_l0:g} um per pixel; "
                f"enlarging adds no detail. Use --mpp {mpp_l0:g} or coarser, or --allow-upsampling."
            )
        scale = mpp / mpp_l0
        return cls(
            mpp=mpp,
            patch_px=patch_px,
            patch_size_l0=patch_px * scale,
            stride_l0=(patch_px - overlap_px) * scale,
            width_l0=width_l0,
            height_l0=height_l0,
            mpp_l0=mpp_l0,
        )

    @property
    def grid_shape_rc(self) -> tuple[int, int]:
        """(rows, columns) of the slide's global grid: the patches that lie wholly on the slide."""

        def count(side_l0: int) -> int:
            # Half a level-0 pixel of slack: a slide of exactly n patches has n, whatever the rounding.
            room = side_l0 + 0.5 - self.patch_size_l0
            return int(room // self.stride_l0) + 1 if room >= 0 else 0

        return count(self.height_l0), count(self.width_l0)


def is_enlarged(mpp: float, mpp_l0: float) -> bool:
    """Tell whether patches at ``mpp`` show more pixels than a slide of ``mpp_l0`` has."""
    return mpp < mpp_l0 * (1 - FINER_TOLERANCE)


def grid_l0(geometry: PatchGeometry) -> NDArray[np.int64]:
    """Return (N, 2) level-0 (x, y) of the top-left corner of every patch of the grid, in row-major order.

    There is one grid per slide. It starts at level-0 (0, 0) and its step is ``stride_l0``; a patch that would
    reach beyond the right or lower edge is not part of it.
    """
    rows, columns = geometry.grid_shape_rc
    y = np.rint(np.arange(rows) * geometry.stride_l0).astype(np.int64)
    x = np.rint(np.arange(columns) * geometry.stride_l0).astype(np.int64)
    return np.stack([np.tile(x, rows), np.repeat(y, columns)], axis=1)


def concentric_l0(
    coords: NDArray[np.int64], geometry: PatchGeometry, patch_size_l0: float
) -> NDArray[np.int64]:
    """Return the corners of patches of side ``patch_size_l0`` around the centres of patches of the grid.

    Centres are those of the exact, unrounded cells. Corners may be negative: a patch may reach over the edge.
    """
    corners = cells_rc(coords, geometry)[:, ::-1] * geometry.stride_l0
    moved: NDArray[np.int64] = np.rint(corners + (geometry.patch_size_l0 - patch_size_l0) / 2).astype(
        np.int64
    )
    return moved


def cells_rc(coords: NDArray[np.int64], geometry: PatchGeometry) -> NDArray[np.int64]:
    """Return the (N, 2) (row, column) on the global grid of patches at level-0 (x, y) ``coords``."""
    cells: NDArray[np.int64] = np.rint(coords[:, ::-1] / geometry.stride_l0).astype(np.int64)
    return cells


def on_grid(coords: NDArray[np.int64], stride_l0: float) -> bool:
    """Tell whether ``coords`` are corners of the global grid of step ``stride_l0``, each another one.

    Those of our own tiling are. Those of other tools may not be: some lay a grid into every piece of tissue.
    """
    cells = np.rint(coords / stride_l0)
    exact = (coords >= 0).all() and (np.rint(cells * stride_l0) == coords).all()
    if not exact:
        return False
    across, down = cells.T  # one number for each cell: whole pairs are sorted far more slowly
    return len(np.unique(down * (across.max(initial=0) + 1) + across)) == len(cells)


def step_of(coords: NDArray[np.int64]) -> float | None:
    """Return the step of the global grid that ``coords`` lie on, where they show it; else None.

    It is the whole number that divides all coordinates, and some neighbours in a row and in a column must lie
    that far apart.
    """
    if len(coords) < 2 or (coords < 0).any():
        return None
    step = int(np.gcd.reduce(coords.ravel()))
    if step > 0 and nearest_l0(coords, 0) == step == nearest_l0(coords, 1) and on_grid(coords, step):
        return float(step)
    return None


def nearest_l0(coords: NDArray[np.int64], axis: int) -> int | None:
    """Return the smallest distance along ``axis`` (0 is x) of patches in the same row or column, or None."""
    order = np.lexsort((coords[:, axis], coords[:, 1 - axis]))
    steps = np.diff(coords[order], axis=0)
    distances = steps[(steps[:, 1 - axis] == 0) & (steps[:, axis] > 0), axis]
    return int(distances.min()) if len(distances) else None


def cell_means(
    values: NDArray[np.float32], coords: NDArray[np.int64], geometry: PatchGeometry
) -> NDArray[np.float32]:
    """Return values on a lattice of cells of side ``stride_l0`` that covers the slide; NaN where is none.

    For patches that are not on one grid: a cell has the mean of the patches that reach into it, weighted by
    the area that they share with it. Shape (rows, columns).
    """
    step, size = geometry.stride_l0, geometry.patch_size_l0
    shape = max(1, math.ceil(geometry.height_l0 / step)), max(1, math.ceil(geometry.width_l0 / step))
    sums = np.zeros((2, *shape))
    first = np.floor(coords / step).astype(np.int64)
    reach = math.ceil(size / step) + 1
    for down in range(reach):
        for right in range(reach):
            cell_xy = first + np.array([right, down])
            low = np.maximum(cell_xy * step, coords)
            high = np.minimum((cell_xy + 1) * step, coords + size)
            area = np.prod(np.clip(high - low, 0, None), axis=1)
            rows, columns = cell_xy[:, 1], cell_xy[:, 0]
            inside = (area > 0) & (rows >= 0) & (columns >= 0) & (rows < shape[0]) & (columns < shape[1])
            where = rows[inside], columns[inside]
            np.add.at(sums[0], where, (area * values)[inside])
            np.add.at(sums[1], where, area[inside])
    means = np.full(shape, np.nan, dtype=np.float32)
    covered = sums[1] > 0
    means[covered] = sums[0][covered] / sums[1][covered]
    return means


def boxes_rc(
    coords: NDArray[np.int64], geometry: PatchGeometry, shape_rc: tuple[int, int]
) -> NDArray[np.float64]:
    """Return each patch's (top, left, bottom, right) in the pixels of a raster that shows the whole slide.

    ``shape_rc`` is the raster's (height, width); its outer edges are the slide's, so the scale may differ by
    a fraction between the axes. Values are exact, not rounded.
    """
    scale_rc = np.array(shape_rc) / (geometry.height_l0, geometry.width_l0)
    top_left: NDArray[np.float64] = coords[:, ::-1] * scale_rc
    bottom_right = top_left + geometry.patch_size_l0 * scale_rc
    boxes: NDArray[np.float64] = np.concatenate([top_left, bottom_right], axis=1)
    return boxes


def box_means(raster: NDArray[np.uint8], boxes: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the exact area-weighted mean of ``raster`` in each (top, left, bottom, right) box.

    Boxes have fractional edges; parts outside the raster count as 0. One integral image serves all boxes:
    between its grid points it is bilinear, because the raster is constant within a pixel.
    """
    depth = cv2.CV_32S if 255 * raster.size < 2**31 else cv2.CV_64F  # sums of whole numbers: exact in both
    integral = np.asarray(cv2.integral(raster, sdepth=depth))

    def at(y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        y, x = np.clip(y, 0, raster.shape[0]), np.clip(x, 0, raster.shape[1])
        y0 = np.minimum(y.astype(np.int64), raster.shape[0] - 1)
        x0 = np.minimum(x.astype(np.int64), raster.shape[1] - 1)
        fy, fx = y - y0, x - x0
        upper = integral[y0, x0] * (1 - fx) + integral[y0, x0 + 1] * fx
        lower = integral[y0 + 1, x0] * (1 - fx) + integral[y0 + 1, x0 + 1] * fx
        value: NDArray[np.float64] = upper * (1 - fy) + lower * fy
        return value

    top, left, bottom, right = boxes.T
    sums = at(bottom, right) - at(top, right) - at(bottom, left) + at(top, left)
    # Differences of large sums leave errors around 1e-12; a box without tissue must have exactly none.
    means: NDArray[np.float64] = np.round(sums / ((bottom - top) * (right - left)), 6)
    return np.clip(means, 0, 255).astype(np.float32)


def is_whole(start: float | NDArray[np.float64], ratio: float, size_px: int) -> bool | NDArray[np.bool_]:
    """Tell whether ``size_px`` output pixels of ``ratio`` level pixels each are averages of whole ones.

    None of them, from ``start`` on, lies a quarter of a level pixel or more off. One axis; ``start`` may be
    an array.
    """
    whole = round(ratio) >= 1 and abs(ratio - round(ratio)) * size_px < 0.25
    return whole & (np.abs(start - np.rint(start)) < 0.25)


def pick_level(downsamples: tuple[float, ...], downsample: float) -> int:
    """Return the index of the coarsest level that is still fine enough for ``downsample``.

    ``downsamples`` rise from 1.0; a target finer than level 0 gets level 0.
    """
    fine = [i for i, each in enumerate(downsamples) if each <= downsample * (1 + LEVEL_TOLERANCE)]
    return fine[-1] if fine else 0
