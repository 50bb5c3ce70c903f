import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_mil import geometry
from wsi_mil.errors import SlideError
from wsi_mil.geometry import PatchGeometry


def plan(**changes: object) -> PatchGeometry:
    values = {
        "width_l0": 2220,
        "height_l0": 2967,
        "mpp_l0": 0.499,
        "mpp": 0.5,
        "patch_px": 256,
        "overlap_px": 0,
    }
    return PatchGeometry.plan(**(values | changes))  # type: ignore[arg-type]


def test_patch_size_is_exact_and_coords_are_rounded_once():
    p = plan()
    assert p.patch_size_l0 == pytest.approx(256 * 0.5 / 0.499)
    coords = geometry.grid_l0(p)
    assert p.grid_shape_rc == (11, 8)
    assert coords.dtype == np.int64
    assert coords[:3].tolist() == [[0, 0], [257, 0], [513, 0]]  # 256.513, 513.026: no drift
    assert coords[8].tolist() == [0, 257], "row-major: x runs first"


def test_a_slide_of_exactly_n_patches_has_n():
    p = plan(width_l0=4 * 256, height_l0=2 * 256, mpp_l0=0.5)
    assert p.grid_shape_rc == (2, 4)
    assert plan(width_l0=4 * 256 - 1, height_l0=512, mpp_l0=0.5).grid_shape_rc == (2, 3)
    assert plan(width_l0=100, mpp_l0=0.5).grid_shape_rc[1] == 0


@given(
    st.integers(1, 60_000), st.integers(1, 60_000), st.floats(0.1, 1.0), st.floats(1.0, 6.0),
    st.integers(32, 512), st.floats(0, 0.9),
)  # fmt: skip
def test_grid_stays_on_the_slide_and_cells_undo_it(width, height, mpp_l0, ratio, patch_px, overlap):
    p = plan(
        width_l0=width, height_l0=height, mpp_l0=mpp_l0, mpp=mpp_l0 * ratio, patch_px=patch_px,
        overlap_px=int(overlap * patch_px),
    )  # fmt: skip
    rows, columns = p.grid_shape_rc
    if rows * columns > 200_000:
        return
    coords = geometry.grid_l0(p)
    assert len(coords) == rows * columns
    if not len(coords):
        return
    assert coords.min() >= 0
    assert (coords.max(axis=0) + p.patch_size_l0 <= np.array([width, height]) + 1.01).all()
    expected = np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)
    assert (geometry.cells_rc(coords, p) == expected).all()


def test_a_target_finer_than_the_slide_is_refused_but_scanner_tolerance_is_not():
    with pytest.raises(SlideError, match=r"finer than the slide's own 0.5.*Use --mpp 0.5"):
        plan(mpp_l0=0.5, mpp=0.25)
    assert plan(mpp_l0=0.2527, mpp=0.25).patch_size_l0 == pytest.approx(256 * 0.25 / 0.2527)


@given(st.data())
def test_box_means_agree_with_counting_subpixels(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    raster = rng.integers(0, 256, (7, 9), dtype=np.uint8)
    fine = np.kron(raster, np.ones((8, 8)))  # eighths of a pixel
    top, left = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 50))
    bottom, right = data.draw(st.integers(top + 1, 70)), data.draw(st.integers(left + 1, 90))
    inside = fine[top:bottom, left:right].sum() / ((bottom - top) * (right - left))
    boxes = np.array([[top, left, bottom, right]]) / 8
    assert geometry.box_means(raster, boxes)[0] == pytest.approx(inside, abs=1e-3)


def test_box_means_of_a_raster_whose_sum_needs_more_than_32_bits():
    raster = np.full((3000, 3000), 255, np.uint8)
    raster[-1, -1] = 0
    boxes = np.array([[0.0, 0.0, 3000.0, 3000.0], [2998.0, 2998.0, 3000.0, 3000.0]])
    assert geometry.box_means(raster, boxes).tolist() == pytest.approx([255, 255 * 3 / 4], abs=1e-4)


def test_boxes_span_the_raster_exactly():
    p = plan(width_l0=1000, height_l0=500, mpp_l0=0.5, patch_px=500)
    boxes = geometry.boxes_rc(geometry.grid_l0(p), p, (63, 125))
    assert boxes.tolist() == [[0, 0, 63, 62.5], [0, 62.5, 63, 125]]


def test_pick_level_is_never_coarser_than_the_target():
    downsamples = (1.0, 4.0005, 16.002)
    assert [geometry.pick_level(downsamples, d) for d in (0.99, 1, 2, 3.9, 4, 15, 16, 64)] == [
        0, 0, 0, 0, 1, 1, 2, 2,
    ]  # fmt: skip


def test_coords_of_other_tools_may_lie_on_no_grid():
    step = 506.5
    ours = np.rint(np.array([[0, 0], [1, 0], [5, 3]]) * step).astype(np.int64)
    assert geometry.on_grid(ours, step)
    assert not geometry.on_grid(ours + 1, step)
    assert not geometry.on_grid(ours - 1, step)
    assert not geometry.on_grid(np.concatenate([ours, ours[:1]]), step)  # two in a cell
    assert geometry.on_grid(np.zeros((0, 2), np.int64), step)


def test_a_step_is_read_off_where_the_coords_show_it():
    cells = np.array([[0, 0], [1, 0], [0, 1], [4, 2]])
    assert geometry.step_of(cells * 96) == 96
    assert geometry.step_of(cells[[0, 3]] * 96) is None  # no neighbours: it may be any part of that
    assert geometry.step_of(cells * 96 + 7) is None
    assert geometry.step_of(cells[:1]) is None


def test_means_of_cells_are_weighted_by_area():
    p = plan(width_l0=1024, height_l0=512, mpp_l0=0.5)
    assert (p.patch_size_l0, p.stride_l0) == (256, 256)
    coords = np.array([[64, 0], [192, 0], [900, 128]])
    means = geometry.cell_means(np.array([1, 3, 5], np.float32), coords, p)
    assert means.shape == (2, 4)
    # cell (0, 0): 192 columns of the first, 64 of the second; cell (0, 1): 64 and 192
    assert means[0, :2] == pytest.approx([(192 * 1 + 64 * 3) / 256, (64 * 1 + 192 * 3) / 256])
    assert means[:, 3] == pytest.approx([5, 5])
    assert np.isnan(means[1, :3]).all()
    on_it = geometry.cell_means(np.array([1, 2], np.float32), np.array([[0, 0], [512, 256]]), p)
    assert (on_it[0, 0], on_it[1, 2], np.isnan(on_it).sum()) == (1, 2, 6)
