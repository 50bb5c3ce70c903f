"""Colours brought to sRGB through a slide's own ICC profile: by hand, by Slide, by blocks, in every file."""

import imagecodecs
import numpy as np
import pytest
from PIL import ImageCms

from tests.test_remote import tiny_weights
from tests.tiffs import texture, write_tiff
from wsi_mil import blocks, embed, geometry, models, store, tile
from wsi_mil.config import EmbedConfig, TileConfig
from wsi_mil.errors import FormatError, SlideError
from wsi_mil.geometry import PatchGeometry
from wsi_mil.slide import open_slide

READERS = ("openslide", "tiffslide")
ADOBE = imagecodecs.cms_profile("adobergb")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# What the Adobe RGB (1998) encoding and IEC 61966-2-1 publish: linear RGB to XYZ (D65), gamma 563/256.
ADOBE_TO_XYZ = np.array([
    [0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134],
])  # fmt: skip
SRGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def by_hand(pixels):
    """Adobe RGB to sRGB, from the two standards; colours that sRGB lacks are cut off."""
    linear = (pixels / 255.0) ** (563 / 256) @ (np.linalg.inv(SRGB_TO_XYZ) @ ADOBE_TO_XYZ).T
    linear = np.clip(linear, 0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * curved)


@pytest.mark.parametrize("reader", READERS)
def test_adobe_rgb_becomes_srgb_as_the_standards_say(tmp_path, reader):
    image = texture(300, 260)
    path = write_tiff(tmp_path / "a.tiff", image, kind="deflate", icc=ADOBE)
    with open_slide(path, reader) as slide:
        assert (slide.profile, slide.icc) == ("Adobe RGB (compatible)", "none")
        assert (slide.read(0, 0, 256, 0.5) == image[:256, :256]).all(), "off by default"
    with open_slide(path, reader, icc="srgb") as slide:
        patch, thumbnail = slide.read(0, 0, 256, 0.5), slide.thumbnail(0.5)
    assert np.abs(patch - by_hand(image[:256, :256])).max() <= 2
    assert np.abs(patch.astype(int) - image[:256, :256]).max() > 10, "the colours do change"
    assert (thumbnail[:256, :256] == patch).all()


@pytest.mark.parametrize("reader", READERS)
def test_outside_of_the_slide_is_background_and_no_colour_of_it(tmp_path, reader):
    path = write_tiff(tmp_path / "a.tiff", texture(300, 260), kind="deflate", icc=ADOBE)
    with open_slide(path, reader, icc="srgb") as slide:
        assert (slide.read(-100, -100, 100, 0.5) == 255).all()


@pytest.mark.parametrize("reader", READERS)
def test_an_srgb_profile_changes_nothing(tmp_path, reader):
    image = texture(300, 260)
    path = write_tiff(tmp_path / "a.tiff", image, kind="deflate", icc=SRGB)
    with open_slide(path, reader, icc="srgb") as slide:
        assert np.abs(slide.read(0, 0, 256, 0.5).astype(int) - image[:256, :256]).max() <= 1


def test_a_slide_without_a_profile_or_with_a_broken_one_is_refused(tmp_path):
    plain = write_tiff(tmp_path / "plain.tiff", texture(300, 260), kind="deflate")
    with pytest.raises(SlideError, match="has no ICC profile, so --icc srgb"):
        open_slide(plain, icc="srgb")
    for name, profile in (("cut", ADOBE[:200]), ("lab", _lab())):
        path = write_tiff(tmp_path / f"{name}.tiff", texture(300, 260), kind="deflate", icc=profile)
        with open_slide(path) as slide:
            assert slide.icc == "none", "only who asks for colours is refused"
        with pytest.raises(SlideError, match="ICC profile"):
            open_slide(path, icc="srgb")


def _lab():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def plan(slide, mpp, patch_px=100):
    return PatchGeometry.plan(
        width_l0=slide.width_l0, height_l0=slide.height_l0, mpp_l0=slide.mpp_l0, mpp=mpp, patch_px=patch_px
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.svs", "jpeg-422"), ("a.tiff", "jpeg-420"), ("a.tiff", "deflate"), ("a.tiff", "webp")],
)
@pytest.mark.parametrize("mpp", [0.5, 1.0, 0.7])
def test_the_fast_path_agrees_with_slide(tmp_path, name, kind, mpp):
    empty = frozenset({2} if kind != "webp" else ())  # tiffslide, which reads WebP, shows them black
    path = write_tiff(tmp_path / name, texture(520, 400), kind=kind, icc=ADOBE, empty=empty)
    with open_slide(path, icc="srgb") as slide, open_slide(path) as as_is:
        geometry_ = plan(slide, mpp)
        coords = np.concatenate([geometry.grid_l0(geometry_), [[-30, -30], [470, 350]]])
        notes = []
        got = np.concatenate([b.patches for b in blocks.stream(slide, coords, geometry_, note=notes.append)])
        assert not notes, "the fast path serves it"
        wanted = np.stack([slide.read(x, y, 100, mpp) for x, y in coords.tolist()])
        other = np.stack([as_is.read(x, y, 100, mpp) for x, y in coords.tolist()])
    difference = np.abs(got.astype(int) - wanted)
    assert difference.max() <= (0 if mpp == 0.5 and kind != "webp" else 4)
    assert np.abs(got.astype(int) - other).mean() > 2


def test_tile_embed_and_heatmap_keep_to_what_tile_was_asked(tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    write_tiff(slides / "a.svs", texture(1024, 768), kind="jpeg-422", icc=ADOBE)
    weights, features = tiny_weights(tmp_path), {}
    for icc in ("none", "srgb"):
        run = tmp_path / icc
        assert not tile.run(TileConfig(slides=slides, run=run, icc=icc, min_tissue=0, workers=1)).failed
        patches = store.read_patches(run / "patches" / "a.h5")
        assert (patches.icc, patches.record["icc"]) == (icc, icc)
        assert not embed.run(EmbedConfig(run=run, encoder="test_resnet", weights=weights)).failed
        features[icc] = store.read_features(run / "features" / "test_resnet" / "a.h5")
        assert features[icc].head.icc == icc
        assert features[icc].mpp_source == "openslide.mpp-x"
    assert (features["none"].coords == features["srgb"].coords).all()
    assert np.abs(features["none"].features - features["srgb"].features).max() > 0.01
    assert "icc" not in features["none"].identity, "models that were trained before it stay usable"
    with pytest.raises(FormatError, match="icc None, these are of icc 'srgb'"):
        models.check_identity({"identity": features["none"].identity}, features["srgb"].identity, "a")
    with pytest.raises(FormatError, match="icc 'srgb', these are of icc None"):
        models.check_identity({"identity": features["srgb"].identity}, features["none"].identity, "a")
    with open_slide(slides / "a.svs") as slide, pytest.raises(SlideError, match="opened with icc 'none'"):
        embed.embed_slide(slide, patches, encoder(weights))


def encoder(weights):
    from wsi_mil.encoders import load_encoder

    return load_encoder("test_resnet", weights)


def test_a_slide_without_a_profile_fails_by_itself(tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    write_tiff(slides / "a.svs", texture(1024, 768), kind="jpeg-422", icc=ADOBE)
    write_tiff(slides / "b.svs", texture(1024, 768), kind="jpeg-422")
    result = tile.run(TileConfig(slides=slides, run=tmp_path / "run", icc="srgb", workers=1))
    assert [each.slide_id for each in result.failed] == ["b"]
    assert "has no ICC profile" in result.failed[0].reason
