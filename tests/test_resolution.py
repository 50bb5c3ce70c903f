"""Microns per pixel: which source in a file counts, and what is refused. Expected is what was written."""

import itertools

import numpy as np
import pytest
import tifffile

from wsi_mil.errors import SlideError
from wsi_mil.slide import Statement, decide, open_slide

READERS = ("openslide", "tiffslide")
PIXELS = np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8)
APERIO = "Aperio Image Library v12.0.0\r\n192x128 [0,0 192x128] (64x64) JPEG/RGB Q=85|AppMag = 20"
OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
    '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="192" SizeY="128" SizeC="3" SizeZ="1" '
    'SizeT="1" PhysicalSizeX="{0}" PhysicalSizeXUnit="{1}" PhysicalSizeY="{0}" PhysicalSizeYUnit="{1}"/>'
    "</Image></OME>"
)
VIPS = (
    '<?xml version="1.0"?><image xmlns="http://www.vips.ecs.soton.ac.uk//dzsave"><properties>'
    '<property><name>openslide.mpp-x</name><value type="VipsRefString">{0}</value></property>'
    '<property><name>openslide.mpp-y</name><value type="VipsRefString">{0}</value></property>'
    "</properties></image>"
)


def write(path, description=None, resolution=None, unit="CENTIMETER"):
    """Write a tiled TIFF that says just this of its resolution; ``resolution`` is (x, y) pixels per unit."""
    tags = {} if resolution is None else {"resolution": resolution, "resolutionunit": unit}
    tifffile.imwrite(
        path, PIXELS, tile=(64, 64), photometric="rgb", metadata=None, description=description, **tags
    )
    if resolution is None:  # tifffile writes 1 per unit by itself: a ratio, no size
        with tifffile.TiffFile(path) as tiff:
            assert tiff.pages[0].tags["ResolutionUnit"].value == 1
    return path


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("unit", "micron"), [("INCH", 25_400), ("CENTIMETER", 10_000)])
def test_resolution_tags_with_a_unit_are_a_source(tmp_path, reader, unit, micron):
    per_unit = micron / 0.4
    with open_slide(write(tmp_path / "a.tiff", None, (per_unit, per_unit), unit), reader) as slide:
        assert slide.mpp_l0 == pytest.approx(0.4)
        assert slide.mpp_source == f"{reader}.mpp-x"
        assert [each.source for each in slide.statements] == [f"{reader}.mpp-x", "tiff.XResolution"]


@pytest.mark.parametrize("reader", READERS)
def test_resolution_tags_without_a_unit_are_none(tmp_path, reader):
    path = write(tmp_path / "a.tiff", None, (20_000, 20_000), "NONE")
    with pytest.raises(SlideError, match=r"does not say its microns per pixel.*--slide-mpp.*manifest"):
        open_slide(path, reader)


@pytest.mark.parametrize("reader", READERS)
def test_tags_stand_in_where_the_vendors_key_is_missing(tmp_path, reader):
    with open_slide(write(tmp_path / "a.svs", APERIO, (20_000, 20_000)), reader) as slide:
        assert slide.mpp_l0 == pytest.approx(0.5)
        assert slide.mpp_source == {"openslide": "tiff.XResolution", "tiffslide": "tiffslide.mpp-x"}[reader]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("text", "mpp"), [(OME.format("0.25", "µm"), 0.25), (OME.format("250", "nm"), 0.25)])
def test_ome_says_it_where_nothing_else_does(tmp_path, reader, text, mpp):
    path = write(tmp_path / "a.tiff", text.encode())
    with open_slide(path, reader) as slide:
        assert (slide.mpp_l0, slide.mpp_source) == (pytest.approx(mpp), "ome.PhysicalSizeX")


@pytest.mark.parametrize("reader", READERS)
def test_what_libvips_copied_of_a_slide_counts_and_its_own_tags_do_not(tmp_path, reader):
    path = write(tmp_path / "a.tiff", VIPS.format("0.499"), (10, 10))
    with open_slide(path, reader) as slide:
        assert (slide.mpp_l0, slide.mpp_source) == (0.499, "vips.openslide.mpp-x")
        assert slide.note == "its resolution tags (10 per centimeter) are a screen's: not used"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("tags", "fits"), [(0.5, True), (0.54, True), (0.46, True), (0.56, False), (0.25, False)]
)
def test_sources_that_differ_by_more_than_a_tenth_are_refused(tmp_path, reader, tags, fits):
    path = write(tmp_path / "a.svs", f"{APERIO}|MPP = 0.5", (10_000 / tags, 10_000 / tags))
    if fits:
        with open_slide(path, reader) as slide:
            assert (slide.mpp_l0, slide.mpp_source, slide.note) == (0.5, f"{reader}.mpp-x", "")
        return
    words = rf"contradicts itself.*0.5 \({reader}.mpp-x\), {tags} \(tiff.XResolution: .* per centimeter\)"
    with pytest.raises(SlideError, match=words + r".*10%.*--slide-mpp.*manifest"):
        open_slide(path, reader)
    with open_slide(path, reader, mpp=0.25) as slide:
        assert (slide.mpp_l0, slide.mpp_source) == (0.25, "given")
        assert "0.25 um per pixel was given; the file says 0.5" in slide.note


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("per_inch", [72, 96, 300])
def test_a_screens_resolution_beside_the_scanners_is_passed_over_and_said(tmp_path, reader, per_inch):
    path = write(tmp_path / "a.svs", f"{APERIO}|MPP = 0.5", (per_inch, per_inch), "INCH")
    with open_slide(path, reader) as slide:
        assert (slide.mpp_l0, slide.mpp_source) == (0.5, f"{reader}.mpp-x")
        assert slide.note == f"its resolution tags ({per_inch} per inch) are a screen's: not used"


@pytest.mark.parametrize("reader", READERS)
def test_a_screens_resolution_alone_is_refused_by_that_name(tmp_path, reader):
    path = write(tmp_path / "a.tiff", None, (96, 96), "INCH")
    with pytest.raises(SlideError, match=r"264.583 microns per pixel, which no scanner.*96 per inch.*screen"):
        open_slide(path, reader)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("ratio", "fits"), [(1.0, True), (1.009, True), (1.02, False), (2.0, False)])
def test_pixels_are_square_to_within_a_hundredth(tmp_path, reader, ratio, fits):
    path = write(tmp_path / "a.tiff", None, (20_000, round(20_000 / ratio)))
    if fits:
        with open_slide(path, reader) as slide:
            assert slide.mpp_l0 == pytest.approx(0.5 * (1 + ratio) / 2, rel=1e-4)
        return
    with pytest.raises(SlideError, match=r"pixels are not square \(0.5 x .* um, .*--slide-mpp"):
        open_slide(path, reader)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", ["0", "-0.5", "499", "0.0499e-1"])
def test_an_aperio_mpp_that_cannot_be_is_refused(tmp_path, reader, text):
    path = write(tmp_path / "a.svs", f"{APERIO}|MPP = {text}")
    with pytest.raises(SlideError, match="which no scanner has"):
        open_slide(path, reader)


@pytest.mark.parametrize("reader", READERS)
def test_a_comma_before_the_decimals_is_read(tmp_path, reader):
    with open_slide(write(tmp_path / "a.svs", f"{APERIO}|MPP = 0,4990"), reader) as slide:
        assert slide.mpp_l0 == 0.499


def statement(source, across, down=None, of_tags=False):
    return Statement(source, across, across if down is None else down, "", of_tags)


def test_every_order_of_the_same_statements_takes_the_first():
    for order in itertools.permutations([("a", 0.5), ("b", 0.52), ("c", 0.48)]):
        found = decide([statement(*each) for each in order], "x")
        assert (found.source, found.mpp) == order[0]


def test_no_number_and_no_statement_are_refused_in_words():
    with pytest.raises(SlideError, match=r"x: the file says 'fast' microns per pixel"):
        decide([Statement("openslide.mpp-x", float("nan"), float("nan"), "fast")], "x")
    with pytest.raises(SlideError, match="x: the file does not say"):
        decide([], "x")


def test_a_value_that_was_given_wins_over_everything():
    for found in ([], [statement("a", 264.58, of_tags=True)], [statement("a", 0.5, 1.0)]):
        decided = decide(found, "x", 0.3)
        assert (decided.mpp, decided.source) == (0.3, "given")
