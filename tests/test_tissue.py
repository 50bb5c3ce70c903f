import json

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.drawn_slides import PENS
from tests.conftest import GLASS, draw_slide
from wsi_mil.slide import open_slide
from wsi_mil.tissue import find_tissue, outlines_l0, to_geojson
from wsi_mil.tissue.mask import drop_pieces, fill_holes

MPP = 8.0
SIZES = {"min_area_um2": 10_000.0, "max_hole_um2": 10_000.0}


def test_a_rectangle_is_found_to_a_pixel():
    thumbnail = draw_slide(200, 150, ((30, 40, 130, 110),))
    tissue = find_tissue(thumbnail, MPP, **SIZES)
    expected = np.zeros((150, 200), bool)
    expected[40:110, 30:130] = True
    found = tissue.mask > 0
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.98
    assert tissue.fraction == pytest.approx(100 * 70 / 150 / 200, rel=0.04)


@given(st.data())
def test_small_pieces_and_holes_are_those_that_labelling_every_pixel_counts(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    shape = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    mask = np.where(rng.random(shape) < data.draw(st.floats(0.02, 0.98)), np.uint8(255), np.uint8(0))
    if data.draw(st.booleans()):  # whole pieces with pieces in their holes, instead of noise
        mask = np.ascontiguousarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)))
    least = data.draw(st.integers(1, 60))
    before = mask.copy()
    assert (drop_pieces(mask, least) == without_small(mask, least, 8, border_counts=True)).all()
    assert (fill_holes(mask, least) == 255 - without_small(255 - mask, least, 4, border_counts=False)).all()
    assert (mask == before).all(), "the mask that came in is not touched"


def without_small(mask, least, connectivity, border_counts):
    """Return the mask without pieces of fewer than ``least`` pixels; of those at the border if they count."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
    at_border = set(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]).tolist())
    small = [
        piece for piece in range(1, count)
        if stats[piece, cv2.CC_STAT_AREA] < least and (border_counts or piece not in at_border)
    ]  # fmt: skip
    return np.where(np.isin(labels, small), np.uint8(0), mask)


def test_large_holes_stay_and_small_ones_are_filled():
    thumbnail = draw_slide(200, 150, ((20, 20, 180, 130),))
    thumbnail[60:100, 60:100] = GLASS  # 40 px: 102,400 um2
    thumbnail[60:66, 140:146] = GLASS  # 6 px: 2,304 um2
    mask = find_tissue(thumbnail, MPP, **SIZES).mask
    assert mask[80, 80] == 0
    assert mask[63, 143] == 255
    (polygon,) = outlines_l0(mask, 3200, 2400).geoms
    assert len(polygon.interiors) == 1


def test_specks_are_dropped():
    thumbnail = draw_slide(200, 150, ((20, 20, 120, 120), (160, 20, 166, 26)))
    mask = find_tissue(thumbnail, MPP, **SIZES).mask
    assert mask[23, 163] == 0
    assert mask[60, 60] == 255


@pytest.mark.parametrize("shade", [255, 243, 128, 0])
def test_glass_padding_and_black_hold_no_tissue(shade):
    rng = np.random.default_rng(0)
    blank = np.clip(rng.normal(shade, 3, (200, 300, 3)), 0, 255).astype(np.uint8)
    assert find_tissue(blank, MPP, **SIZES).fraction == 0


def test_a_slide_that_is_all_tissue_is_all_tissue():
    assert find_tissue(draw_slide(200, 150, ((0, 0, 200, 150),)), MPP, **SIZES).fraction == 1


def test_outlines_are_valid_and_cover_the_mask():
    rng = np.random.default_rng(1)
    mask = np.where(rng.random((60, 80)) > 0.5, 255, 0).astype(np.uint8)  # full of one-pixel necks
    outlines = outlines_l0(mask, 800, 600)
    assert all(part.is_valid and part.area > 0 for part in outlines.geoms)
    text = json.loads(to_geojson(outlines))
    assert text["type"] == "FeatureCollection"
    assert {f["properties"]["objectType"] for f in text["features"]} == {"annotation"}


def test_outline_of_a_rectangle_is_in_level_0_pixels():
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 20:60] = 255
    (polygon,) = outlines_l0(mask, 800, 600).geoms
    # Contours run through pixel centres: half a mask pixel (5 level-0 pixels) inside the true edge.
    assert polygon.bounds == (205, 105, 595, 295)


def test_the_same_slide_through_two_formats_has_the_same_tissue(real_slides):
    """The DICOM's small levels are decimated and coarsely compressed; the tissue must not depend on that."""
    masks = []
    for name in ("CMU-1-Small-Region.svs", "cmu1_dicom/level-0-frames-0-30.dcm"):
        with open_slide(real_slides / name) as slide:
            masks.append(find_tissue(slide.thumbnail(MPP), MPP, **SIZES).mask > 0)
    dice = 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum())
    assert dice > 0.99
    assert masks[0].mean() == pytest.approx(0.387, abs=0.01)
    assert shapely.MultiPolygon(outlines_l0(masks[0].astype(np.uint8) * 255, 2220, 2967)).area > 0


def _stroke(picture: np.ndarray, ends: tuple, ink: tuple[int, int, int], opacity: float = 0.9) -> np.ndarray:
    """Draw a line 25 pixels (200 um) wide on a picture; return where."""
    line = np.zeros(picture.shape[:2], np.uint8)
    cv2.line(line, *ends, 1, 25)
    where = line > 0
    below = picture[where].astype(float)
    picture[where] = np.round((1 - opacity) * below + opacity * np.array(ink) * (below / 255) ** 0.15)
    return where


@pytest.mark.parametrize("below", ["blue", "green", "black"])
@pytest.mark.parametrize("over", ["red", "blue", "green"])
def test_where_two_inks_lie_over_each_other_is_ink(below, over):
    """Their mixture has the hue of neither; what is beside the strokes stays tissue."""
    picture = draw_slide(200, 150, ((20, 20, 180, 130),))
    under = _stroke(picture, ((50, 40), (150, 110)), PENS[below])
    upper = _stroke(picture, ((50, 110), (150, 40)), PENS[over], opacity=0.85)
    tissue = find_tissue(picture, MPP, **SIZES)
    assert (tissue.pen[under & upper] > 0).mean() > 0.98
    assert (tissue.pen[under | upper] > 0).mean() > 0.95
    far = cv2.dilate((under | upper).astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
    assert not tissue.pen[far].any()


def test_what_is_dense_and_no_hue_of_ink_counts_only_between_strokes():
    """Blood is as dense as one ink over another: a lake of it is tissue, also beside a stroke."""
    picture = draw_slide(300, 150, ((20, 20, 280, 130),))
    picture[60:100, 60:100] = picture[60:100, 200:240] = (122, 36, 45)
    assert not find_tissue(picture, MPP, **SIZES).pen.any()
    stroke = _stroke(picture, ((190, 30), (190, 120)), PENS["blue"], opacity=1.0)
    found = find_tissue(picture, MPP, **SIZES)
    assert (found.pen[stroke] > 0).mean() > 0.95
    assert not found.pen[60:100, 60:100].any()
    assert not found.pen[60:100, 210:240].any()
    assert found.mask[60:100, 210:240].all()
