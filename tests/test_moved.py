"""Slides that were moved after `tile`: found by id and fingerprint, in --slides or at a place noted anew."""

import dataclasses
import shutil
from pathlib import Path

import fsspec
import pytest

from tests.test_embed import TINY, weights
from tests.test_heatmap import draw
from tests.test_heatmap import run as drawn_run
from wsi_mil import embed, report, store, tile
from wsi_mil.config import EmbedConfig, HeatmapConfig, ReportConfig, TileConfig, ViewConfig
from wsi_mil.errors import ConfigError, LabelError, SlideError, SlideMissingError
from wsi_mil.locate import SlideFinder, slide_finder
from wsi_mil.slide import fingerprint, has_fingerprint
from wsi_mil.view.run import open_viewer

__all__ = ["drawn_run", "weights"]  # fixtures


@pytest.fixture
def tiled(make_slide, tmp_path):
    """A run of two small slides whose folder was moved after tiling, and where it is now."""
    for name in ("a.tiff", "b.tiff"):
        make_slide(name, tissue=((256, 256, 800, 800),) if name == "a.tiff" else ((0, 0, 600, 600),))
    run = tmp_path / "run"
    assert not tile.run(TileConfig(slides=tmp_path / "slides", run=run, workers=1)).failed
    (tmp_path / "slides").rename(tmp_path / "moved")
    return run, tmp_path / "moved"


def patches_of(run, slide_id="a"):
    return store.read_patches(store.patches_path(run, slide_id))


def features_of(run, slide_id="a"):
    return store.read_features(store.features_path(run, TINY, slide_id))


def test_tile_notes_the_new_place_and_nothing_becomes_stale(tiled, weights, tmp_path):
    run, moved = tiled
    config = EmbedConfig(run=run, encoder=TINY, weights=weights)
    reasons = {each.slide_id: each.reason for each in embed.run(config).failed}
    assert set(reasons) == {"a", "b"}
    assert f"slide a is not found: {tmp_path}/slides/a.tiff: no such file" in reasons["a"]
    assert "--slides" in reasons["a"]
    before = patches_of(run)
    result = tile.run(TileConfig(slides=moved, run=run, workers=1))
    assert result.count("skipped") == 2
    rows = {row["slide_id"]: row for row in store.read_csv(run / "tile" / "slides.csv")}
    assert rows["a"]["reason"] == f"the slide was at {before.slide_path} and is at {moved}/a.tiff: noted"
    after = patches_of(run)
    assert after.slide_path == moved / "a.tiff"
    assert (after.digest, after.record, after.notes) == (before.digest, before.record, before.notes)
    assert all(not each.facts["reason"] for each in tile.run(TileConfig(slides=moved, run=run)).outcomes)
    assert embed.run(config).count("done") == 2
    assert features_of(run).slide_path == moved / "a.tiff"
    assert features_of(run).head.slide_fingerprint == fingerprint(moved / "a.tiff")


def test_tile_notes_the_place_for_further_resolutions_and_not_for_another_name_of_it(make_slide, tmp_path):
    make_slide()
    config = TileConfig(slides=tmp_path / "slides", run=tmp_path / "run", context_mpp=(1.0,), workers=1)
    tile.run(config)
    (tmp_path / "link").symlink_to(tmp_path / "slides")
    result = tile.run(dataclasses.replace(config, slides=tmp_path / "link"))
    assert (result.count("skipped"), result.outcomes[0].facts["reason"]) == (1, "")
    (tmp_path / "link").unlink()
    (tmp_path / "slides").rename(tmp_path / "moved")
    assert tile.run(dataclasses.replace(config, slides=tmp_path / "moved")).count("skipped") == 1
    context = store.context_run(tmp_path / "run", 1.0)
    assert (
        patches_of(context).slide_path == patches_of(tmp_path / "run").slide_path == tmp_path / "moved/a.tiff"
    )


def test_embed_goes_on_with_slides_elsewhere_and_the_features_say_where(tiled, weights, tmp_path):
    run, moved = tiled
    (moved / "a.tiff").rename(moved / "renamed.tiff")
    (tmp_path / "m.csv").write_text("slide_id,path\na,moved/renamed.tiff\n")
    config = EmbedConfig(run=run, encoder=TINY, weights=weights)
    result = embed.run(dataclasses.replace(config, slides=tmp_path / "m.csv"))
    (failed,) = result.failed
    assert (
        f"slide b is not found: not in --slides {tmp_path}/m.csv; {tmp_path}/slides/b.tiff" in failed.reason
    )
    assert features_of(run).slide_path == moved / "renamed.tiff"
    result = embed.run(dataclasses.replace(config, slides=moved))  # a lies there under another name
    assert (result.count("done"), result.count("skipped")) == (1, 1)
    shutil.copytree(moved, tmp_path / "slides")
    (tmp_path / "slides" / "renamed.tiff").rename(tmp_path / "slides" / "a.tiff")
    found = slide_finder(tmp_path / "m.csv").find(
        "b", [tmp_path / "slides/b.tiff"], fingerprint(moved / "b.tiff")
    )
    assert found == tmp_path / "slides" / "b.tiff", (
        "what --slides does not list is looked for at its old place"
    )


def test_a_slide_of_the_same_name_with_other_bytes_is_refused(tiled, weights):
    run, moved = tiled
    shutil.copy(moved / "b.tiff", moved / "a.tiff")
    result = embed.run(EmbedConfig(run=run, encoder=TINY, weights=weights, slides=moved))
    (failed,) = result.failed
    assert f"{moved}/a.tiff: its bytes are not those that were tiled: the file was replaced" in failed.reason


def test_several_files_of_one_id_are_told_apart_by_their_bytes_or_refused(tiled, tmp_path):
    run, moved = tiled
    (moved / "more").mkdir()
    shutil.copy(moved / "b.tiff", moved / "more" / "a.tiff")
    finder, patches = slide_finder(moved), patches_of(run)
    for order in (1, -1):
        finder = dataclasses.replace(finder, listed={"a": finder.listed["a"][::order]})
        assert finder.find("a", [patches.slide_path], patches.slide_fingerprint) == moved / "a.tiff"
    with pytest.raises(SlideError, match=r"several files of this id \(.*/a.tiff, .*/a.tiff\).*manifest.csv"):
        finder.find("a", [patches.slide_path], "")


def test_a_dicom_folder_is_found_by_its_name(tmp_path):
    for name in ("before", "after"):
        (tmp_path / name / "series").mkdir(parents=True)
        (tmp_path / name / "series" / "1.dcm").write_bytes(b"DICM" * 1000)
    old, new = (tmp_path / name / "series" / "1.dcm" for name in ("before", "after"))
    wanted = fingerprint(old)
    shutil.rmtree(tmp_path / "before")
    assert slide_finder(tmp_path / "after").find("series", [old], wanted) == new


def test_a_slide_that_was_tiled_behind_a_url_is_found_on_disk_and_the_other_way_round(make_slide):
    path = make_slide()
    url = "memory://moved/a.tiff"
    fsspec.filesystem("memory").pipe("/moved/a.tiff", path.read_bytes())
    assert fingerprint(path) != fingerprint(url)
    for here, there in ((path, url), (url, path)):
        assert has_fingerprint(here, fingerprint(there))
        finder = SlideFinder(Path("moved"), {"a": (here,)})
        assert finder.find("a", ["memory://gone/a.tiff"], fingerprint(there)) == here
    with pytest.raises(SlideMissingError, match=r"memory://gone/a.tiff: no such file"):
        SlideFinder().find("a", ["memory://gone/a.tiff"], fingerprint(url))


def test_what_is_no_place_of_slides_is_refused_before_any_work(tiled, wsi, tmp_path):
    run, _ = tiled
    (tmp_path / "wrong.csv").write_text("id,file\na,a.tiff\n")
    (tmp_path / "notes.txt").write_text("no slide")
    with pytest.raises(LabelError, match=r"wrong.csv: no column slide_id and path; found id, file"):
        slide_finder(tmp_path / "wrong.csv")
    with pytest.raises(ConfigError, match=r"--slides .*notes.txt: 1 files, none of them a slide"):
        slide_finder(tmp_path / "notes.txt")
    for command in ("embed", "report", "view"):
        code, _, err = wsi(command, "--run", run, "--slides", tmp_path / "gone")
        assert (code, f"--slides {tmp_path}/gone: no such folder or file" in err) == (2, True), err
    with pytest.raises(ConfigError, match=r"--slides \('a',\): wanted a folder.*`heatmap --only`"):
        HeatmapConfig(run=run, slides=("a",))


def test_slides_as_it_was_before_only_is_refused_in_clear_words(drawn_run):
    with pytest.raises(ConfigError, match=r"--slides a: no such folder or file.*give --only a"):
        draw(drawn_run, slides="a")


def test_a_heatmap_drawn_without_its_slide_is_drawn_again_when_that_is_back(drawn_run, tmp_path):
    (tmp_path / "slides").rename(tmp_path / "moved")
    folder = store.heatmap_folder(drawn_run, "m", "a")
    first = draw(drawn_run, only=("a",)).outcomes[0]
    assert (first.status, "drawn without the slide" in first.facts["reason"]) == ("done", True)
    assert not store.heatmap_has_picture(folder)
    again = draw(drawn_run, only=("a",)).outcomes[0]
    assert (again.status, "drawn without the slide" in again.facts["reason"]) == ("skipped", True)
    grey = (folder / "overlay.jpg").read_bytes()
    assert draw(drawn_run, only=("a",), slides=tmp_path / "moved").count("done") == 1
    assert (folder / "top_patches.jpg").exists()
    assert (folder / "overlay.jpg").read_bytes() != grey
    facts = store.read_heatmap(folder / "heatmap.zarr").facts
    assert (facts["slide_path"], facts["note"]) == (str(tmp_path / "moved" / "a.tiff"), "")
    assert draw(drawn_run, only=("a",)).count("skipped") == 1, "it has its picture"
    assert draw(drawn_run, only=("a",), slides=tmp_path / "moved", overwrite=True).count("done") == 1


def test_a_grey_heatmap_of_an_earlier_version_is_known_by_its_note(drawn_run, tmp_path):
    (tmp_path / "slides").rename(tmp_path / "moved")
    draw(drawn_run, only=("a",))
    path = store.heatmap_folder(drawn_run, "m", "a") / "heatmap.zarr"
    heatmap = store.read_heatmap(path)
    del heatmap.facts["slide_path"]
    store.write_heatmap(path, heatmap)
    assert draw(drawn_run, only=("a",), slides=tmp_path / "moved").count("done") == 1


def test_a_slide_that_is_there_and_cannot_be_read_fails_by_name(drawn_run, tmp_path):
    (tmp_path / "slides" / "a.tiff").write_bytes(b"no slide")
    (tmp_path / "slides" / "b.tiff").unlink()
    result = draw(drawn_run)
    (failed,) = result.failed
    assert (failed.slide_id, "a.tiff: cannot be opened as a slide" in failed.reason) == ("a", True)
    assert not store.heatmap_folder(drawn_run, "m", "a").exists()


def test_a_heatmap_follows_the_place_that_tile_noted(tiled, weights, drawn_run, tmp_path):
    """The features have the old place; the patches the new one."""
    run, moved = tiled
    patches = dataclasses.replace(patches_of(run), slide_path=moved / "a.tiff")
    store.write_patches(store.patches_path(drawn_run, "a"), patches)
    shutil.rmtree(tmp_path / "slides")
    result = draw(drawn_run, only=("a",))
    assert (result.count("done"), result.outcomes[0].facts["reason"]) == (1, "")


def test_report_and_view_show_slides_that_were_moved(tiled):
    run, moved = tiled
    report.run(ReportConfig(run=run))
    assert not (run / "report" / "thumbnails" / "a.jpg").exists()
    report.run(ReportConfig(run=run, slides=moved))
    assert (run / "report" / "thumbnails" / "a.jpg").exists()
    with open_viewer(ViewConfig(run=run)) as viewer:
        assert "slide a is not found" in viewer.slides.describe("a")["problem"]
    with open_viewer(ViewConfig(run=run, slides=moved)) as viewer:
        assert viewer.slides.describe("a")["problem"] == ""
    shutil.copy(moved / "b.tiff", moved / "a.tiff")
    with open_viewer(ViewConfig(run=run, slides=moved)) as viewer:
        assert "the file was replaced" in viewer.slides.describe("a")["problem"]
