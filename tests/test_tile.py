import csv
import json
import os

import cv2
import numpy as np
import pytest
import shapely

from tests.conftest import break_blocks, without_roots_powers
from wsi_mil import store, tile
from wsi_mil.config import TileConfig
from wsi_mil.errors import SlideError, StaleOutputError
from wsi_mil.slide import open_slide


def rows(path):
    with path.open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("reader", ["openslide", "tiffslide"])
@pytest.mark.parametrize(("name", "block", "mpp_l0"), [("a.svs", 240, 0.5), ("a.tiff", 256, 0.25)])
def test_the_patches_are_those_that_cover_the_tissue(make_slide, tmp_path, reader, name, block, mpp_l0):
    """Tissue is drawn from (256, 256) to (1280, 1024): 4 x 3 patches of 256 level-0 pixels."""
    path = make_slide(name, mpp=mpp_l0, block=block)
    config = TileConfig(
        slides=path, run=tmp_path / "run", mpp=0.5, patch_px=round(256 * mpp_l0 / 0.5), min_tissue=0.5,
        tissue_mpp=4 * mpp_l0, min_area_um2=100, max_hole_um2=100, reader=reader,
    )  # fmt: skip
    with open_slide(path, reader) as slide:
        patches = tile.tile_slide(slide, config).patches
    expected = [[x, y] for y in (256, 512, 768) for x in (256, 512, 768, 1024)]
    assert patches.coords.tolist() == expected
    assert patches.geometry.patch_size_l0 == 256
    assert (patches.tissue_fraction > 0.9).all()


def test_min_tissue_is_measured_as_area(make_slide, tmp_path):
    path = make_slide(tissue=((0, 0, 640, 768),))  # 2.5 columns of 256
    with open_slide(path) as slide:
        count = {}
        for wanted in (0.0, 0.4, 0.6):
            config = TileConfig(slides=path, run=tmp_path, min_tissue=wanted, tissue_mpp=4)
            count[wanted] = len(tile.tile_slide(slide, config).patches.coords)
    assert count == {0.0: 8 * 6, 0.4: 3 * 3, 0.6: 2 * 3}


def test_min_tissue_0_keeps_the_whole_grid_of_a_slide_that_does_not_divide(make_slide, tmp_path):
    path = make_slide("a.tiff", mpp=0.499, width=1999, height=1501)
    with open_slide(path) as slide:
        patches = tile.tile_slide(slide, TileConfig(slides=path, run=tmp_path, min_tissue=0)).patches
    assert len(patches.coords) == 7 * 5
    assert patches.tissue_fraction.min() == 0


def test_a_second_run_keeps_the_figures_of_every_slide(make_slide, tmp_path):
    make_slide("a.tiff", width=768, height=512, tissue=((128, 128, 500, 400),))
    make_slide("blank.tiff", width=768, height=512, tissue=())
    make_slide("coarse.tiff", width=768, height=512, tissue=((0, 0, 768, 512),), mpp=1.0)
    make_slide("nothing.tiff", width=768, height=512, tissue=(), mpp=1.0)  # two remarks
    run = tmp_path / "run"
    config = TileConfig(slides=tmp_path / "slides", run=run, allow_upsampling=True, workers=1)
    tile.run(config)

    def table_and_total():
        rows = store.read_csv(run / "tile" / "slides.csv")
        return {row.pop("slide_id"): row for row in rows}, store.read_stage(run, "tile")["patches"]

    (first, total) = table_and_total()
    assert "enlarged" in first["coarse"]["reason"]
    assert "no tissue" in first["blank"]["reason"]
    tile.run(config)
    again, still = table_and_total()
    assert {row["status"] for row in again.values()} == {"skipped"}
    same = {name: row | {"status": "done", "seconds": first[name]["seconds"]} for name, row in again.items()}
    assert same == first
    assert still == total > 0
    (run / "tile" / "slides.csv").unlink()  # as after a kill: what the files say is there all the same
    tile.run(config)
    assert table_and_total()[0]["a"]["patches"] == first["a"]["patches"]


def test_run_writes_patches_preview_outline_and_records(make_slide, tmp_path):
    make_slide("a.svs")
    make_slide("blank.tiff", tissue=())
    run = tmp_path / "run"
    result = tile.run(TileConfig(slides=tmp_path / "slides", run=run, workers=1))
    assert not result.failed
    assert {p.name for p in (run / "patches").iterdir()} == {
        f"{name}.{suffix}" for name in ("a", "blank") for suffix in ("h5", "jpg", "geojson")
    } | {"contact_sheet.html"}
    blank = store.read_patches(run / "patches" / "blank.h5")
    assert blank.coords.shape == (0, 2), "no tissue is an answer"
    assert "no tissue found" in rows(run / "tile" / "slides.csv")["blank"]["reason"]
    outline = json.loads((run / "patches" / "a.geojson").read_text())["features"][0]
    area = shapely.from_geojson(json.dumps(outline["geometry"])).area
    assert area == pytest.approx(1024 * 768, rel=0.05)
    preview = cv2.imread(str(run / "patches" / "a.jpg"))
    assert max(preview.shape) == 1400
    record = store.read_stage(run, "tile")
    assert record is not None
    assert (record["status"], record["slides"]) == ("done", 2)


def test_run_twice_does_nothing_and_other_settings_are_refused(make_slide, tmp_path):
    make_slide("a.svs")
    config = {"slides": tmp_path / "slides", "run": tmp_path / "run", "workers": 1}
    tile.run(TileConfig(**config))
    path = tmp_path / "run" / "patches" / "a.h5"
    before = path.stat().st_mtime_ns
    assert tile.run(TileConfig(**config)).count("skipped") == 1
    assert path.stat().st_mtime_ns == before
    with pytest.raises(
        StaleOutputError, match=r"a.h5: made with other settings: overlap_px was 0 and is now 64"
    ):
        tile.run(TileConfig(**config, overlap_px=64))
    assert tile.run(TileConfig(**config, overlap_px=64, overwrite=True)).count("done") == 1
    assert store.read_patches(path).geometry.stride_l0 == 192


def test_any_number_of_workers_writes_the_same_bytes(make_slide, tmp_path):
    for i in range(3):
        make_slide(f"s{i}.tiff", tissue=((100 * i, 50, 1500, 1200),))
    outputs = []
    for workers in (1, 2):
        run = tmp_path / f"run{workers}"
        tile.run(TileConfig(slides=tmp_path / "slides", run=run, workers=workers))
        outputs.append([(run / "patches" / f"s{i}.h5").read_bytes() for i in range(3)])
    assert outputs[0] == outputs[1]


def test_one_bad_slide_never_ends_a_run(make_slide, tmp_path):
    make_slide("good.svs")
    make_slide("no_mpp.svs", mpp=None)
    make_slide("silly.tiff", mpp=264.58)
    make_slide("coarse.tiff", mpp=1.0)
    slides = tmp_path / "slides"
    (slides / "text.svs").write_text("not a slide")
    break_blocks(make_slide("unreadable.svs"))
    result = tile.run(TileConfig(slides=slides, run=tmp_path / "run", workers=1))
    reasons = {each.slide_id: each.reason for each in result.failed}
    assert set(reasons) == {"no_mpp", "silly", "coarse", "text", "unreadable"}
    assert "does not say its microns per pixel" in reasons["no_mpp"]
    assert "264.58" in reasons["silly"]
    assert "--mpp 0.5 is finer than the slide's own 1" in reasons["coarse"]
    assert "cannot be opened" in reasons["text"]
    assert "cannot be read" in reasons["unreadable"]
    assert [p.name for p in (tmp_path / "run" / "patches").glob("*.h5")] == ["good.h5"]
    assert rows(tmp_path / "run" / "tile" / "slides.csv")["silly"]["status"] == "failed"
    again = tile.run(TileConfig(slides=slides, run=tmp_path / "run", workers=1))
    assert (again.count("skipped"), again.count("failed")) == (1, 5)


def test_a_manifest_names_slides_and_gives_their_mpp(make_slide, tmp_path):
    make_slide("a.svs", mpp=None)
    make_slide("b.svs", mpp=0.25)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("slide_id,path,mpp\none,slides/a.svs,0.5\ntwo,slides/b.svs,\ngone,slides/c.svs,\n")
    result = tile.run(TileConfig(slides=manifest, run=tmp_path / "run", workers=1))
    assert [(o.slide_id, o.status) for o in result.outcomes] == [
        ("one", "done"), ("two", "done"), ("gone", "failed"),
    ]  # fmt: skip
    one = store.read_patches(tmp_path / "run" / "patches" / "one.h5")
    assert (one.geometry.mpp_l0, one.mpp_source, one.record["slide_mpp"]) == (0.5, "given", 0.5)
    two = store.read_patches(tmp_path / "run" / "patches" / "two.h5")
    assert (two.geometry.mpp_l0, two.mpp_source) == (0.25, "openslide.mpp-x")


def test_slide_mpp_overrides_for_all(make_slide, tmp_path):
    make_slide("a.tiff", mpp=264.58)
    tile.run(TileConfig(slides=tmp_path / "slides", run=tmp_path / "run", slide_mpp=0.25, workers=1))
    assert store.read_patches(tmp_path / "run" / "patches" / "a.h5").geometry.patch_size_l0 == 512


def test_the_cmu_slide_gives_the_same_patches_through_both_formats(real_slides, tmp_path):
    coords = []
    for name in ("CMU-1-Small-Region.svs", "cmu1_dicom/level-0-frames-0-30.dcm"):
        config = TileConfig(slides=real_slides / name, run=tmp_path)
        with open_slide(real_slides / name) as slide:
            coords.append(tile.tile_slide(slide, config).patches.coords)
    assert len(coords[0]) == len(coords[1]) == 49
    assert np.abs(coords[0] - coords[1]).max() <= 1


def test_a_dicom_folder_is_one_slide_named_after_the_folder(real_slides, tmp_path):
    result = tile.run(TileConfig(slides=real_slides / "cmu1_dicom", run=tmp_path / "run", workers=1))
    assert [o.slide_id for o in result.outcomes] == ["cmu1_dicom"]
    assert "YCbCr" in result.outcomes[0].facts["reason"]


def test_an_unopenable_file_is_a_slide_error(real_slides):
    with pytest.raises(SlideError):
        open_slide(real_slides / "openslide_fixtures" / "unopenable.tiff")


def test_what_cannot_be_looked_at_fails_by_name_and_the_rest_is_tiled(make_slide, tmp_path, wsi):
    slides = make_slide("a.tiff", width=768, height=512, tissue=((128, 128, 500, 400),)).parent
    (slides / "gone.svs").symlink_to("/nowhere/gone.svs")
    (slides / os.fsdecode(b"caf\xe9.svs")).write_bytes(b"x")
    (slides / "again").symlink_to(slides)
    (slides / "locked").mkdir(mode=0o000)
    earlier = slides / "run"
    (earlier / "tile").mkdir(parents=True)
    (earlier / "tile" / "stage.json").write_text("{}")
    (earlier / "heatmap.ome.tiff").write_bytes(b"x")
    with without_roots_powers():
        code, out, err = wsi("tile", "--slides", slides, "--run", tmp_path / "run", "--workers", 1)
        inspected = wsi("inspect", slides, "--json")
    assert code == 1
    assert "Traceback" not in out + err
    table = rows(tmp_path / "run" / "tile" / "slides.csv")
    assert {name: row["status"] for name, row in table.items()} == {
        "a": "done", "gone": "failed", "caf\\xe9": "failed", "locked/": "failed",
    }  # fmt: skip
    assert "a link to /nowhere/gone.svs, which is not there" in table["gone"]["reason"]
    assert "gone" in out + err
    assert "is a run folder of wsi-mil; nothing in it is taken for a slide" in err
    assert "is the same folder as" in err
    assert inspected[0] == 1
    found = json.loads(inspected[1])
    assert len(found["notes"]) == 2
    assert {each["slide_id"] for each in found["slides"] if each["problems"]} == {
        "gone", "caf\\xe9", "locked/"
    }  # fmt: skip
