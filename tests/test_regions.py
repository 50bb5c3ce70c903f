"""Pictures of whole slides from blocks are those of the slide's own reader."""

from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import tifffile

from tests.conftest import break_blocks, draw_slide
from wsi_mil import blocks
from wsi_mil.blocks.regions import region_reader
from wsi_mil.errors import SlideError
from wsi_mil.slide import open_slide


def pyramid(path: Path, **options: object) -> Path:
    """Write a slide of two levels, whose sizes are no multiples of the blocks'."""
    image = draw_slide(2500, 1900, ((300, 300, 1500, 1400),))
    with tifffile.TiffWriter(path) as tiff:
        for level, picture in enumerate((image, cv2.resize(image, (625, 475), interpolation=cv2.INTER_AREA))):
            per_cm = 10_000 / (0.5 * 4**level)
            tiff.write(
                picture, subfiletype=level, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER",
                tile=(256, 256), photometric="rgb", metadata=None, **options,
            )  # fmt: skip
    return path


@pytest.mark.parametrize("options", [{"compression": "jpeg"}, {"compression": "deflate"}, {}])
@pytest.mark.parametrize("mpp", [0.7, 2.0, 3.3])
def test_a_picture_is_that_of_the_slide(tmp_path: Path, options: dict[str, object], mpp: float):
    with open_slide(pyramid(tmp_path / "a.tiff", **options)) as slide:
        assert (blocks.thumbnail(slide, mpp) == slide.thumbnail(mpp)).all()


def test_any_region_is_that_of_the_slide(tmp_path: Path):
    with open_slide(pyramid(tmp_path / "a.tiff", compression="jpeg")) as slide, region_reader(slide) as read:
        for box in [
            (0, 0, 10, 10),
            (250, 250, 20, 20),
            (-30, -300, 700, 900),
            (600, 400, 300, 300),
            (5, 9, 1, 1),
        ]:
            assert (read(1, *box) == slide.read_level(1, *box)).all(), box
        assert (read(0, 2400, 1800, 300, 300) == slide.read_level(0, 2400, 1800, 300, 300)).all()


def test_real_slides_look_the_same(real_slides: Path):
    """Those of every reader and compression; without a resolution of their own where they have none."""
    seen = 0
    for path in sorted(real_slides.iterdir()):
        if path.suffix not in {".svs", ".tiff", ".ndpi"}:
            continue
        with open_slide(path, mpp=0.5) as slide:
            for mpp in (1.1, 4.0):
                assert (blocks.thumbnail(slide, mpp) == slide.thumbnail(mpp)).all(), path
                seen += 1
    assert seen >= 6


def test_what_is_damaged_is_said_by_the_slide(make_slide: Callable[..., Path]):
    path = make_slide()
    break_blocks(path)
    with (
        open_slide(path) as slide,
        pytest.raises(SlideError, match=r"cannot be read at level-0 .* copy it again"),
    ):
        blocks.thumbnail(slide, 4.0)
