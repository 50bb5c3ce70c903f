"""The resolution that is asked for: as a magnification, finer than the slide, and where it came from."""

import json

import numpy as np
import pytest

from pipelines.pyramid import write_pyramid
from tests.test_resolution import APERIO, write
from tests.test_tile import rows
from tests.tiffs import texture, write_tiff
from wsi_mil import blocks, geometry, store, tile
from wsi_mil.config import TileConfig
from wsi_mil.errors import ConfigError, SlideError
from wsi_mil.geometry import PatchGeometry
from wsi_mil.slide import open_slide


@pytest.mark.parametrize(("magnification", "mpp"), [(20, 0.5), (40, 0.25), (10, 1.0), (2.5, 4.0)])
def test_a_magnification_is_ten_through_mpp_and_is_not_stored(tmp_path, magnification, mpp):
    config = TileConfig(slides=tmp_path, run=tmp_path, magnification=magnification)
    assert (config.mpp, config.magnification) == (mpp, None)
    assert config == TileConfig(slides=tmp_path, run=tmp_path, mpp=mpp)


@pytest.mark.parametrize("mpp", [0.5, 0.25])
def test_a_magnification_and_an_mpp_are_refused_even_where_they_agree(wsi, tmp_path, mpp):
    words = f"--mpp {mpp:g} and --magnification 20: either says the resolution; give one."
    with pytest.raises(ConfigError, match=words):
        TileConfig(slides=tmp_path, run=tmp_path, magnification=20, mpp=mpp)
    base = ("tile", "--slides", tmp_path, "--run", tmp_path / "run", "--magnification", 20)
    assert wsi(*base, "--mpp", mpp) == (2, "", f"wsi-mil: {words} ")
    (tmp_path / "p.toml").write_text(f"[tile]\nmpp = {mpp}\n")
    assert wsi(*base, "--config", tmp_path / "p.toml")[0] == 2
    code, out, _ = wsi(*base, "--print-config")
    assert (code, "mpp = 0.5" in out, "magnification =" in out) == (0, True, False)


@pytest.mark.parametrize("magnification", [0, -20, 1.9, 201, float("nan")])
def test_a_magnification_that_cannot_be_is_refused(tmp_path, magnification):
    with pytest.raises(ConfigError, match=r"--magnification .*: must lie between 2 and 200"):
        TileConfig(slides=tmp_path, run=tmp_path, magnification=magnification)


def test_no_file_of_a_run_holds_a_magnification_that_was_given(tmp_path, make_slide):
    make_slide("a.svs")
    tile.run(TileConfig(slides=tmp_path / "slides", run=tmp_path / "run", magnification=10, workers=1))
    patches = store.read_patches(tmp_path / "run" / "patches" / "a.h5")
    assert (patches.geometry.mpp, patches.record["mpp"]) == (1.0, 1.0)
    assert "magnification" not in patches.record
    stage = json.loads((tmp_path / "run" / "tile" / "stage.json").read_text())
    assert stage["config"]["magnification"] is None


@pytest.mark.parametrize(("mpp", "fits"), [(0.5, True), (0.4901, True), (0.4899, False), (0.25, False)])
def test_finer_than_the_slide_by_more_than_a_fiftieth_is_refused(mpp, fits):
    size = {"width_l0": 4000, "height_l0": 3000, "mpp_l0": 0.5, "patch_px": 256}
    if not fits:
        with pytest.raises(SlideError, match=r"finer than the slide's own 0.5 um.*or --allow-upsampling"):
            PatchGeometry.plan(mpp=mpp, **size)
    plan = PatchGeometry.plan(mpp=mpp, allow_upsampling=True, **size)
    assert plan.patch_size_l0 == pytest.approx(256 * mpp / 0.5)


@pytest.mark.parametrize("reader", ["openslide", "tiffslide"])
@pytest.mark.parametrize("mpp", [0.25, 0.4, 0.17])
def test_enlarged_pixels_lie_where_they_belong_and_the_fast_path_agrees(tmp_path, reader, mpp):
    """On a linear ramp each output pixel must hold the ramp's value at its own centre."""
    x, y = np.meshgrid(np.arange(600), np.arange(500))
    image = np.rint(np.stack([x * 0.4, y * 0.45, np.full_like(x, 90.0)], axis=2)).astype(np.uint8)
    path = tmp_path / "a.tiff"
    write_pyramid(path, image, 0.5, compression="deflate", factor=64)
    with open_slide(path, reader) as slide:
        patch = slide.read(111, 57, 128, mpp).astype(float)
        centres = (np.arange(128) + 0.5) * mpp / 0.5 - 0.5
        assert np.abs(patch[4:-4, 4:-4, 0] - (111 + centres)[None, 4:-4] * 0.4).max() < 1.1
        assert np.abs(patch[4:-4, 4:-4, 1] - (57 + centres)[4:-4, None] * 0.45).max() < 1.1
        plan = PatchGeometry.plan(
            width_l0=600, height_l0=500, mpp_l0=0.5, mpp=mpp, patch_px=64, allow_upsampling=True
        )
        coords, notes = geometry.grid_l0(plan), []
        got = np.concatenate([b.patches for b in blocks.stream(slide, coords, plan, note=notes.append)])
        wanted = np.stack([slide.read(x, y, 64, mpp) for x, y in coords.tolist()])
    assert not notes
    assert np.abs(got.astype(int) - wanted).max() <= 1


def test_a_coarse_slide_is_enlarged_only_when_asked_and_that_is_recorded(tmp_path, make_slide):
    make_slide("a.tiff", mpp=1.0)
    config = {"slides": tmp_path / "slides", "run": tmp_path / "run", "workers": 1}
    (failed,) = tile.run(TileConfig(**config)).failed
    assert "--mpp 0.5 is finer than the slide's own 1 um per pixel" in failed.reason
    assert not tile.run(TileConfig(**config, allow_upsampling=True)).failed
    patches = store.read_patches(tmp_path / "run" / "patches" / "a.h5")
    assert patches.record["allow_upsampling"] is True
    assert patches.geometry.patch_size_l0 == 128
    reason = rows(tmp_path / "run" / "tile" / "slides.csv")["a"]["reason"]
    assert reason == "enlarged from 1 um per pixel, which adds no detail"


def test_the_sources_that_disagree_fail_that_slide_and_the_manifest_settles_it(tmp_path):
    write(tmp_path / "a.svs", f"{APERIO}|MPP = 0.5", (40_000, 40_000))
    result = tile.run(TileConfig(slides=tmp_path / "a.svs", run=tmp_path / "run", workers=1))
    assert "contradicts itself" in result.failed[0].reason
    manifest = tmp_path / "m.csv"
    manifest.write_text("slide_id,path,mpp\na,a.svs,0.25\n")
    result = tile.run(TileConfig(slides=manifest, run=tmp_path / "run", patch_px=32, workers=1))
    assert not result.failed
    row = rows(tmp_path / "run" / "tile" / "slides.csv")["a"]
    assert (row["mpp_l0"], row["mpp_source"]) == ("0.25", "given")
    assert "0.25 um per pixel was given; the file says 0.5 (openslide.mpp-x)" in row["reason"]


def test_levels_that_were_halved_over_and_over_have_whole_scales(tmp_path):
    path = write_tiff(tmp_path / "a.tiff", texture(64, 64), kind="deflate", block=(64, 64))
    with open_slide(path) as slide:
        for width, height in ((2220, 2967), (2033, 1525), (100_001, 77_777)):
            slide.width_l0, slide.height_l0 = width, height
            sizes = [(width >> k, height >> k) for k in range(12) if min(width, height) >> k >= 16]
            slide.level_sizes = sizes
            slide.downsamples = tuple((width / w + height / h) / 2 for w, h in sizes)
            scales = [slide.level_scale(k) for k in range(len(sizes))]
            assert scales == [(2.0**-k, 2.0**-k) for k in range(len(sizes))]
