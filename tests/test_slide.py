"""One suite over both readers, on slides whose pixels are known."""

import numpy as np
import pytest
import tifffile

from pipelines.pyramid import write_pyramid
from wsi_mil.errors import SlideError
from wsi_mil.slide import detect, dicom_series, open_slide

READERS = ("openslide", "tiffslide")
FILES = (("a.svs", 240), ("a.tiff", 256))


def noise(width=1000, height=800):
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("name", "block"), FILES)
def test_native_pixels_are_the_files_own(tmp_path, reader, name, block):
    image = noise()
    write_pyramid(tmp_path / name, image, 0.5, block=block, compression="deflate")
    with open_slide(tmp_path / name, reader) as slide:
        assert (slide.width_l0, slide.height_l0, slide.mpp_l0) == (1000, 800, 0.5)
        assert slide.mpp_source == f"{reader}.mpp-x"
        assert (slide.read(37, 101, 256, 0.5) == image[101:357, 37:293]).all()


@pytest.mark.parametrize("reader", READERS)
def test_a_whole_number_reduction_averages_pixels(tmp_path, reader):
    image = noise()
    write_pyramid(tmp_path / "a.tiff", image, 0.25, compression="deflate", factor=8)
    with open_slide(tmp_path / "a.tiff", reader) as slide:
        patch = slide.read(64, 32, 128, 0.5)
    expected = image[32:288, 64:320].reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    assert np.abs(patch - expected).max() <= 0.5


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("mpp", [0.5005, 0.6, 0.8, 1.3])
def test_any_other_ratio_puts_every_pixel_where_it_belongs(tmp_path, reader, mpp):
    """On a linear ramp each output pixel must hold the ramp's value at its own centre."""
    x, y = np.meshgrid(np.arange(1200), np.arange(900))
    image = np.stack([x * 0.2, y * 0.25, np.full_like(x, 90.0)], axis=2)
    write_pyramid(tmp_path / "a.tiff", np.rint(image).astype(np.uint8), 0.5, compression="deflate", factor=64)
    with open_slide(tmp_path / "a.tiff", reader) as slide:
        patch = slide.read(111, 57, 200, mpp).astype(float)
    centres = (np.arange(200) + 0.5) * mpp / 0.5 - 0.5
    assert np.abs(patch[..., 0] - (111 + centres)[None, :] * 0.2).max() < 1.1
    assert np.abs(patch[..., 0].mean(axis=0) - (111 + centres) * 0.2).mean() < 0.3
    assert np.abs(patch[..., 1].mean(axis=1) - (57 + centres) * 0.25).mean() < 0.3


@pytest.mark.parametrize("reader", READERS)
def test_the_coarsest_level_that_is_fine_enough_is_read(tmp_path, reader):
    image = noise(2048, 2048)
    write_pyramid(tmp_path / "a.tiff", image, 0.25, compression="deflate", factor=4)
    with open_slide(tmp_path / "a.tiff", reader) as slide:
        assert slide.downsamples == (1.0, 4.0)
        level_1 = image.reshape(512, 4, 512, 4, 3).mean(axis=(1, 3))
        assert np.abs(slide.read(512, 256, 128, 1.0) - level_1[64:192, 128:256]).max() <= 1
        two = level_1.reshape(256, 2, 256, 2, 3).mean(axis=(1, 3))
        assert np.abs(slide.read(0, 0, 128, 2.0) - two[:128, :128]).max() <= 1


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("mpp", [0.5, 0.55])
def test_outside_the_slide_is_background(tmp_path, reader, mpp):
    write_pyramid(tmp_path / "a.tiff", np.full((300, 300, 3), 100, np.uint8), 0.5, compression="deflate")
    with open_slide(tmp_path / "a.tiff", reader) as slide:
        corner = slide.read(-100, -100, 200, mpp)
        assert (corner[:80, :80] == 255).all()
        assert (corner[-80:, -80:] == 100).all()
        assert (slide.read(5000, 5000, 64, mpp) == 255).all()


@pytest.mark.parametrize("reader", READERS)
def test_thumbnail_spans_the_slide(tmp_path, reader):
    image = np.full((1500, 2500, 3), 240, np.uint8)
    image[:, 1250:] = 40
    write_pyramid(tmp_path / "a.svs", image, 0.25, block=240)
    with open_slide(tmp_path / "a.svs", reader) as slide:
        thumbnail = slide.thumbnail(5.0)
    assert thumbnail.shape == (75, 125, 3)
    assert thumbnail[:, :60].mean() == pytest.approx(240, abs=2)
    assert thumbnail[:, 65:].mean() == pytest.approx(40, abs=2)


@pytest.mark.parametrize("reader", READERS)
def test_a_slide_without_mpp_is_refused_and_says_what_to_do(tmp_path, reader):
    write_pyramid(tmp_path / "a.svs", noise(), None)
    with pytest.raises(SlideError, match=r"does not say its microns per pixel.*--slide-mpp.*manifest"):
        open_slide(tmp_path / "a.svs", reader)
    with open_slide(tmp_path / "a.svs", reader, mpp=0.25) as slide:
        assert (slide.mpp_l0, slide.mpp_source) == (0.25, "given")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("mpp", [264.58, 0.00499])
def test_an_impossible_mpp_is_refused(tmp_path, reader, mpp):
    write_pyramid(tmp_path / "a.tiff", noise(), mpp)
    with pytest.raises(SlideError, match=r"which no scanner has \(wanted 0.05 to 5.0\).*--slide-mpp"):
        open_slide(tmp_path / "a.tiff", reader)


@pytest.mark.parametrize("reader", READERS)
def test_pixels_that_are_not_square_are_refused(tmp_path, reader):
    tifffile.imwrite(
        tmp_path / "a.tiff", noise(), tile=(256, 256), photometric="rgb", metadata=None,
        resolution=(20_000, 10_000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    with pytest.raises(SlideError, match="pixels are not square"):
        open_slide(tmp_path / "a.tiff", reader)


def test_what_neither_reader_opens_names_both_reasons(tmp_path):
    (tmp_path / "a.svs").write_bytes(b"not a slide at all")
    with pytest.raises(SlideError, match=r"cannot be opened as a slide \(openslide: .*; tiffslide: "):
        open_slide(tmp_path / "a.svs")
    with pytest.raises(SlideError, match="no such file"):
        open_slide(tmp_path / "b.svs")


@pytest.mark.parametrize("reader", READERS)
def test_a_truncated_slide_fails_to_read_with_a_reason(tmp_path, reader):
    path = tmp_path / "a.tiff"
    image = noise(2000, 2000)
    # The directory stands in front of the pixels, so that the cut file still opens.
    tifffile.imwrite(
        path, image, tile=(256, 256), photometric="rgb", compression="jpeg", metadata=None,
        resolution=(20_000, 20_000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    try:
        slide = open_slide(path, reader)
    except SlideError:
        return
    with slide, pytest.raises(SlideError, match=r"cannot be read at level-0 .*copy it again"):
        slide.read(1500, 1500, 256, 0.5)


@pytest.mark.parametrize("reader", READERS)
def test_a_slide_that_opens_and_cannot_be_read(real_slides, reader):
    path = real_slides / "openslide_fixtures" / "unreadable.svs"
    with open_slide(path, reader) as slide, pytest.raises(SlideError, match="cannot be read at level-0"):
        slide.read(0, 0, 16, 0.5)


def test_dicom_labelled_rgb_that_holds_ycbcr_shows_the_same_colours(real_slides):
    series = real_slides / "cmu1_dicom" / "level-0-frames-0-30.dcm"
    assert detect(series) == "dicom"
    assert dicom_series(series) == dicom_series(series.with_name("level-3-frames-0-1.dcm"))
    with open_slide(series) as dicom, open_slide(real_slides / "CMU-1-Small-Region.svs") as svs:
        assert "YCbCr" in dicom.note
        assert svs.note == ""
        assert (dicom.width_l0, dicom.height_l0) == (svs.width_l0, svs.height_l0)
        ours, theirs = (each.read(900, 1200, 512, 0.5).astype(int) for each in (dicom, svs))
    assert np.abs((ours - theirs).mean(axis=(0, 1))).max() < 2, "as bright and as pink"
    assert np.abs(ours - theirs).mean() < 12, "only the compression differs"


def test_the_fluorescence_ndpi_opens_in_both(real_slides):
    path = real_slides / "test3-TRITC 2 (560).ndpi"
    patches = []
    for reader in READERS:
        with open_slide(path, reader) as slide:
            assert slide.mpp_l0 == pytest.approx(0.2282, abs=1e-4)
            patches.append(slide.read(1000, 1000, 256, slide.mpp_l0))
    assert np.abs(patches[0].astype(int) - patches[1]).max() <= 2
