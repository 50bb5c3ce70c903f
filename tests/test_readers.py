import dataclasses
import os
import signal
import threading
import time
from collections import deque

import numpy as np
import pytest

from pipelines.pyramid import write_pyramid
from tests.conftest import draw_slide
from tests.test_parallel import is_running
from wsi_mil import parallel, store
from wsi_mil.errors import FormatError
from wsi_mil.geometry import PatchGeometry, grid_l0
from wsi_mil.parallel import Limits
from wsi_mil.readers import Feed, Job, Readers, ReadSettings, check_inside
from wsi_mil.slide import fingerprint, open_slide

PX = 64


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    for k in range(3):
        image = draw_slide(1024, 768, ((0, 0, 1024, 256 * (k + 1)),))
        write_pyramid(folder / f"{k}.tiff", image, 0.5)
    return folder


def job(slides, name, count=None, px=PX):
    path = slides / f"{name}.tiff"
    with open_slide(path) as slide:
        plan = PatchGeometry.plan(
            width_l0=slide.width_l0, height_l0=slide.height_l0, mpp_l0=slide.mpp_l0, mpp=0.5, patch_px=px
        )
    coords = grid_l0(plan)[:count]
    patches = store.Patches(
        slide_id=name, slide_path=path, reader="openslide", mpp_source="given", geometry=plan, coords=coords,
        tissue_fraction=np.ones(len(coords), np.float32), record={}, slide_fingerprint=fingerprint(path),
    )  # fmt: skip
    return Job.of(patches)


class Given:
    """A source of jobs; None among them says that there is none now."""

    def __init__(self, *jobs):
        self.jobs = deque(jobs)

    @property
    def over(self):
        return not self.jobs

    def take(self):
        return self.jobs.popleft()


def plan(count=2, threads=1, px=PX):
    settings = ReadSettings(threads, 2 if threads > 1 else 1)
    return Readers(count, 2 * count + 3, 16, px, settings, lambda _: Limits(60, 0))


def read_all(feed, each_batch=lambda batch: None):
    """Iterate to the end; check every patch against the slide; return {slide id: its rows}, in order."""
    rows, ended, sizes = {}, [], []
    for batch in feed:
        each_batch(batch)
        sizes.append(batch.count)
        assert len({piece.shape[1:] for piece in batch.pieces}) <= 1
        patches = np.concatenate(batch.pieces) if batch.pieces else []
        at = 0
        for each, part in batch.rows:
            assert each.slide_id not in ended, "nothing comes after a slide's end"
            for row in part.tolist():
                if row >= 0:
                    rows.setdefault(each.slide_id, []).append(row)
                    if row % 7 == 0:
                        assert (patches[at] == seen_by_slide(each, row)).all()
                at += 1
        assert at == batch.count
        ended += [each.slide_id for each in batch.ends]
        feed.release(batch)
    return rows, ended, sizes


def seen_by_slide(job, row):
    geometry = job.patches.geometry
    with open_slide(job.patches.slide_path) as slide:
        x, y = job.patches.coords[row].tolist()
        return slide.read(x, y, geometry.patch_px, geometry.mpp)


@pytest.mark.parametrize(("count", "threads"), [(1, 1), (1, 2), (2, 1)])
def test_batches_cross_from_slide_to_slide_and_nothing_is_lost(slides, count, threads):
    jobs = [job(slides, "0"), job(slides, "1", 0), job(slides, "2", 21)]
    rows, ended, sizes = read_all(Feed(Given(*jobs), plan(count, threads), 50))
    assert {name: sorted(each) for name, each in rows.items()} == {"0": [*range(192)], "2": [*range(21)]}
    assert sorted(ended) == ["0", "1", "2"]
    assert [size for size in sizes if size][:-1] == [50] * 4, "full batches, and one rest at the very end"


def test_a_slide_that_cannot_be_read_ends_alone(slides):
    missing, replaced = job(slides, "0"), job(slides, "1")
    path = slides / "away.tiff"
    object.__setattr__(missing.patches, "slide_path", path)
    object.__setattr__(replaced.patches, "slide_fingerprint", "blake2b-128:0")
    good = job(slides, "2")
    rows, ended, _ = read_all(Feed(Given(missing, replaced, good), plan(), 32))
    assert sorted(rows) == ["2"]
    assert sorted(ended) == ["0", "1", "2"]
    assert f"{path}: no such file" in missing.failure.reason
    assert "the file was replaced" in replaced.failure.reason
    assert good.failure is None


def test_a_slide_that_failed_elsewhere_is_not_read_on(slides):
    one, other = job(slides, "0"), job(slides, "1", 4)
    seen = []

    def fails(batch):
        seen.append(batch)
        one.failure = parallel.Outcome(slide_id="0", status="failed", reason="the disk is full")

    rows, ended, _ = read_all(Feed(Given(one, other), plan(1), 8), fails)
    assert len(rows["0"]) < 192
    assert sorted(rows["1"]) == [0, 1, 2, 3]
    assert sorted(ended) == ["0", "1"]


def test_patches_of_another_size_never_share_a_batch(slides):
    jobs = [job(slides, "0", 30), job(slides, "1", 30, px=32), job(slides, "2", 30)]
    rows, _, _ = read_all(Feed(Given(*jobs), plan(1), 64))
    assert {name: len(each) for name, each in rows.items()} == {"0": 30, "1": 30, "2": 30}


def test_what_was_read_is_handed_out_before_a_wait(slides):
    handed = []

    class Waits(Given):
        def take(self):
            found = super().take()
            if found is None and not handed:
                self.jobs.appendleft(None)  # nothing before the three patches are out
            return found

    feed = Feed(Waits(job(slides, "0", 3), None, job(slides, "1", 2)), plan(1), 8)
    _, _, sizes = read_all(feed, handed.append)
    assert [size for size in sizes if size] == [3, 2]


def test_a_reader_that_is_killed_is_forgiven_once(slides):
    jobs = [job(slides, str(k)) for k in range(3)]
    feed = Feed(Given(*jobs), plan(1), 16)
    killed = []

    def kill(batch):
        if not killed and batch.rows:
            killed.extend(readers_here())
            os.kill(killed[0], signal.SIGKILL)

    rows, ended, _ = read_all(feed, kill)
    assert killed
    assert {name: sorted(each) for name, each in rows.items()} == {str(k): [*range(192)] for k in range(3)}
    assert sorted(ended) == ["0", "1", "2"]
    assert not any(each.failure for each in jobs)


def test_a_slide_whose_readers_are_always_killed_fails(slides):
    jobs = [job(slides, "0"), job(slides, "1", 5)]

    class Waits(Given):
        def take(self):
            return super().take()

    slow = dataclasses.replace(plan(1), slots=1)
    feed = Feed(Waits(*jobs), slow, 16)
    for batch in feed:
        if any(each is jobs[0] for each, _ in batch.rows):
            for pid in readers_here():
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.3)
        feed.release(batch)
    assert "its process was killed" in jobs[0].failure.reason
    assert jobs[0].failure.reason.endswith(", twice")


def readers_here():
    """The processes that this one has started and that run."""
    found = [path.read_text().split() for path in _tasks()]
    return [int(each) for some in found for each in some if is_running(int(each))]


def _tasks():
    from pathlib import Path

    return list(Path("/proc/self/task").glob("*/children"))


def test_readers_and_threads_end_with_the_iteration(slides):
    parallel.end_idle()
    before = threading.active_count(), len(readers_here())
    feed = Feed(Given(*(job(slides, str(k)) for k in range(3))), plan(2), 4)
    batches = iter(feed)
    next(batches)
    batches.close()
    parallel.end_idle()
    assert (threading.active_count(), len(readers_here())) == before


def test_an_error_of_the_source_reaches_whoever_iterates(slides):
    class Breaks(Given):
        over = False

        def take(self):
            if self.jobs:
                return super().take()
            raise FormatError("stale")

    with pytest.raises(FormatError, match="stale"):
        list(Feed(Breaks(job(slides, "0", 3)), plan(1), 4))


@pytest.mark.parametrize(
    ("corner", "fine"), [((1020, 0), True), ((-3, 0), True), ((1024, 0), False), ((0, -64), False)]
)
def test_patches_outside_of_the_slide_are_refused_by_name(slides, corner, fine):
    each = job(slides, "0", 3).patches
    each.coords[1] = corner
    if fine:
        check_inside(each)
    else:
        with pytest.raises(
            FormatError, match=r"1 of 3 patches lie outside .* patch 1 at level-0 \[.*1024 x 768"
        ):
            check_inside(each)
