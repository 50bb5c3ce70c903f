"""One open slide in, its patches out: the stage without files."""

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_mil import blocks, geometry, store, tissue
from wsi_mil import config as configs
from wsi_mil.config import TileConfig
from wsi_mil.errors import SlideError
from wsi_mil.geometry import PatchGeometry
from wsi_mil.slide import Slide
from wsi_mil.tile import quality
from wsi_mil.tile.sample import sample

PREVIEW_PX, PREVIEW_PX_MIN = 1400, 1000
_MM2 = 1e-6  # of a square micron


@dataclass(frozen=True)
class Rejected:
    """Patches of the grid that were left out although they have tissue or pen.

    ``coords`` (M, 2) level-0 (x, y), row-major; ``reason`` (M,) one of ``quality.REASONS``, or ``sample``.
    """

    coords: NDArray[np.int64]
    reason: NDArray[np.str_]


@dataclass(frozen=True)
class Tiling:
    """What ``tile_slide`` finds: the patches kept, the tissue, and a picture of the slide to show them on.

    ``context`` are the patches around the same centres at further resolutions; ``rejected`` those left out.
    """

    patches: store.Patches
    tissue: tissue.Tissue
    picture: NDArray[np.uint8]
    rejected: Rejected
    context: dict[float, store.Patches] = field(default_factory=dict)


def tile_slide(slide: Slide, config: TileConfig, slide_id: str | None = None) -> Tiling:
    """Return the tissue patches of one open slide, in row-major order of one global grid.

    A patch is kept when at least ``config.min_tissue`` of its area is tissue and at most ``config.max_pen``
    is pen; a grid step that would leave the slide on the right or below is not part of the grid.

    Raises:
        SlideError: the slide cannot be read, or is coarser than ``config.mpp``.
        FormatError, ConfigError: annotations or a segmenter that cannot be used.
    """
    name = slide_id or Path(slide.path).stem
    plan = plan_of(slide, config, config.mpp)
    # One reading serves both: the picture, and the thumbnail on which tissue is found, which may be coarser.
    longer_um = max(slide.width_l0, slide.height_l0) * slide.mpp_l0
    enough = longer_um / config.tissue_mpp >= PREVIEW_PX_MIN
    picture = blocks.thumbnail(slide, config.tissue_mpp if enough else longer_um / PREVIEW_PX)
    return tile_picture(slide, picture, plan, config, name)


def tile_picture(
    slide: Slide, picture: NDArray[np.uint8], plan: PatchGeometry, config: TileConfig, name: str
) -> Tiling:
    """Return the patches of a slide by its ``picture``, which shows all of it: what follows the reading."""
    thumbnail = shrink(picture, max(slide.width_l0, slide.height_l0) * slide.mpp_l0 / config.tissue_mpp)
    found, note = _find(slide, thumbnail, config, name)
    grid = geometry.grid_l0(plan)
    boxes = geometry.boxes_rc(grid, plan, found.mask.shape)
    fraction, pen = quality.fractions(found.mask, boxes), quality.fractions(found.pen, boxes)
    reason = np.full(len(grid), "", dtype="U8")
    reason[fraction < config.min_tissue] = "tissue"
    # Ink counts where it hides what might be tissue, and where nothing else was said against the patch.
    reason[(pen > config.max_pen) & (fraction + pen >= config.min_tissue)] = "pen"
    measured: dict[str, NDArray[np.float32]] = {}
    if config.qc == "pixels":
        rows = np.flatnonzero(reason == "")
        for column, values in quality.of_pixels(slide, grid[rows], plan, found).items():
            measured[column] = np.full(len(grid), quality.UNKNOWN, np.float32)
            measured[column][rows] = values
        reason[quality.out_of_focus(measured, config.min_focus, config.max_blur_um)] = "focus"
    if config.max_patches is not None:
        rows = np.flatnonzero(reason == "")
        taken = sample(geometry.cells_rc(grid[rows], plan), config.max_patches, config.sample, config.seed)
        reason[np.delete(rows, taken)] = "sample"
    keep, met = reason == "", (reason != "") & (fraction + pen > 0)
    columns = quality.of_thumbnail(thumbnail, found, boxes[keep])
    columns |= {column: values[keep] for column, values in measured.items()}
    removed = {each: int(np.count_nonzero(reason[met] == each)) for each in (*quality.REASONS, "sample")}
    area_l0 = found.fraction * slide.width_l0 * slide.height_l0
    patches = store.Patches(
        slide_id=name,
        slide_path=slide.path.absolute() if isinstance(slide.path, Path) else slide.path,
        reader=slide.reader,
        mpp_source=slide.mpp_source,
        geometry=plan,
        coords=grid[keep],
        tissue_fraction=fraction[keep],
        record=configs.record(config),
        quality=columns,
        notes={
            "tissue": found.kind,
            "threshold": found.threshold,
            "tissue_mm2": round(area_l0 * slide.mpp_l0**2 * _MM2, 4),
            "tissue_fraction": round(found.fraction, 4),
            "pen_fraction": round(cv2.countNonZero(found.pen) / found.pen.size, 4),
            "removed": removed,
        }
        | ({"note": note} if note else {}),
    )
    context = {mpp: _around(patches, slide, config, mpp) for mpp in config.context_mpp}
    rejected = Rejected(grid[met], reason[met])
    return Tiling(patches, found, shrink(picture, PREVIEW_PX), rejected, context)


def plan_of(slide: Slide, config: TileConfig, mpp: float) -> PatchGeometry:
    """Return the geometry of a slide's patches at ``mpp``."""
    return PatchGeometry.plan(
        width_l0=slide.width_l0,
        height_l0=slide.height_l0,
        mpp_l0=slide.mpp_l0,
        mpp=mpp,
        patch_px=config.patch_px,
        overlap_px=config.overlap_px,
        allow_upsampling=config.allow_upsampling,
    )


def shrink(picture: NDArray[np.uint8], longer_side: float) -> NDArray[np.uint8]:
    """Return a picture averaged down to ``longer_side`` pixels; one that is not larger stays as it is."""
    factor = longer_side / max(picture.shape[:2])
    if factor >= 1:
        return picture
    size = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def annotations_path(config: TileConfig, slide_id: str) -> Path:
    """Return where the annotations of a slide lie (--tissue geojson:DIR).

    Raises:
        SlideError: there are none.
    """
    path = Path(config.tissue.partition(":")[2]) / f"{slide_id}.geojson"
    if not path.is_file():
        raise SlideError(
            f"{slide_id}: no annotations {path}; export them from QuPath under that name, or leave the slide "
            "out of --slides. A slide without tissue has a file without annotations."
        )
    return path


def _find(
    slide: Slide, thumbnail: NDArray[np.uint8], config: TileConfig, name: str
) -> tuple[tissue.Tissue, str]:
    """Return the tissue as the config wants it found, and a remark."""
    kind, _, place = config.tissue.partition(":")
    sizes = {
        "min_area_um2": config.min_area_um2,
        "max_hole_um2": config.max_hole_um2,
        "closing_um": config.closing_um,
    }
    if kind == "geojson":
        drawn = tissue.read_annotations(annotations_path(config, name), config.tissue_classes)
        mask = tissue.drawn_mask(drawn.polygons, thumbnail.shape[:2], (slide.width_l0, slide.height_l0))
        there = ", ".join(f"{each or 'without a class'} ({count})" for each, count in drawn.classes.items())
        note = "" if mask.any() else f"no annotation of the classes asked for; there are: {there or 'none'}"
        return tissue.Tissue(mask, 0, kind, tissue.find_ink(thumbnail, config.tissue_mpp)), note
    if kind == "onnx":
        segmenter = tissue.load_segmenter(Path(place))
        mask = segmenter.mask(blocks.thumbnail(slide, segmenter.mpp))
        size = thumbnail.shape[1], thumbnail.shape[0]
        scaled = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
        mask = tissue.clean(np.where(scaled > 127, np.uint8(255), np.uint8(0)), config.tissue_mpp, **sizes)
        return tissue.Tissue(
            mask, segmenter.threshold, kind, tissue.find_ink(thumbnail, config.tissue_mpp)
        ), ""
    found = tissue.find_tissue(thumbnail, config.tissue_mpp, kind=kind, **sizes)  # type: ignore[arg-type]
    return found, ""


def _around(patches: store.Patches, slide: Slide, config: TileConfig, mpp: float) -> store.Patches:
    """Return the patches at ``mpp`` around the centres of ``patches``, row by row.

    They may reach over the slide's edges, where a reader fills up with the background.
    """
    fine = patches.geometry
    coarse = plan_of(slide, config, mpp)
    coords = geometry.concentric_l0(patches.coords, fine, coarse.patch_size_l0)
    plan = PatchGeometry(
        mpp=mpp,
        patch_px=coarse.patch_px,
        patch_size_l0=coarse.patch_size_l0,
        stride_l0=fine.stride_l0,
        width_l0=fine.width_l0,
        height_l0=fine.height_l0,
        mpp_l0=fine.mpp_l0,
    )
    return store.Patches(
        slide_id=patches.slide_id,
        slide_path=patches.slide_path,
        reader=patches.reader,
        mpp_source=patches.mpp_source,
        geometry=plan,
        coords=coords,
        tissue_fraction=patches.tissue_fraction,
        record=patches.record | {"around": fine.mpp, "mpp": mpp},
        quality={name: column for name, column in patches.quality.items() if name not in quality.OF_PIXELS},
        notes=patches.notes | {"around": fine.mpp},
    )
