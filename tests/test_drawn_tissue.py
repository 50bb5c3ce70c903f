"""Sixty drawn slides of known tissue: how well the mask and the pen are found, whatever the stain."""

import cv2
import numpy as np
import pytest

from benchmarks.drawn_slides import COPIES, NAMES, draw
from wsi_mil.tissue import find_tissue

MPP, DRAWN_MPP, PATCH = 8.0, 4.0, 16  # of the thumbnail, of the drawing; a patch of 128 microns
SIZES = {"min_area_um2": 10_000.0, "max_hole_um2": 10_000.0}


def shrunk(pixels: np.ndarray) -> np.ndarray:
    side = round(len(pixels) * DRAWN_MPP / MPP)
    return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    total = found.sum() + truth.sum()
    return float(2 * (found & truth).sum() / total) if total else 1.0


def by_patch(mask: np.ndarray) -> np.ndarray:
    side = len(mask) // PATCH * PATCH
    return mask[:side, :side].reshape(side // PATCH, PATCH, side // PATCH, PATCH).mean(axis=(1, 3))


@pytest.fixture(scope="module", params=[2, pytest.param(COPIES, marks=pytest.mark.slow)])
def found(request) -> dict[str, tuple]:
    """For each slide, so many of each kind: the thumbnail, what was found on it, the true masks (0 to 1)."""
    result = {}
    for name in [name for name in NAMES if int(name.rsplit("_", 1)[1]) < request.param]:
        drawn = draw(name, mpp=DRAWN_MPP)
        thumbnail = shrunk(drawn.image)
        truth = {what: shrunk(getattr(drawn, what).astype(np.float32)) for what in ("tissue", "pen")}
        result[name] = thumbnail, find_tissue(thumbnail, MPP, **SIZES), truth
    return result


def test_the_mask_is_the_tissue_that_was_drawn(found):
    scores = {
        name: dice(tissue.mask > 0, truth["tissue"] > 0.5) for name, (_, tissue, truth) in found.items()
    }
    assert len(scores) in {24, 60}
    assert np.mean(list(scores.values())) >= 0.97
    assert min(scores.values()) >= 0.93, min(scores, key=scores.get)


def test_auto_sees_what_kind_of_slide_it_is(found):
    kinds = {name: tissue.kind for name, (_, tissue, _) in found.items()}
    for name, kind in kinds.items():
        stain = name.rsplit("_", 1)[0]
        wanted = {"fluorescence": {"fluorescence"}, "ihc": {"hed"}, "pale": {"otsu", "hed"}}.get(
            stain, {"otsu"}
        )
        assert kind in wanted, (name, kind)


def test_pen_is_found_patch_by_patch_and_nothing_else_is_pen(found):
    """At least 0.95 of the patches called pen are, and of those that are are called so."""
    hit = called = there = 0
    for _, tissue, truth in found.values():
        pen, true_pen = by_patch(tissue.pen / 255) > 0.1, by_patch(truth["pen"]) > 0.1
        hit += (pen & true_pen).sum()
        called += pen.sum()
        there += true_pen.sum()
    assert there > 500 * len(found) / 60
    assert hit / called >= 0.95
    assert hit / there >= 0.95
    clean = [name for name in found if not name.startswith("pen")]
    assert not any(found[name][1].pen.any() for name in clean)


def test_the_same_thumbnail_gives_the_same_mask(found):
    for name in ("ihc_1", "pen_1", "fluorescence_0"):
        again = find_tissue(found[name][0], MPP, **SIZES)
        assert (again.mask == found[name][1].mask).all()
        assert (again.pen == found[name][1].pen).all()


@pytest.mark.parametrize("name", ["he_0", "ihc_1", "fluorescence_1", "pen_1"])
def test_sizes_are_microns_whatever_the_thumbnail(found, name):
    """A thumbnail of twice the resolution gives the same tissue."""
    drawn = draw(name, mpp=DRAWN_MPP)
    fine = find_tissue(drawn.image, DRAWN_MPP, **SIZES).mask
    assert dice(shrunk(fine) > 127, found[name][1].mask > 0) > 0.97


def test_a_kind_that_was_asked_for_is_the_one_that_is_used(found):
    thumbnail, _, truth = found["he_0"]
    for kind in ("otsu", "hed"):
        tissue = find_tissue(thumbnail, MPP, **SIZES, kind=kind)
        assert tissue.kind == kind
        assert dice(tissue.mask > 0, truth["tissue"] > 0.5) > 0.95
    # Light on black is not what is asked for on a bright slide, and the answer shows it.
    assert find_tissue(thumbnail, MPP, **SIZES, kind="fluorescence").mask[0, 0] == 255
