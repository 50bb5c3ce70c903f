"""A map lies on its slide: landmarks at the far corner, to half an overlay pixel, whatever the slide."""

import numpy as np
import pytest
from PIL import Image

from pipelines.pyramid import write_pyramid
from tests.test_heatmap import features_of
from tests.test_heatmap import run as _run
from tests.tiffs import texture, write_scn, write_tiff
from wsi_mil import heatmap, store
from wsi_mil.config import HeatmapConfig
from wsi_mil.geometry import PatchGeometry, grid_l0
from wsi_mil.heatmap import check, render
from wsi_mil.slide import open_slide

run = _run
SIDE = 97  # of a patch, odd


def landmark_slide(path, width, height, kind):
    """A slide of pale tissue with a black square on one patch: the last one of the grid."""
    geometry = PatchGeometry.plan(width_l0=width, height_l0=height, mpp_l0=0.5, mpp=0.5, patch_px=SIDE)
    coords = grid_l0(geometry)
    image = texture(width, height) // 4 + 190
    x, y = coords[-1]
    image[y : y + SIDE, x : x + SIDE] = 0
    if kind == "bounds":  # the scanned part begins elsewhere, and reaches to the far corner
        left, top = 203, 111
        write_scn(path, image[top:, left:], offset=(left, top), glass=(width, height))
    elif kind == "levels":
        write_pyramid(path, image, 0.5)
    else:
        write_tiff(path, image, kind="deflate")
    return geometry, coords


def middle(weights):
    """(row, column) of the centre of mass, in pixels from the outer edge."""
    return [float((weights.sum(axis=1 - axis) * (np.arange(weights.shape[axis]) + 0.5)).sum() / weights.sum())
            for axis in (0, 1)]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "suffix", "width", "height", "downsample"),
    [
        ("one level", "tiff", 1501, 1203, 1.0005), ("one level", "tiff", 1501, 1203, 3.77),
        ("levels", "tiff", 1801, 1403, 5.003), ("levels", "tiff", 1801, 1403, 37.3),
        ("one level", "svs", 1801, 1403, 37.3), ("bounds", "scn", 1801, 1403, 1.0005),
        ("bounds", "scn", 1801, 1403, 7.31), ("bounds", "scn", 1801, 1403, 37.3),
    ],
)  # fmt: skip
def test_the_map_lies_on_the_landmark(tmp_path, kind, suffix, width, height, downsample):
    path = tmp_path / f"a.{suffix}"
    geometry, coords = landmark_slide(path, width, height, kind)
    with open_slide(path, mpp=0.5) as slide:
        assert (slide.width_l0, slide.height_l0) == (width, height)
        picture = slide.thumbnail(0.5 * downsample)
        found = check.check_alignment(slide, picture, coords, geometry)
    assert found.judged > 0
    values = np.zeros(len(coords), np.float32)
    values[-1] = 1
    raster = render.spread(values, coords, geometry, picture.shape[:2])
    dark = np.clip(150 - picture.astype(float).mean(axis=2), 0, None)
    dark[: picture.shape[0] // 2, : picture.shape[1] // 2] = 0
    painted, seen = middle(np.nan_to_num(raster)), middle(dark)
    assert np.abs(np.array(painted) - seen).max() <= 0.5, (painted, seen)


def test_offset_bounds_through_the_whole_command(run, tmp_path):
    """The scanned part of a Leica slide begins elsewhere on its glass; nothing may be shifted by that."""
    width, height = 2048, 1536
    path = write_scn(tmp_path / "a.scn", texture(1600, 1200), offset=(300, 200), glass=(width, height))
    item = features_of(path, "a", n=48)
    store.write_features(store.features_path(run, "net", "a"), item)
    result = heatmap.run(HeatmapConfig(run=run, only=("a",), format="png", top_patches=48))
    assert not result.failed, result.failed
    folder = store.heatmap_folder(run, "m", "a")
    found = store.read_heatmap(folder / "heatmap.zarr")
    assert found.facts["alignment"]["compared"] > 3
    assert found.facts["alignment"]["largest_off_px"] <= 0.5
    best = found.coords[np.argmax(found.attention)]
    page = np.asarray(Image.open(folder / "top_patches.png"))
    with open_slide(path, mpp=0.5) as slide:
        assert (page[8:264, 8:264] == slide.read_level(0, *best.tolist(), 256, 256)).all()


def test_coords_of_the_scanned_part_alone_are_noticed(run, tmp_path):
    """As of tools that count from the bounds: the map would be shifted by the offset, and is refused."""
    image = texture(2048, 1536)
    whole = write_tiff(tmp_path / "whole.tiff", image, kind="deflate")
    moved = write_tiff(tmp_path / "moved.tiff", np.roll(image, (60, 90), axis=(0, 1)), kind="deflate")
    with open_slide(whole, mpp=0.5) as slide, open_slide(moved, mpp=0.5) as other:
        geometry = features_of(whole, "a").geometry
        with pytest.raises(OSError, match="does not lie over the slide"):
            check.check_alignment(slide, other.thumbnail(2.0), grid_l0(geometry), geometry)
