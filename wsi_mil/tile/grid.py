"""One open slide in, its tissue patches out: the stage without files."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil import geometry, store, tissue
from wsi_mil.config import TileConfig
from wsi_mil.geometry import PatchGeometry
from wsi_mil.slide import Slide

PREVIEW_PX = 1400


@dataclass(frozen=True)
class Tiling:
    """What ``tile_slide`` finds: the patches kept, the tissue, and a picture of the slide to show them on."""

    patches: store.Patches
    tissue: tissue.Tissue
    picture: NDArray[np.uint8]


def tile_slide(slide: Slide, config: TileConfig, slide_id: str | None = None) -> Tiling:
    """Return the tissue patches of one open slide, in row-major order of one global grid.

    A patch is kept when at least ``config.min_tissue`` of its area is tissue; a grid step that would leave
    the slide on the right or below is not part of the grid.

    Raises:
        SlideError: the slide cannot be read, or is coarser than ``config.mpp``.
    """
    plan = PatchGeometry.plan(
        width_l0=slide.width_l0,
        height_l0=slide.height_l0,
        mpp_l0=slide.mpp_l0,
        mpp=config.mpp,
        patch_px=config.patch_px,
        overlap_px=config.overlap_px,
        allow_upsampling=config.allow_upsampling,
    )
    # One reading serves both: the picture, and the thumbnail on which tissue is found, which may be coarser.
    preview_mpp = max(slide.width_l0, slide.height_l0) * slide.mpp_l0 / PREVIEW_PX
    picture = slide.thumbnail(min(config.tissue_mpp, preview_mpp))
    found = tissue.find_tissue(
        _shrink(picture, max(slide.width_l0, slide.height_l0) * slide.mpp_l0 / config.tissue_mpp),
        config.tissue_mpp,
        min_area_um2=config.min_area_um2,
        max_hole_um2=config.max_hole_um2,
    )
    coords = geometry.grid_l0(plan)
    boxes = geometry.boxes_rc(coords, plan, found.mask.shape)
    fraction = geometry.box_means(found.mask, boxes) / 255
    keep = fraction >= config.min_tissue
    patches = store.Patches(
        slide_id=slide_id or Path(slide.path).stem,
        slide_path=slide.path.absolute() if isinstance(slide.path, Path) else slide.path,
        reader=slide.reader,
        mpp_source=slide.mpp_source,
        geometry=plan,
        coords=coords[keep],
        tissue_fraction=fraction[keep].astype(np.float32),
        record=configs.record(config),
    )
    return Tiling(patches, found, _shrink(picture, PREVIEW_PX))


def _shrink(picture: NDArray[np.uint8], longer_side: float) -> NDArray[np.uint8]:
    """Return a picture averaged down to ``longer_side`` pixels; one that is not larger stays as it is."""
    factor = longer_side / max(picture.shape[:2])
    if factor >= 1:
        return picture
    size = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
