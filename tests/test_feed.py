import threading

import numpy as np
import pytest

from wsi_mil import store
from wsi_mil.embed.feed import Feed, Job, Part, check_inside
from wsi_mil.errors import FormatError, SlideError
from wsi_mil.geometry import PatchGeometry, grid_l0


def job(slide_id, count, size=4):
    plan = PatchGeometry.plan(width_l0=4096, height_l0=4096, mpp_l0=0.5, mpp=0.5, patch_px=size)
    patches = store.Patches(
        slide_id=slide_id, slide_path="", reader="openslide", mpp_source="given", geometry=plan,
        coords=grid_l0(plan)[:count], tissue_fraction=np.ones(count, np.float32), record={},
    )  # fmt: skip
    return Job.of(patches)


def read(each):
    """Give a job's patches in parts of five; the first pixel of each says whose it is."""
    count, size = len(each.patches.coords), each.patches.geometry.patch_px
    for k in range(0, count, 5):
        rows = np.arange(k, min(k + 5, count))
        pixels = np.zeros((len(rows), size, size, 3), np.uint8)
        pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = int(each.slide_id), rows
        yield Part(each, rows, pixels)


@pytest.mark.parametrize("readers", [0, 1, 3])
def test_batches_cross_from_slide_to_slide_and_nothing_is_lost(readers):
    jobs = [job(str(i), n) for i, n in enumerate((7, 0, 12, 1, 0, 23))]
    seen, ended, sizes = {}, [], []
    for batch in Feed(jobs, read, 8, readers):
        sizes.append(len(batch.patches))
        at = 0
        for each, rows in batch.rows:
            for row in rows.tolist():
                assert batch.patches[at, 0, 0].tolist()[:2] == [int(each.slide_id), row]
                assert (each.slide_id, row) not in seen
                seen[each.slide_id, row] = True
                at += 1
            assert each.slide_id not in ended, "nothing comes after a slide's end"
        assert at == len(batch.patches)
        ended += [each.slide_id for each in batch.ends]
    assert len(seen) == 43
    assert sorted(ended) == [str(i) for i in range(6)]
    full = [size for size in sizes if size]
    assert full == [8, 8, 8, 8, 8, 3], "full batches, and one rest at the very end"


@pytest.mark.parametrize("readers", [0, 2])
def test_a_slide_that_cannot_be_read_ends_alone(readers):
    def breaking(each):
        for part in read(each):
            if each.slide_id == "1" and part.rows[0] >= 5:
                raise SlideError("damaged")
            yield part

    jobs = [job(str(i), 12) for i in range(3)]
    rows = {str(i): 0 for i in range(3)}
    ended = []
    for batch in Feed(jobs, breaking, 4, readers):
        for each, part in batch.rows:
            rows[each.slide_id] += len(part)
        ended += batch.ends
    assert rows == {"0": 12, "1": 5, "2": 12}
    assert {each.slide_id: each.failure and each.failure.reason for each in ended} == {
        "0": None, "1": "damaged", "2": None,
    }  # fmt: skip


def test_a_slide_that_failed_elsewhere_is_not_read_on():
    one, other = job("0", 100), job("1", 4)
    batches = []
    for batch in Feed([one, other], read, 5, 0):
        batches.append(batch)
        one.failure = object()  # what the writer does when the disk is full
    assert len(batches) < 5
    assert {each.slide_id for batch in batches for each in batch.ends} == {"0", "1"}


def test_patches_of_another_size_never_share_a_batch():
    shapes = [b.patches.shape[1:3] for b in Feed([job("0", 6), job("1", 6, size=8)], read, 8, 0) if b.rows]
    assert shapes == [(4, 4), (8, 8)]


def test_what_was_read_is_handed_out_before_a_wait():
    def jobs():
        yield job("0", 3)
        yield None
        assert handed == [3], "the three patches were not kept back for a full batch"
        yield job("1", 2)

    handed = []
    for batch in Feed(jobs(), read, 8, 0):
        handed.append(len(batch.patches))
    assert handed == [3, 2]


def test_readers_end_with_the_iteration():
    before = threading.active_count()
    batches = iter(Feed([job(str(i), 200) for i in range(4)], read, 4, 3))
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_an_error_of_the_source_reaches_whoever_iterates():
    def jobs():
        yield job("0", 3)
        raise FormatError("stale")

    for readers in (0, 2):
        with pytest.raises(FormatError, match="stale"):
            list(Feed(jobs(), read, 4, readers))


@pytest.mark.parametrize(
    ("corner", "fine"), [((4092, 0), True), ((-3, 0), True), ((4096, 0), False), ((0, -4), False)]
)
def test_patches_outside_of_the_slide_are_refused_by_name(corner, fine):
    each = job("0", 3).patches
    each.coords[1] = corner
    if fine:
        check_inside(each)
    else:
        with pytest.raises(
            FormatError, match=r"1 of 3 patches lie outside .* patch 1 at level-0 \[.*4096 x 4096"
        ):
            check_inside(each)
