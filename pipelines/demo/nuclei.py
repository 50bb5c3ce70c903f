"""Nuclei: how each kind looks, and how they are stamped into a slide's hematoxylin.

Comes in: positions in microns. Goes out: changed hematoxylin and eosin arrays. It knows nothing of tissue.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.demo.layout import smooth_noise

TEXTURE_PX = 512


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of nucleus: half axes in microns, hematoxylin in optical density, the rest as fractions."""

    long_um: float
    short_um: float
    size_spread: float
    """Deviation of log size from nucleus to nucleus."""
    ink: float
    ink_spread: float
    chromatin: float
    """Contrast of the texture inside."""
    rim: float
    """How much darker the membrane is."""
    irregular: float
    """How far the contour leaves the ellipse."""
    nucleolus: float = 0.0
    """Share of nuclei with a nucleolus that shows."""


LYMPHOCYTE = Kind(
    long_um=3.4, short_um=3.1, size_spread=0.09, ink=1.45, ink_spread=0.15, chromatin=0.22, rim=0.1,
    irregular=0.07,
)  # fmt: skip
FIBROBLAST = Kind(
    long_um=7.5, short_um=1.7, size_spread=0.22, ink=0.95, ink_spread=0.2, chromatin=0.15, rim=0.15,
    irregular=0.12,
)  # fmt: skip
GLANDULAR = Kind(
    long_um=5.4, short_um=3.0, size_spread=0.1, ink=0.95, ink_spread=0.12, chromatin=0.2, rim=0.3,
    irregular=0.06,
)  # fmt: skip
NEST = Kind(
    long_um=4.6, short_um=3.7, size_spread=0.08, ink=1.0, ink_spread=0.12, chromatin=0.2, rim=0.3,
    irregular=0.07, nucleolus=0.2,
)  # fmt: skip
TUMOR = Kind(
    long_um=8.0, short_um=5.8, size_spread=0.27, ink=1.3, ink_spread=0.25, chromatin=0.3, rim=0.45,
    irregular=0.12, nucleolus=0.6,
)  # fmt: skip
MITOSIS = Kind(
    long_um=5.0, short_um=2.0, size_spread=0.15, ink=1.9, ink_spread=0.1, chromatin=0.2, rim=0.0,
    irregular=0.3,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Nuclei:
    """n nuclei of one kind: centres (n, 2) as (x, y) in microns, (n,) angles of the long axis in radians."""

    kind: Kind
    xy_um: np.ndarray
    angle: np.ndarray


def jittered_grid(rng: np.random.Generator, side_um: float, spacing_um: float, jitter: float) -> np.ndarray:
    """Return (n, 2) points in microns: a hexagonal grid, each point moved by up to ``jitter`` spacings."""
    rows = int(side_um / (spacing_um * 0.866)) + 1
    columns = int(side_um / spacing_um) + 1
    row, column = np.mgrid[0:rows, 0:columns].reshape(2, -1)
    points = np.stack([(column + 0.5 * (row % 2)) * spacing_um, row * spacing_um * 0.866], axis=1)
    return points + rng.uniform(-jitter, jitter, points.shape) * spacing_um


def stamp(
    rng: np.random.Generator, hematoxylin: np.ndarray, eosin: np.ndarray, nuclei: Nuclei, mpp: float
) -> None:
    """Draw nuclei into the (height, width) float32 stain arrays, in place, but for those over the border."""
    kind, count = nuclei.kind, len(nuclei.xy_um)
    size = np.exp(rng.normal(0, kind.size_spread, count))
    stretch = np.exp(rng.normal(0, 0.5 * kind.size_spread, count))
    long_um, short_um = kind.long_um * size * stretch, kind.short_um * size / stretch
    ink = np.clip(rng.normal(kind.ink, kind.ink_spread * kind.ink, count), 0.3, 2.2)
    wobble = kind.irregular * smooth_noise(rng, TEXTURE_PX, 3.5 / mpp)
    chromatin = kind.chromatin * smooth_noise(rng, TEXTURE_PX, 1.3 / mpp)
    spots = rng.random(count) < kind.nucleolus
    half_px = np.ceil((1.35 * long_um + 0.5) / mpp).astype(int)
    corner_px = np.floor(nuclei.xy_um / mpp).astype(int) - half_px[:, None]
    offset = rng.integers(0, TEXTURE_PX - 2 * half_px.max(initial=0) - 1, (count, 4))
    height, width = hematoxylin.shape
    for i in range(count):
        x0, y0, side = *corner_px[i], 2 * half_px[i] + 1
        if x0 < 0 or y0 < 0 or x0 + side > width or y0 + side > height:
            continue
        dx = (np.arange(x0, x0 + side, dtype=np.float32) + 0.5) * mpp - nuclei.xy_um[i, 0]
        dy = ((np.arange(y0, y0 + side, dtype=np.float32) + 0.5) * mpp - nuclei.xy_um[i, 1])[:, None]
        cos, sin = np.cos(nuclei.angle[i]), np.sin(nuclei.angle[i])
        u, v = (dx * cos + dy * sin) / long_um[i], (dy * cos - dx * sin) / short_um[i]
        a, b, c, d = offset[i]
        radius = np.sqrt(u * u + v * v) + wobble[a : a + side, b : b + side]
        # the contour is as soft as the optics, about half a micron, whatever the size of the nucleus
        cover = np.clip((1 - radius) * (short_um[i] / 0.7) + 0.5, 0, 1).astype(np.float32)
        body = 0.85 + kind.rim * (radius * radius - 0.5) + chromatin[c : c + side, d : d + side]
        if spots[i]:
            body += 0.7 * np.exp(-((u - 0.3) ** 2 + (v + 0.2) ** 2) / 0.04)
        deposit = cover * np.maximum(ink[i] * body, 0.15).astype(np.float32)
        tile = hematoxylin[y0 : y0 + side, x0 : x0 + side]
        tile += deposit * (1 - 0.45 * np.minimum(tile, 1.6))  # nuclei that overlap darken, but not twofold
        eosin[y0 : y0 + side, x0 : x0 + side] *= 1 - 0.45 * cover


def cells_of(side: int, step_um: float, points_um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each cell of a (side, side) map the index of the nearest point, and how near a border it is.

    The border map is 1 on the line between two cells and 0 elsewhere, softened: it draws cell membranes.
    """
    seeds = np.ones((side, side), np.uint8)
    column, row = np.clip(points_um / step_um, 0, side - 1).astype(int).T
    seeds[row, column] = 0
    _, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    border = np.zeros((side, side), np.float32)
    border[:-1] = labels[1:] != labels[:-1]
    border[:, :-1] = np.maximum(border[:, :-1], labels[:, 1:] != labels[:, :-1])
    return labels, cv2.GaussianBlur(border, (0, 0), 0.9)
