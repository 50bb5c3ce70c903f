"""Where things lie on a drawn slide: tissue, planted regions, glands, nests, lymphocyte aggregates, vessels.

Comes in: a random generator and the size of the slide. Goes out: a ``Layout`` of outlines in microns. It
knows nothing of pixels, stains or nuclei. Normal and tumor slides are laid out by the same rules and hold the
same benign structures: only the planted regions tell them apart.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

MAP_UM = 4.0  # microns per cell of the map on which room is found for structures


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One slide's anatomy. Outlines are (n, 2) arrays of (x, y) in microns, not closed."""

    side_um: float
    depth_um: np.ndarray
    """(rows, columns) map in steps of ``MAP_UM``: distance to the tissue's edge, negative on glass."""
    planted: list[np.ndarray]
    glands: list[np.ndarray]
    nests: list[np.ndarray]
    aggregates: list[np.ndarray]
    vessels: list[np.ndarray]


def lay_out(rng: np.random.Generator, *, side_um: float, tissue_fraction: float, tumor: bool) -> Layout:
    """Lay out one square slide of which ``tissue_fraction`` is tissue, with planted regions if ``tumor``."""
    depth_um = tissue_depth(rng, side_um, tissue_fraction)
    room = _Room(rng, depth_um)
    tissue_um2 = float((depth_um > 0).sum()) * MAP_UM**2
    radii_um = _planted_radii(rng, tissue_um2)
    if not tumor:
        radii_um = [radius for radius in radii_um if rng.random() < 0.5]
    large = room.fill(radii_um, roughness=0.22, gap_um=12)
    if tumor and not large:  # tissue too narrow for the regions drawn gets one, as large as fits
        large = room.fill([room.widest_um()], roughness=0.1, gap_um=0)
    # Most of what is tumor in a tumor slide is benign in a normal one: how much of a slide is dense with
    # nuclei, or dark, says little about its label.
    benign = rng.random(len(large)) < 0.7
    nests = [shape for shape, nest in zip(large, benign, strict=True) if nest and not tumor]
    aggregates = [shape for shape, nest in zip(large, benign, strict=True) if not nest and not tumor]
    scale = min(1.0, side_um / 1000)  # small slides, as in tests, hold small structures
    return Layout(
        side_um=side_um,
        depth_um=depth_um,
        planted=large if tumor else [],
        aggregates=aggregates
        + room.fill(scale * rng.uniform(55, 125, rng.integers(1, 4)), roughness=0.25, gap_um=5),
        nests=nests + room.fill(scale * rng.uniform(55, 120, rng.integers(1, 4)), roughness=0.3, gap_um=8),
        vessels=room.fill(scale * rng.uniform(16, 38, rng.integers(4, 9)), roughness=0.2, gap_um=6),
        glands=room.fill(_gland_radii(rng, tissue_um2 * rng.uniform(0.15, 0.32)), roughness=0.22, gap_um=7),
    )


def outline(
    rng: np.random.Generator, centre_um: np.ndarray, radius_um: float, roughness: float, points: int = 96
) -> np.ndarray:
    """Return an irregular star-shaped outline, (points, 2) in microns, with a disc's area."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    waves = np.arange(2, 9)
    amplitude = roughness * rng.normal(size=(7, 1)) / waves[:, None]
    swell = (amplitude * np.cos(waves[:, None] * angle + rng.uniform(0, 2 * np.pi, (7, 1)))).sum(axis=0)
    reach = np.clip(1 + swell, 0.55, 1.5)
    reach *= radius_um / np.sqrt(np.mean(reach**2))
    stretch, turn = np.exp(0.2 * abs(rng.normal())), rng.uniform(0, np.pi)
    shape = reach[:, None] * np.stack([stretch * np.cos(angle), np.sin(angle) / stretch], axis=1)
    cos, sin = np.cos(turn), np.sin(turn)
    return centre_um + shape @ np.array([[cos, sin], [-sin, cos]])


def smooth_noise(rng: np.random.Generator, side: int, scale: float) -> np.ndarray:
    """Return (side, side) float32 noise of mean 0 and deviation 1, its bumps about ``scale`` cells wide."""
    step = max(1.0, scale / 4)
    small = max(8, math.ceil(side / step))
    noise = rng.standard_normal((small, small), dtype=np.float32)
    # Blurred before it is enlarged: enlarging raw noise shows the grid.
    noise = cv2.GaussianBlur(noise, (0, 0), max(0.3, scale / step / 2.5))
    noise = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return (noise - noise.mean()) / max(float(noise.std()), 1e-6)


def tissue_depth(rng: np.random.Generator, side_um: float, fraction: float) -> np.ndarray:
    """Return (rows, columns) in steps of ``MAP_UM``: microns to the edge of tissue, below 0 on glass."""
    cells = round(side_um / MAP_UM)
    y, x = np.mgrid[0:cells, 0:cells].astype(np.float32) / cells - 0.5
    turn = rng.uniform(0, np.pi)
    # One piece, or two that touch or nearly so: their centres are apart along a random direction.
    apart = 0.2 if rng.random() < 0.35 else rng.uniform(0, 0.1)
    height = np.full((cells, cells), -np.inf, np.float32)
    for sign in (-1, 1):
        cx, cy = sign * apart * np.cos(turn), sign * apart * np.sin(turn)
        height = np.maximum(height, -np.hypot(x - cx, y - cy))
    height += 0.06 * smooth_noise(rng, cells, 0.3 * cells) + 0.02 * smooth_noise(rng, cells, 0.09 * cells)
    margin = 0.5 - np.maximum(abs(x), abs(y))
    # Tissue keeps off the slide's edge, and is turned away well before it: cut there, it would end in a line.
    height -= 0.2 * (np.clip(0.15 - margin, 0, None) / 0.15) ** 2 + 4 * np.clip(0.025 - margin, 0, None)
    tissue = (height > np.quantile(height, 1 - fraction)) & (margin > 0.02)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(tissue.astype(np.uint8))
    for piece in range(1, count):
        if stats[piece, cv2.CC_STAT_AREA] < 0.05 * tissue.sum():
            tissue[labels == piece] = False
    solid = tissue.astype(np.uint8)
    for _ in range(rng.integers(1, 3)):  # a tear or a large lumen: glass inside the tissue
        centre = np.argwhere(solid)[rng.integers(solid.sum())][::-1] * MAP_UM
        hole = outline(rng, centre, side_um * rng.uniform(0.02, 0.035), 0.4)
        cv2.fillPoly(solid, [_to_map(hole)], 0)
    inside = cv2.distanceTransform(solid, cv2.DIST_L2, 5)
    outside = cv2.distanceTransform(1 - solid, cv2.DIST_L2, 5)
    return cv2.GaussianBlur((inside - outside) * MAP_UM, (0, 0), 1.5)


def _planted_radii(rng: np.random.Generator, tissue_um2: float) -> list[float]:
    """Draw 1 to 3 regions that cover 12 to 19 % of the tissue, over 200 um across where there is room."""
    area = tissue_um2 * rng.uniform(0.12, 0.19)
    most = max(1, int(area / (math.pi * 108**2)))
    count = int(rng.integers(1, min(3, most) + 1))
    shares = 1 + 0.15 * rng.uniform(-1, 1, count)
    return sorted(np.sqrt(area * shares / shares.sum() / math.pi).tolist(), reverse=True)


def _gland_radii(rng: np.random.Generator, area_um2: float) -> Iterator[float]:
    usual = rng.uniform(34, 46)
    while area_um2 > 0:
        radius = usual * math.exp(rng.normal(0, 0.22))
        area_um2 -= math.pi * radius**2
        yield radius


def _to_map(outline_um: np.ndarray) -> np.ndarray:
    return np.round(outline_um / MAP_UM).astype(np.int32)


class _Room:
    """What tissue is still free, so that structures do not overlap."""

    def __init__(self, rng: np.random.Generator, depth_um: np.ndarray) -> None:
        self.rng = rng
        self.free = (depth_um > 8).astype(np.uint8)
        self.free[[0, -1]] = self.free[:, [0, -1]] = 0

    def _clearance_um(self) -> np.ndarray:
        return cv2.distanceTransform(self.free, cv2.DIST_L2, 5) * MAP_UM

    def widest_um(self) -> float:
        return 0.8 * float(self._clearance_um().max())

    def fill(self, radii_um: object, *, roughness: float, gap_um: float) -> list[np.ndarray]:
        """Place an outline for each radius where it fits, and skip those for which there is no room."""
        placed = []
        for radius_um in radii_um:  # type: ignore[attr-defined]
            for _ in range(4):  # an outline that bulges over the edge is drawn anew, elsewhere
                spots = np.argwhere(self._clearance_um() > 0.9 * radius_um)
                if not len(spots):
                    break
                centre_um = (spots[self.rng.integers(len(spots))][::-1] + 0.5) * MAP_UM
                shape = outline(self.rng, centre_um, radius_um, roughness)
                cells = np.zeros_like(self.free)
                cv2.fillPoly(cells, [_to_map(shape)], 1)
                if not (cells & ~self.free & 1).any():
                    reach = 2 * math.ceil(gap_um / MAP_UM) + 1
                    self.free &= 1 - cv2.dilate(cells, np.ones((reach, reach), np.uint8))
                    placed.append(shape)
                    break
        return placed
