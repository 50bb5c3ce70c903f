"""wsi-mil inspect on the real slides: the right answer for each, as those who gave them describe them."""

import pytest

from wsi_mil import inspect
from wsi_mil.config import InspectConfig


@pytest.fixture(scope="module")
def found(real_slides):
    cohort = inspect.inspect_slides(InspectConfig(slides=(real_slides,), workers=1))
    assert not cohort.used_twice
    return {each.slide_id: each for each in cohort.slides}


def test_which_of_them_will_fail(found):
    assert {name for name, each in found.items() if each.problems} == {
        "CMU-1-wrong-mpp.jpeg", "CropBreastSlide", "boxes", "unopenable", "unreadable",
    }  # fmt: skip
    assert {name for name, each in found.items() if not each.problems} == {
        "CMU-1-Small-Region", "cmu1_dicom", "openslide_fixtures", "small", "test3-TRITC 2 (560)",
    }  # fmt: skip


def test_the_aperio_slide(found):
    cmu = found["CMU-1-Small-Region"]
    assert (cmu.vendor, cmu.width, cmu.height, len(cmu.levels)) == ("aperio", 2220, 2967, 1)
    assert (cmu.mpp, cmu.mpp_source, cmu.objective) == (0.499, "openslide.mpp-x", 20)
    assert (cmu.compression, cmu.levels[0].block_width, cmu.levels[0].blocks) == ("JPEG", 240, 10 * 13)
    assert (cmu.fast_path, cmu.remarks, cmu.icc_profile) == (True, (), "")


def test_the_dicom_pyramid(found):
    dicom = found["cmu1_dicom"]
    assert (dicom.vendor, dicom.width, dicom.height, len(dicom.levels)) == ("dicom", 2220, 2967, 12)
    assert (dicom.mpp, dicom.objective, dicom.compression) == (0.499, None, "JPEG")
    assert "0.499 (dicom.PixelSpacing: 0.000499 mm)" in dicom.mpp_statements
    assert [each.downsample for each in dicom.levels[:9]] == [2**k for k in range(9)]
    assert (dicom.fast_path, dicom.fast_path_reason) == (False, "dicom slides have no plain grid of blocks")
    assert "YCbCr: converted" in dicom.remarks[0]


def test_the_wrong_and_the_bogus_resolution(found):
    wrong, bogus, boxes = (found[name] for name in ("CMU-1-wrong-mpp.jpeg", "CropBreastSlide", "boxes"))
    assert "0.00499 microns per pixel, which no scanner has" in wrong.problems[0]
    assert "264.583 microns per pixel, which no scanner has" in bogus.problems[0]
    assert "96 per inch, are a screen's" in bogus.problems[0]
    assert (len(bogus.levels), bogus.levels[0].block_width, bogus.objective) == (6, 256, None)
    assert "352.778 microns" in boxes.problems[0], "72 per inch"
    assert boxes.icc_profile == "sRGB built-in"
    for each in (wrong, bogus, boxes):
        assert each.mpp is None
        assert len(each.problems) == 1, "everything but the resolution is in order"
        assert "--slide-mpp" in each.problems[0]


def test_the_fluorescence_slide(found):
    ndpi = found["test3-TRITC 2 (560)"]
    assert (ndpi.vendor, ndpi.width, ndpi.height, len(ndpi.levels)) == ("hamamatsu", 3968, 4864, 7)
    assert (round(ndpi.mpp, 3), ndpi.objective) == (0.228, 40)
    assert not ndpi.fast_path
    assert ndpi.remarks == ("its background is dark: fluorescence, or an empty scan",)


def test_the_broken_ones(found):
    (unreadable,) = found["unreadable"].problems
    assert "it opens, and nothing in it can be read" in unreadable
    unopenable = found["unopenable"]
    assert unopenable.reader == "tiffslide"
    assert "Unsupported TIFF compression: 52479" in unopenable.remarks[0], "what OpenSlide says of it"
    assert "nothing in it can be read" in unopenable.problems[1]
    assert "no patch of 128 um" in found["small"].remarks[0]


def test_with_the_true_resolution_they_are_in_order(real_slides):
    for name, mpp in (("CMU-1-wrong-mpp.jpeg.tiff", 0.499), ("CropBreastSlide.tiff", 0.5)):
        given = inspect.inspect_slide(real_slides / name, slide_mpp=mpp)
        assert (given.mpp, given.mpp_source, given.problems) == (mpp, "given", ())
