"""From which level of a pyramid a thumbnail is read."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from wsi_mil.slide import Slide, levels, open_slide

SIDE, MPP = 2560, 0.5


def textured(side: int = SIDE) -> np.ndarray:
    """Glass with a piece of tissue whose grain is of a few pixels, as nuclei are."""
    rng = np.random.default_rng(3)
    grain = cv2.GaussianBlur(rng.normal(0, 1, (side, side)).astype(np.float32), (0, 0), 1.5)
    image = np.full((side, side, 3), (243, 242, 244), np.float32)
    inside = np.s_[side // 4 : side // 2, side // 4 : side // 2]
    image[inside] = np.array([205, 120, 170]) + 250 * grain[inside][..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


def write(path: Path, pictures: list[np.ndarray], quality: int = 75) -> Path:
    """Write a pyramid, each level as it is given."""
    with tifffile.TiffWriter(path) as tiff:
        for level, picture in enumerate(pictures):
            per_cm = 10_000 / (MPP * SIDE / len(picture))
            tiff.write(
                picture, subfiletype=int(level > 0), resolution=(per_cm, per_cm), resolutionunit="CENTIMETER",
                tile=(256, 256), compression="jpeg", compressionargs={"level": quality}, photometric="rgb",
                metadata=None,
            )  # fmt: skip
    return path


def smaller(image: np.ndarray, factor: int, how: int) -> np.ndarray:
    side = len(image) // factor
    return np.asarray(cv2.resize(image, (side, side), interpolation=how))


@pytest.mark.parametrize("quality", [90, 60])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_averaged_levels_are_told_from_decimated_ones(tmp_path: Path, factor: int, quality: int):
    image = textured()
    told = {}
    for name, how in (("averaged", cv2.INTER_AREA), ("decimated", cv2.INTER_NEAREST)):
        path = write(tmp_path / f"{name}.tiff", [image, smaller(image, factor, how)], quality)
        with open_slide(path) as slide:
            told[name] = levels.is_averaged(
                slide, 1, slide.read_level(1, 0, 0, *slide.level_sizes[1]), slide.read_level
            )
    # Two by two pixels of this grain are alike: a picture of every second one is no other picture.
    assert told == {"averaged": True, "decimated": factor == 2 and told["decimated"]}


def levels_read(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the levels of which more than a few places are read, as they come."""
    read, plain = [], slide.read_level

    def listening(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        if width * height > slide.level_sizes[level][0] * slide.level_sizes[level][1] / 2:
            read.append(level)
        return plain(level, x, y, width, height)

    monkeypatch.setattr(slide, "read_level", listening)
    return read


def test_a_thumbnail_is_read_from_the_coarsest_level_that_can_be_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    image = textured()
    true = smaller(image, 16, cv2.INTER_AREA)
    decimated = [smaller(image, factor, cv2.INTER_NEAREST) for factor in (4, 16)]
    blank = np.full((SIDE // 16, SIDE // 16, 3), 243, np.uint8)
    half = smaller(image, 4, cv2.INTER_AREA)
    pyramids = {
        "averaged": ([image, half, true], [2]),
        "decimated": ([image, half, decimated[1]], [2, 1]),
        "another picture": ([image, half, np.ascontiguousarray(true[::-1])], [2, 1]),
        "nothing in it": ([image, half, blank], [2, 1]),
        "all decimated": ([image, *decimated], [2, 1, 0]),
    }
    for name, (pictures, wanted) in pyramids.items():
        with open_slide(write(tmp_path / "slide.tiff", pictures)) as slide:
            read = levels_read(slide, monkeypatch)
            thumbnail = slide.thumbnail(16 * MPP)
        assert read == wanted, name
        assert np.abs(thumbnail.astype(int) - true).mean() < 2.0, name


def test_a_small_slide_is_read_at_level_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image = textured()[:1024, :1024]
    with open_slide(write(tmp_path / "a.tiff", [image, smaller(image, 8, cv2.INTER_AREA)])) as slide:
        read = levels_read(slide, monkeypatch)
        slide.thumbnail(8 * 1.25)  # MPP is that of a slide of SIDE pixels
    assert read == [0]


def test_a_level_that_lost_its_odd_rows_is_not_stretched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Halved four times, 2574 pixels are 160, not 160.9: the far end of the slide lies beyond the level."""
    side = 2574
    image = textured(side)
    image[-240:-176, -240:-176] = (60, 20, 90)
    levels_of = [image]
    for _ in range(4):
        whole = len(levels_of[-1]) // 2 * 2
        levels_of.append(smaller(np.ascontiguousarray(levels_of[-1][:whole, :whole]), 2, cv2.INTER_AREA))
    with open_slide(write(tmp_path / "slide.tiff", [levels_of[0], levels_of[4]]), mpp=MPP) as slide:
        read = levels_read(slide, monkeypatch)
        thumbnail = slide.thumbnail(16.1 * MPP)
    assert read == [1]
    dark = 255.0 - thumbnail[-24:, -24:].mean(axis=2)
    weights = np.where(dark > 100, dark, 0.0)
    centre = (weights.sum(axis=1) @ np.arange(len(thumbnail) - 24, len(thumbnail))) / weights.sum() + 0.5
    assert abs(centre * side / len(thumbnail) - (side - 208)) < 0.25 * 16
