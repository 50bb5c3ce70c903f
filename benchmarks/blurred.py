"""Real pictures that are sharp, blurred by Gaussians of known width: which are found to be blurred.

    python -m benchmarks.blurred --pictures tiles=0.5 colon=0.55 [--every 4] [--append]

Each folder of pictures comes with its microns per pixel. Every picture is cut into squares of at most
``SIDE_UM``; each is left as it is or blurred, gets the noise of a camera and is written as JPEG, as a scanner
that was out of focus would have it. Squares blurred by up to 1 um count as sharp, from 2.5 um on as blurred.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from benchmarks.results import publish
from wsi_mil.tile.quality import SQUARES, blur_of_patch, focus_of_squares

SIDE_UM = 128.0
SHARP_UM, BLURRED_UM = (0.0, 1.0), (2.5, 4.0, 6.0)
BETWEEN_UM = (1.5, 2.0)
MAX_BLUR_UM, MIN_FOCUS = 1.6, 25.0
_GLASS = 225


def squares(picture: np.ndarray, mpp: float) -> Iterator[np.ndarray]:
    """Yield the squares of a picture that are not mostly glass, row by row."""
    side = min(round(SIDE_UM / mpp), *picture.shape[:2])
    for top in range(0, picture.shape[0] - side + 1, side):
        for left in range(0, picture.shape[1] - side + 1, side):
            square = picture[top : top + side, left : left + side]
            if _tissue(square, mpp).mean() >= 0.1:
                yield np.ascontiguousarray(square)


def _tissue(square: np.ndarray, mpp: float) -> np.ndarray:
    return cv2.GaussianBlur(square, (0, 0), 4 / mpp).min(axis=2) < _GLASS


def weights(square: np.ndarray, mpp: float) -> np.ndarray:
    """How much of each of the small squares is tissue, as the stage knows it from the thumbnail."""
    size = (SQUARES, SQUARES)
    share = cv2.resize(_tissue(square, mpp).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return share.ravel()


def blurred(
    square: np.ndarray, mpp: float, blur_um: float, *, contrast: float = 1.0, noise: float = 1.0,
    quality: int = 80, seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """A square as a scanner would have it that was out of focus by ``blur_um``; contrast 1 is as stained."""
    light = 243 * (np.maximum(square, 1) / np.float32(243)) ** np.float32(contrast)
    if blur_um:
        light = cv2.GaussianBlur(light, (0, 0), blur_um / mpp)
        light = light + noise * np.random.default_rng(seed).standard_normal((*square.shape[:2], 1))
    pixels = np.clip(light + 0.5, 0, 255).astype(np.uint8)
    coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR))


def measure(square: np.ndarray, mpp: float, blur_um: float, **how: float) -> tuple[float, float]:
    """``blur_um`` and ``focus`` of one square, blurred by so much."""
    grey = cv2.cvtColor(blurred(square, mpp, blur_um, **how), cv2.COLOR_RGB2GRAY)
    parts = weights(square, mpp)
    return blur_of_patch(grey, mpp, parts), float(np.median(focus_of_squares(grey)[parts > 0]))


def pictures(folder: Path, every: int) -> Iterator[np.ndarray]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".tif", ".png", ".jpg"})
    for path in paths[::every]:
        yield cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def score(values: dict[float, list[float]], threshold: float) -> tuple[float, float]:
    """Precision and recall of ``values`` above a threshold, by how much each was blurred."""
    false = sum(value > threshold for each in SHARP_UM for value in values[each])
    hits = sum(value > threshold for each in BLURRED_UM for value in values[each])
    there = sum(len(values[each]) for each in BLURRED_UM)
    return hits / max(hits + false, 1), hits / there


def table(name: str, found: list[np.ndarray], mpp: float, contrast: float) -> str:
    """One row: what is measured of squares at each blur, and the scores."""
    blur: dict[float, list[float]] = {}
    soft: dict[float, list[float]] = {}
    for amount in sorted((*SHARP_UM, *BETWEEN_UM, *BLURRED_UM)):
        rows = [measure(each, mpp, amount, contrast=contrast, seed=k) for k, each in enumerate(found)]
        blur[amount] = [row[0] for row in rows]
        soft[amount] = [-row[1] for row in rows]
    medians = " | ".join(f"{np.median(values):.2f}" for values in blur.values())
    scores = " | ".join(
        "{:.3f}, {:.3f}".format(*each) for each in (score(blur, MAX_BLUR_UM), score(soft, -MIN_FOCUS))
    )
    return f"| {name} | {mpp:g} | {contrast:g} | {len(found)} | {medians} | {scores} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", nargs="+", required=True, metavar="FOLDER=MPP")
    parser.add_argument("--every", type=int, default=1, help="look at every so many pictures only")
    parser.add_argument("--append", action="store_true", help="append the table to RESULTS.md")
    arguments = parser.parse_args()
    amounts = sorted((*SHARP_UM, *BETWEEN_UM, *BLURRED_UM))
    lines = [
        "| pictures | mpp | contrast | squares | " + " | ".join(f"{each:g} um" for each in amounts)
        + f" | `blur_um` > {MAX_BLUR_UM:g} | `focus` < {MIN_FOCUS:g} |",
        "|" + "---|" * (len(amounts) + 6),
    ]  # fmt: skip
    for given in arguments.pictures:
        folder, _, mpp = given.rpartition("=")
        found = [each for one in pictures(Path(folder), arguments.every) for each in squares(one, float(mpp))]
        for contrast in (1.0, 0.3):
            lines.append(table(Path(folder).name, found, float(mpp), contrast))
            print(lines[-1], flush=True)
    publish("Real pictures, blurred", lines, append=arguments.append)


if __name__ == "__main__":
    main()
