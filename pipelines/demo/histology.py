"""Draw a hematoxylin and eosin slide: stroma, glands, nests, lymphocytes, vessels and planted tumor.

Comes in: a random generator, a size, a resolution and a stain. Goes out: an RGB image and the outlines of the
planted regions. It knows nothing of files, labels or cohorts.

Tissue is drawn as amounts of the two stains, which light passes by Beer-Lambert's law: colour comes last,
from stain vectors near those of Ruifrok & Johnston (2001). The ground (all but nuclei) is drawn at
``GROUND_UM`` a cell whatever the slide's resolution, nuclei and noise at the slide's own.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.demo import nuclei as kinds
from pipelines.demo.layout import Layout, lay_out, outline, smooth_noise
from pipelines.demo.nuclei import Nuclei, cells_of, jittered_grid, stamp

GROUND_UM = 0.5
OPTICS_UM = 0.28  # blur of the microscope, as a Gaussian's deviation


@dataclass(frozen=True, kw_only=True)
class Stain:
    """How one laboratory stains and one scanner sees: optical density per unit of stain, in RGB."""

    hematoxylin: tuple[float, float, float] = (0.61, 0.73, 0.35)
    eosin: tuple[float, float, float] = (0.09, 0.90, 0.42)
    white: tuple[float, float, float] = (243, 242, 244)


def draw_stain(rng: np.random.Generator) -> Stain:
    """Draw a laboratory's shade: both stains vary in strength and in hue, the scanner in its white."""
    h = np.array(Stain.hematoxylin) * rng.uniform(0.8, 1.15) * rng.uniform(0.9, 1.1, 3)
    e = np.array(Stain.eosin) * rng.uniform(0.75, 1.2) * rng.uniform((0.6, 0.93, 0.85), (1.6, 1.07, 1.2))
    white = rng.uniform(238, 247) + rng.uniform(-2, 2, 3)
    return Stain(hematoxylin=tuple(h.tolist()), eosin=tuple(e.tolist()), white=tuple(white.tolist()))


def draw_slide(
    rng: np.random.Generator, *, side_um: float, mpp: float, tissue_fraction: float, stain: Stain, tumor: bool
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw one slide; return its (height, width, 3) uint8 image and the planted outlines.

    The image has round(side_um / mpp) pixels a side. Outlines are (n, 2) arrays of (x, y) in microns from the
    upper left corner, none if not ``tumor``.
    """
    layout = lay_out(rng, side_um=side_um, tissue_fraction=tissue_fraction, tumor=tumor)
    hematoxylin, eosin = draw_amounts(rng, layout, mpp)
    return develop(rng, hematoxylin, eosin, stain, mpp), layout.planted


def draw_amounts(rng: np.random.Generator, layout: Layout, mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """Return how much of each stain there is, (height, width) float32 at ``mpp``: hematoxylin and eosin."""
    hematoxylin, eosin, nuclei = _Ground(rng, layout).draw()
    side = round(layout.side_um / mpp)
    if side != hematoxylin.shape[0]:
        enlarged = [cv2.resize(a, (side, side), interpolation=cv2.INTER_CUBIC) for a in (hematoxylin, eosin)]
        hematoxylin, eosin = enlarged
    for group in nuclei:
        stamp(rng, hematoxylin, eosin, group, mpp)
    return hematoxylin, eosin


def develop(
    rng: np.random.Generator, hematoxylin: np.ndarray, eosin: np.ndarray, stain: Stain, mpp: float
) -> np.ndarray:
    """Let light through the stains; return (height, width, 3) uint8 RGB as a camera records it."""
    for amount in (hematoxylin, eosin):
        np.clip(amount, 0, None, out=amount)
        cv2.GaussianBlur(amount, (0, 0), OPTICS_UM / mpp, dst=amount)
    image = np.empty((*hematoxylin.shape, 3), np.uint8)
    grain = rng.standard_normal(hematoxylin.shape, dtype=np.float32)
    for channel in range(3):
        light = hematoxylin * -stain.hematoxylin[channel]
        light -= eosin * stain.eosin[channel]
        cv2.exp(light, dst=light)
        light *= stain.white[channel]
        # mostly the same grain in all channels (shot noise of the lamp), shifted a little for colour
        light += 0.9 * grain + 0.5 * np.roll(grain, 7 * (channel + 1), axis=1)
        image[..., channel] = np.clip(light + 0.5, 0, 255)
    return image


class _Ground:
    """All of a slide but its nuclei, on a square map in steps of ``GROUND_UM``; and where the nuclei go."""

    def __init__(self, rng: np.random.Generator, layout: Layout) -> None:
        self.rng, self.layout = rng, layout
        self.side = round(layout.side_um / GROUND_UM)
        self.nuclei: list[Nuclei] = []
        self.membranes: list[np.ndarray] = []  # positions of the cells that touch one another
        # stroma is what no structure has taken
        self.stroma = np.ones((self.side, self.side), bool)
        depth_um = cv2.resize(layout.depth_um, (self.side, self.side), interpolation=cv2.INTER_CUBIC)
        self.flow, fibres, clefts = self._fibres()
        # the edge of the tissue is frayed along its fibres, over about 8 microns
        fray = 1.3 * fibres + 2.5 * self._noise(45) + 1.2 * self._noise(9)
        self.tissue = np.clip((depth_um + fray) / 4 + 0.5, 0, 1)
        self.inside = depth_um > 5
        thickness = 1 + 0.06 * self._noise(150) + 0.05 * self._noise(30)
        self.eosin = (0.5 + 0.1 * fibres + 0.02 * self._noise(3)) * (1 - 0.75 * clefts) * thickness
        self.hematoxylin = (0.07 + 0.015 * self._noise(60) + 0.015 * fibres) * (1 - 0.75 * clefts)

    def draw(self) -> tuple[np.ndarray, np.ndarray, list[Nuclei]]:
        """Return hematoxylin and eosin, float32, and the nuclei in the order in which to stamp them."""
        for shape in self.layout.aggregates:
            self._aggregate(shape)
        for shape in self.layout.nests:
            self._sheet(shape, kinds.NEST, spacing_um=9.6, jitter=0.27)
        for shape in self.layout.planted:
            self._sheet(shape, kinds.TUMOR, spacing_um=16.5, jitter=0.3)
            self._mitoses(shape)
        for shape in self.layout.glands:
            self._gland(shape)
        for shape in self.layout.vessels:
            self._vessel(shape)
        self._membranes()
        self._stromal_cells()
        self.eosin *= self.tissue
        self.hematoxylin *= self.tissue
        return self.hematoxylin.astype(np.float32), self.eosin.astype(np.float32), self.nuclei

    def _noise(self, scale_um: float) -> np.ndarray:
        return smooth_noise(self.rng, self.side, scale_um / GROUND_UM)

    def _fibres(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return maps of the collagen: direction in radians, texture (deviation 1), clefts in it (0-1)."""
        y, x = np.mgrid[0 : self.side, 0 : self.side].astype(np.float32) * GROUND_UM
        turn = self.rng.uniform(0, math.pi)
        cos, sin = math.cos(turn), math.sin(turn)
        across = y * cos - x * sin + 42 * self._noise(220) + 9 * self._noise(60)
        along = x * cos + y * sin + 30 * self._noise(260)
        flow = np.arctan2(-np.gradient(across, axis=1), np.gradient(across, axis=0))
        across += 1.3 * np.sin(along / 5.5 + 2 * self._noise(40))  # the crimp of collagen
        bundles, threads, hairs, gaps = (
            cv2.remap(
                smooth_noise(self.rng, 512, scale), along / (stretch * 2), across * 2,
                cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT,
            )
            for scale, stretch in ((14, 9), (5, 10), (2.6, 12), (15, 5))
        )  # fmt: skip
        clefts = np.clip(2.2 * (gaps + 0.5 * self._noise(90) - 1.35), 0, 1)
        return flow, 0.6 * bundles + 0.6 * threads + 0.55 * hairs, clefts

    def _cover(self, shape: np.ndarray, soft_um: float = 0.6) -> tuple[tuple[slice, slice], np.ndarray]:
        """Return the window of the map around a shape, and how far the shape covers each cell there (0-1)."""
        low = np.maximum(np.floor(shape.min(axis=0) / GROUND_UM - 8 * soft_um), 0).astype(int)
        high = np.minimum(np.ceil(shape.max(axis=0) / GROUND_UM + 8 * soft_um), self.side).astype(int)
        window = slice(low[1], high[1]), slice(low[0], high[0])
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        cv2.fillPoly(mask, [np.round((shape / GROUND_UM - low) * 16).astype(np.int32)], 255, shift=4)
        return window, cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), soft_um / GROUND_UM)

    def _fill(
        self, shape: np.ndarray, hematoxylin: float, eosin: float, soft_um: float = 0.6,
        where: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Replace what is in a shape (and ``where``, a map of 0-1) by cytoplasm, wall or lumen."""
        window, cover = self._cover(shape, soft_um)
        if where is not None:
            cover *= where[window]
        grain = 1 + 0.1 * smooth_noise(self.rng, max(cover.shape), 5)[: cover.shape[0], : cover.shape[1]]
        for layer, amount in ((self.hematoxylin, hematoxylin), (self.eosin, eosin)):
            layer[window] += cover * (amount * grain - layer[window])
        self.stroma[window] &= cover < 0.5

    def _within(self, points_um: np.ndarray, shape: np.ndarray, fuzzy_um: float = 0.0) -> np.ndarray:
        """Return which points lie in a shape whose edge is ``fuzzy_um`` wide."""
        window, cover = self._cover(shape, max(fuzzy_um, 0.6))
        column, row = (points_um / GROUND_UM).astype(int).T
        row, column = row - window[0].start, column - window[1].start
        height, width = cover.shape
        near = (row >= 0) & (column >= 0) & (row < height) & (column < width)
        chance = np.zeros(len(points_um))
        chance[near] = cover[row[near], column[near]]
        return chance > (self.rng.random(len(points_um)) if fuzzy_um else 0.5)

    def _look_up(self, layer: np.ndarray, points_um: np.ndarray) -> np.ndarray:
        column, row = np.clip(points_um / GROUND_UM, 0, self.side - 1).astype(int).T
        return layer[row, column]

    def _add(self, kind: kinds.Kind, points_um: np.ndarray, angle: np.ndarray | None = None) -> None:
        if angle is None:
            angle = self.rng.uniform(0, np.pi, len(points_um))
        self.nuclei.append(Nuclei(kind=kind, xy_um=points_um, angle=angle))

    def _grid(self, spacing_um: float, jitter: float) -> np.ndarray:
        points = jittered_grid(self.rng, self.layout.side_um, spacing_um, jitter)
        return points[((points > 0) & (points < self.layout.side_um)).all(axis=1)]

    def _aggregate(self, shape: np.ndarray) -> None:
        self._fill(shape, self.rng.uniform(0.15, 0.3), 0.25, soft_um=9)
        points = self._grid(self.rng.uniform(6.6, 7.6), 0.3)
        self._add(kinds.LYMPHOCYTE, points[self._within(points, shape, fuzzy_um=9)])

    def _sheet(self, shape: np.ndarray, kind: kinds.Kind, *, spacing_um: float, jitter: float) -> None:
        """Fill a shape with touching cells; benign and tumor cells have the same cytoplasm and strands."""
        strands = np.clip(
            9 * (abs(self._noise(self.rng.uniform(70, 110))) - 0.12), 0, 1
        )  # of stroma, left standing
        self._fill(shape, self.rng.uniform(0.17, 0.3), self.rng.uniform(0.3, 0.46), soft_um=2, where=strands)
        points = self._grid(spacing_um, jitter)
        points = points[self._within(points, shape, fuzzy_um=2) & (self._look_up(strands, points) > 0.6)]
        self.membranes.append(points)
        self._add(kind, points)

    def _mitoses(self, shape: np.ndarray) -> None:
        points = self._grid(60, 0.5)
        self._add(kinds.MITOSIS, points[self._within(points, shape)])

    def _gland(self, shape: np.ndarray) -> None:
        """Draw a tube cut across: columnar cells with nuclei at their base around a lumen."""
        rng, centre = self.rng, shape.mean(axis=0)
        radius = float(np.hypot(*(shape - centre).T).mean())
        self._fill(centre + (shape - centre) * (1 + 1.6 / radius), 0.1, 0.62)  # basement membrane
        self._fill(shape, rng.uniform(0.16, 0.26), rng.uniform(0.3, 0.45))
        spoke = shape - centre
        lumen = centre + spoke * np.clip(1 - rng.uniform(17, 22) / radius, 0.12, 0.6)
        lumen += rng.normal(0, 0.5, lumen.shape)
        step = np.hypot(*(np.roll(shape, -1, axis=0) - shape).T)
        base, goblets = [], []
        for depth_um, spacing_um in ((5.8, 5.6), (9.5, 13.0)):  # the second row makes it pseudostratified
            count = int(step.sum() * (1 - depth_um / radius) / spacing_um)
            where = (np.arange(count) + rng.uniform(-0.25, 0.25, count)) * len(shape) / count
            spokes = spoke[where.astype(int) % len(shape)]
            turn = np.arctan2(spokes[:, 1], spokes[:, 0]) + rng.normal(0, 0.15, count)
            reach = np.hypot(*spokes.T) - depth_um - rng.normal(0, 0.8, count)
            points = centre + reach[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
            self._add(kinds.GLANDULAR, points, turn + rng.normal(0, 0.15, count))
            base.append(points)
            goblets.append(centre + 0.72 * (points - centre))
        self.membranes.append(base[0])
        if rng.random() < 0.5:
            for point in goblets[0][:: rng.integers(2, 5)]:
                self._fill(outline(rng, point, rng.uniform(2.8, 4.5), 0.1, 24), 0.1, 0.06)
        if radius > 24:
            secretion = (0.07, 0.05) if rng.random() < 0.35 else (0.005, 0.01)
            self._fill(lumen, *secretion, soft_um=0.8)

    def _vessel(self, shape: np.ndarray) -> None:
        """Draw a small vessel: a pink wall, flat nuclei in it, red cells in the lumen."""
        rng, centre = self.rng, shape.mean(axis=0)
        spoke = shape - centre
        self._fill(shape, 0.1, 0.62, soft_um=1.0)
        wall = rng.uniform(0.6, 0.75)
        lumen = centre + wall * spoke
        self._fill(lumen, 0.01, 0.03)
        some = spoke[:: rng.integers(7, 12)]
        self._add(
            kinds.FIBROBLAST, centre + (wall + 0.06) * some, np.arctan2(some[:, 1], some[:, 0]) + np.pi / 2
        )
        cells = self._grid(6.8, 0.35)
        cells = cells[self._within(cells, centre + 0.88 * (lumen - centre))]
        for point in cells[rng.random(len(cells)) < rng.choice([0.2, 0.9])]:
            self._fill(outline(rng, point, 3.0, 0.12, 16), 0.0, rng.uniform(0.75, 1.05), soft_um=0.4)

    def _membranes(self) -> None:
        """Give each epithelial cell its own shade, and draw where it meets the next."""
        points = [p for p in self.membranes if len(p)]
        if not points:
            return
        labels, border = cells_of(self.side, GROUND_UM, np.concatenate(points))
        shade = 1 + 0.1 * self.rng.standard_normal(labels.max() + 1).astype(np.float32)
        epithelium = cv2.GaussianBlur((~self.stroma).astype(np.float32), (0, 0), 2)
        full = self.eosin + self.hematoxylin > 0.2  # not in lumens
        change = 1 + epithelium * full * (shade[labels] - 1 + 0.28 * border)
        self.eosin *= change
        self.hematoxylin *= change

    def _stromal_cells(self) -> None:
        rng = self.rng
        free = self.stroma & self.inside
        points = self._grid(13.5, 0.48)
        crowd = 0.42 + 0.2 * self._look_up(self._noise(120), points)
        points = points[(rng.random(len(points)) < crowd) & self._look_up(free, points)]
        flow = self._look_up(self.flow, points)
        spindle = rng.random(len(points)) < 0.72
        self._add(kinds.FIBROBLAST, points[spindle], flow[spindle] + rng.normal(0, 0.22, spindle.sum()))
        self._add(kinds.LYMPHOCYTE, points[~spindle])
