"""Sixty drawn slides whose tissue, pen and blur are known: five of each of twelve kinds, seeds fixed.

Comes in: the number of a slide. Goes out: its pixels and masks of what is what. The tissue's texture is the
demo's (``pipelines.demo.histology``), drawn once and mirrored; outlines are drawn anew for every slide.

    python -m benchmarks.drawn_slides FOLDER [--kinds he pen]     # writes slides, and truth as PNG
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from pipelines.demo.histology import develop, draw_amounts, draw_stain
from pipelines.demo.layout import lay_out, outline, smooth_noise, tissue_depth
from pipelines.pyramid import write_pyramid

MPP = 1.0
"""Microns per pixel of a slide; ``draw`` takes others, for tests that look at thumbnails only."""
COPIES = 5
_STOCK_UM = 800.0
_DAB = np.array([0.27, 0.57, 0.78])
_BLUISH = np.array([0.65, 0.70, 0.29])
PENS = {"black": (28, 28, 34), "blue": (35, 60, 165), "green": (20, 120, 62), "red": (196, 30, 44)}


@dataclass
class Drawn:
    """One slide: ``image`` (height, width, 3) uint8, and boolean masks of its pixels.

    ``tissue`` is all that is tissue and not below a pen; ``pen`` is ink; ``blurred`` is out of focus.
    """

    name: str
    kind: str
    image: np.ndarray
    tissue: np.ndarray
    pen: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool))
    blurred: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool))

    def __post_init__(self) -> None:
        self.pen = self.pen if self.pen.size else np.zeros(self.tissue.shape, bool)
        self.blurred = self.blurred if self.blurred.size else np.zeros(self.tissue.shape, bool)

    def write(self, path: Path) -> Path:
        """Write the slide as a pyramid of ``MPP`` microns per pixel."""
        write_pyramid(path, self.image, MPP, factor=2)
        return path


@cache
def _stock(mpp: float) -> tuple[np.ndarray, ...]:
    """Hematoxylin and eosin of a square that is all tissue, float32 at ``mpp``."""
    if mpp != MPP:
        side = round(_STOCK_UM / mpp)
        return tuple(cv2.resize(a, (side, side), interpolation=cv2.INTER_AREA) for a in _stock(MPP))
    rng = np.random.default_rng(60)
    layout = lay_out(rng, side_um=_STOCK_UM, tissue_fraction=0.8, tumor=False)
    full = replace(layout, depth_um=np.full_like(layout.depth_um, 60))
    return draw_amounts(rng, full, MPP)


class Canvas:
    """One slide while it is drawn: amounts of stain, and where there is tissue."""

    def __init__(self, seed: tuple[int, int], mpp: float, fraction: float | None = None) -> None:
        """Lay out tissue that covers ``fraction`` of the slide; 0 is blank, 1 is all tissue."""
        self.rng = rng = np.random.default_rng(seed)
        self.mpp = mpp
        self.side_um = float(rng.integers(320, 400)) * 8
        self.side = round(self.side_um / mpp)
        self.fraction = rng.uniform(0.25, 0.55) if fraction is None else fraction
        shape = (self.side, self.side)
        if self.fraction in (0, 1):
            depth = np.full(shape, 60.0 if self.fraction else -60.0, np.float32)
        else:
            small = tissue_depth(rng, self.side_um, self.fraction).astype(np.float32)
            depth = cv2.resize(small, shape, interpolation=cv2.INTER_CUBIC)
            depth += 2.5 * self.noise(45) + 1.2 * self.noise(9)
        self.depth = depth
        stock = _stock(mpp)
        tiles = -(-self.side // len(stock[0])) + 1
        start = (rng.uniform(0, 1, 2) * len(stock[0])).astype(int)
        self.hematoxylin, self.eosin = (
            np.pad(each, ((0, (tiles - 1) * len(each)),) * 2, mode="symmetric")[
                start[0] : start[0] + self.side, start[1] : start[1] + self.side
            ].copy()
            for each in stock
        )
        self.stain = draw_stain(rng)

    def noise(self, scale_um: float) -> np.ndarray:
        return smooth_noise(self.rng, self.side, scale_um / self.mpp)

    def disc(self, radius_um: float, roughness: float = 0.3, inside: bool = False) -> np.ndarray:
        """(height, width) uint8 mask of an irregular disc somewhere, or somewhere in the tissue."""
        spots = np.argwhere(self.depth[::8, ::8] > radius_um) * 8 if inside else np.empty((0, 2))
        centre = (
            spots[self.rng.integers(len(spots))][::-1] if len(spots) else self.rng.uniform(0, self.side, 2)
        )
        mask = np.zeros((self.side, self.side), np.uint8)
        shape = outline(self.rng, centre * self.mpp, radius_um, roughness) / self.mpp
        cv2.fillPoly(mask, [np.round(shape).astype(np.int32)], 1)
        return mask

    @property
    def tissue(self) -> np.ndarray:
        return self.depth > 0

    def develop(self, strength: float = 1.0, defocus: np.ndarray | None = None) -> np.ndarray:
        """The picture, in this slide's stain; ``defocus`` (0 to 1) says how far a pixel is out of focus."""
        cover = np.clip(self.depth / 4 + 0.5, 0, 1) * np.float32(strength)
        amounts = [self.hematoxylin * cover, self.eosin * cover]
        if defocus is not None:
            amounts = [each + defocus * (self.defocused(each) - each) for each in amounts]
        return develop(
            self.rng, amounts[0].astype(np.float32), amounts[1].astype(np.float32), self.stain, self.mpp
        )

    def defocused(self, amount: np.ndarray) -> np.ndarray:
        self.defocus_um = getattr(self, "defocus_um", self.rng.uniform(2.5, 6))
        return cv2.GaussianBlur(amount, (0, 0), self.defocus_um / self.mpp)


def _he(name: str, seed: tuple[int, int], mpp: float) -> Drawn:
    canvas = Canvas(seed, mpp)
    return Drawn(name, "he", canvas.develop(), canvas.tissue)


def _pale(name: str, seed: tuple[int, int], mpp: float) -> Drawn:
    canvas = Canvas(seed, mpp)
    return Drawn(name, "pale", canvas.develop(canvas.rng.uniform(0.25, 0.4)), canvas.tissue)


def _ihc(name: str, seed: tuple[int, int], mpp: float) -> Drawn:
    """Faint hematoxylin everywhere, DAB in some regions (none on the first slide)."""
    canvas = Canvas(seed, mpp)
    rng, cover = canvas.rng, np.clip(canvas.depth / 4 + 0.5, 0, 1)
    positive = np.clip(2 * (canvas.noise(350) - 0.7), 0, 1) * (seed[1] % COPIES > 0)
    blue = (0.32 * canvas.hematoxylin + 0.09 * canvas.eosin) * cover
    brown = positive * (0.9 * canvas.eosin + 0.2 * canvas.hematoxylin) * cover
    density = blue[..., None] * _BLUISH + brown[..., None] * _DAB
    density = cv2.GaussianBlur(density, (0, 0), 0.4 / mpp)
    white = np.array(canvas.stain.white)
    light = white * np.exp(-density) + 0.9 * rng.standard_normal((*cover.shape, 1))
    light += 0.5 * rng.standard_normal(density.shape)
    return Drawn(name, "ihc", np.clip(light + 0.5, 0, 255).astype(np.uint8), canvas.tissue)


def _fluorescence(name: str, seed: tuple[int, int], mpp: float) -> Drawn:
    """Nuclei in blue, green or orange light, and the faint glow of the rest, on black."""
    canvas = Canvas(seed, mpp)
    rng, cover = canvas.rng, np.clip(canvas.depth / 4 + 0.5, 0, 1)
    colour = np.array([(40, 70, 255), (60, 255, 90), (255, 120, 30), (200, 200, 200), (255, 40, 160)])[
        seed[1] % COPIES
    ]
    glow = cover * (rng.uniform(0.35, 0.6) * canvas.hematoxylin + rng.uniform(0.12, 0.2) * canvas.eosin)
    light = glow[..., None] * colour + rng.uniform(2, 9) + 1.8 * rng.standard_normal((*cover.shape, 3))
    return Drawn(name, "fluorescence", np.clip(light, 0, 255).astype(np.uint8), canvas.tissue)


def _pen(name: str, seed: tuple[int, int], mpp: float) -> Drawn:
    """Strokes of one colour (all four on the last slide): a dot, a ring around tissue, a line over it."""
    canvas = Canvas(seed, mpp)
    image, rng = canvas.develop().astype(np.float32), canvas.rng
    which = seed[1] % COPIES
    colours = list(PENS.values()) if which == len(PENS) else [list(PENS.values())[which]] * 3
    ink = np.zeros((canvas.side, canvas.side), bool)
    for index, colour in enumerate(colours):
        stroke = np.zeros(ink.shape, np.uint8)
        width = round(rng.uniform(160, 320) / mpp)
        if index % 3 == 0:
            points = outline(rng, rng.uniform(0.35, 0.65, 2) * canvas.side_um, canvas.side_um * 0.3, 0.3)
        else:
            line = np.cumsum(rng.normal(0, 90, (24, 2)) + rng.normal(0, 60, 2), axis=0)
            points = rng.uniform(0.2, 0.8, 2) * canvas.side_um + line
        cv2.polylines(stroke, [np.round(points / mpp).astype(np.int32)], index % 3 == 0, 1, width)
        cover = cv2.GaussianBlur(stroke.astype(np.float32), (0, 0), 3 / mpp)[..., None]
        opacity = cover * np.clip(rng.uniform(0.8, 0.95) + 0.04 * canvas.noise(60)[..., None], 0, 1)
        image = image * (1 - opacity) + opacity * np.array(colour, np.float32) * (image / 255) ** 0.15
        ink |= stroke > 0
    image = np.clip(image, 0, 255).astype(np.uint8)
    return Drawn(name, "pen", image, canvas.tissue & ~ink, pen=ink)


def _bubbles(name: str, seed: tuple[int, int], mpp: float) -> Drawn:
    """Air below the coverslip: dark rims, a bright and slightly grey inside, over glass and over tissue."""
    canvas = Canvas(seed, mpp)
    image, rng = canvas.develop().astype(np.float32), canvas.rng
    for _ in range(int(rng.integers(3, 7))):
        shape = canvas.disc(rng.uniform(80, 350), 0.05)
        inside = cv2.distanceTransform(shape, cv2.DIST_L2, 5)
        outside = cv2.distanceTransform(1 - shape, cv2.DIST_L2, 5)
        rim = np.exp(-(((inside - outside) * mpp / rng.uniform(8, 16)) ** 2))[..., None]
        image *= (1 - 0.75 * rim) * np.where(shape[..., None], 0.96, 1)
    return Drawn(name, "bubbles", np.clip(image, 0, 255).astype(np.uint8), canvas.tissue)


def _blur(name: str, seed: tuple[int, int], mpp: float) -> Drawn:
    """Regions out of focus, some half a slide wide; the first slide's stain is weak."""
    canvas = Canvas(seed, mpp)
    defocus = np.zeros((canvas.side, canvas.side), np.float32)
    for _ in range(int(canvas.rng.integers(1, 4))):
        defocus = np.maximum(defocus, canvas.disc(canvas.rng.uniform(400, 900), inside=True))
    defocus = cv2.GaussianBlur(defocus, (0, 0), 10 / mpp)
    image = canvas.develop(0.5 if seed[1] % COPIES == 0 else 1.0, defocus)
    return Drawn(name, "blur", image, canvas.tissue, blurred=defocus > 0.5)


def _padding(name: str, seed: tuple[int, int], mpp: float) -> Drawn:
    """What a scanner did not scan: black, or the white that stands for transparent, around or between."""
    canvas = Canvas(seed, mpp)
    image, tissue, side = canvas.develop(), canvas.tissue, canvas.side
    shade = (0, 255, 0, 255, 1)[seed[1] % COPIES]
    outside = np.ones((side, side), bool)
    if seed[1] % COPIES < 3:
        left, top, right, bottom = canvas.rng.uniform(0.02, 0.12, 4) * side
        outside[int(top) : side - int(bottom), int(left) : side - int(right)] = False
    else:  # two fields of view that overlap
        edge = int(canvas.rng.uniform(0.1, 0.25) * side)
        outside[edge:, : side - edge] = outside[: side - edge, edge:] = False
    image[outside] = shade
    return Drawn(name, "padding", image, tissue & ~outside)


def _holes(name: str, seed: tuple[int, int], mpp: float) -> Drawn:
    """Lumens and tears from 200 to 600 microns across."""
    canvas = Canvas(seed, mpp, fraction=0.6)
    for _ in range(int(canvas.rng.integers(4, 9))):
        hole = canvas.disc(canvas.rng.uniform(100, 300), inside=True)
        inside = cv2.distanceTransform(hole, cv2.DIST_L2, 5)
        outside = cv2.distanceTransform(1 - hole, cv2.DIST_L2, 5)
        canvas.depth = np.minimum(canvas.depth, (outside - inside) * mpp)
    return Drawn(name, "holes", canvas.develop(), canvas.tissue)


def _shadow(name: str, seed: tuple[int, int], mpp: float) -> Drawn:
    """The edge of the coverslip: a dark line, and beyond it a wide and faint shade of grey."""
    canvas = Canvas(seed, mpp)
    image, rng, side = canvas.develop().astype(np.float32), canvas.rng, canvas.side
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    turn = rng.uniform(-0.1, 0.1) + (seed[1] % 4) * np.pi / 2
    away = (x - 0.5) * np.cos(turn) + (y - 0.5) * np.sin(turn) - rng.uniform(0.3, 0.42)
    image *= (1 - 0.45 * np.exp(-((away * canvas.side_um / 18) ** 2)))[..., None]
    image *= (1 - rng.uniform(0.08, 0.3) * np.clip(away * 40 + 0.5, 0, 1))[..., None]
    image *= (1 - 0.12 * np.clip(1.6 * np.hypot(x - 0.5, y - 0.5) - 0.4, 0, 1))[..., None]  # uneven lamp
    return Drawn(name, "shadow", np.clip(image, 0, 255).astype(np.uint8), canvas.tissue)


def _edge(name: str, seed: tuple[int, int], mpp: float) -> Drawn:
    """The edge of the glass: beyond it the dark stage; cut glass, greenish; labels and dust are grey."""
    canvas = Canvas(seed, mpp)
    image, tissue, rng = canvas.develop().astype(np.float32), canvas.tissue, canvas.rng
    depth = int(rng.uniform(60, 260) / mpp)
    edge = np.zeros((canvas.side, canvas.side), bool)
    edge[:depth] = True
    dark = np.array([58, 64, 61], np.float32) + rng.uniform(-25, 25)
    rim = np.linspace(0.35, 1, depth, dtype=np.float32)[:, None, None]
    image[:depth] = (dark + 90 * rim) * np.array([0.97, 1.0, 0.985], np.float32) + rng.normal(
        0, 2, (depth, canvas.side, 1)
    )
    turns = seed[1] % 4
    if turns:
        image, edge = np.rot90(image, turns), np.rot90(edge, turns)
    # The picture was turned and the tissue was not: draw the tissue's own pixels back outside of the edge.
    own = canvas.develop()
    image = np.where(edge[..., None], image, own)
    return Drawn(name, "edge", np.clip(image, 0, 255).astype(np.uint8), tissue & ~edge)


def _full(name: str, seed: tuple[int, int], mpp: float) -> Drawn:
    """Three blank slides and two that are all tissue."""
    blank = seed[1] % COPIES < 3
    canvas = Canvas(seed, mpp, fraction=0.0 if blank else 1.0)
    return Drawn(name, "blank" if blank else "full", canvas.develop(), canvas.tissue)


_KINDS: dict[str, Callable[[str, tuple[int, int], float], Drawn]] = {
    "he": _he, "pale": _pale, "ihc": _ihc, "fluorescence": _fluorescence, "pen": _pen, "bubbles": _bubbles,
    "blur": _blur, "padding": _padding, "holes": _holes, "shadow": _shadow, "edge": _edge, "full": _full,
}  # fmt: skip
NAMES = [f"{kind}_{copy}" for kind in _KINDS for copy in range(COPIES)]
"""The sixty slides."""


def draw(name: str, series: int = 0, mpp: float = MPP) -> Drawn:
    """Draw one of ``NAMES``. Another ``series`` draws other slides of the same kinds."""
    kind, copy = name.rsplit("_", 1)
    return _KINDS[kind](name, (1000 * series + list(_KINDS).index(kind), int(copy)), mpp)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kinds", nargs="*", default=list(_KINDS))
    parser.add_argument("--series", type=int, default=0)
    arguments = parser.parse_args()
    for part in ("slides", "truth"):
        (arguments.folder / part).mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        if name.rsplit("_", 1)[0] in arguments.kinds:
            drawn = draw(name, arguments.series)
            drawn.write(arguments.folder / "slides" / f"{name}.tiff")
            for what in ("tissue", "pen", "blurred"):
                mask = getattr(drawn, what).astype(np.uint8) * 255
                cv2.imwrite(str(arguments.folder / "truth" / f"{name}_{what}.png"), mask)
            print(name, drawn.image.shape)


if __name__ == "__main__":
    main()
