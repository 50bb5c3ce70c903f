"""The paper's figures 10 to 12: where the attention of the fold that never saw a field lies in it.

Comes in: the fields, the runs of ``pipelines.colon_cancer.run``, and which fields to draw. Goes out: a JPEG
for each: the field; the patches of all nuclei; those of the epithelial ones (the truth); and the attention,
from the lowest to the highest of the field.

    python -m pipelines.colon_cancer.draw --data FOLDER --method attention --fields img1 img2 --pictures OUT
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.colon_cancer.data import SIDE, field, read_bag
from pipelines.paper.bags import Bag
from wsi_mil import heatmap, store
from wsi_mil.errors import FormatError, WsiMilError
from wsi_mil.geometry import PatchGeometry
from wsi_mil.heatmap import render

MPP = 0.55
"""Microns per pixel of the fields, about (Sirinukunwattana et al. 2016)."""

OPACITY = 0.75


def attention_of(name: str, folder: Path, repetition: int = 0) -> tuple[NDArray[np.float32], float]:
    """Return the attention of a field's patches and its probability, by the fold that tested it.

    Raises:
        FormatError: no run in ``folder`` has tested it.
    """
    for path in sorted(folder.glob(f"repetition{repetition}_fold*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if name in content["bags"]:
            at = content["bags"].index(name)
            with np.load(path.with_suffix(".npz")) as arrays:
                parts = np.split(arrays["attention"], np.cumsum(arrays["patches"])[:-1])
            return parts[at], content["probability"][at]
    raise FormatError(f"{folder}: no run of repetition {repetition} has tested {name}; run its fold first.")


def picture(pixels: NDArray[np.uint8], bag: Bag, attention_N: NDArray[np.float32], caption: str) -> bytes:
    """Return the four panels as one JPEG."""
    assert bag.corner_N2 is not None
    assert bag.key_N is not None
    shape_rc = (pixels.shape[0], pixels.shape[1])
    geometry = PatchGeometry.plan(
        width_l0=shape_rc[1], height_l0=shape_rc[0], mpp_l0=MPP, mpp=MPP, patch_px=SIDE
    )

    def raster(values: NDArray[np.float32], which_N: NDArray[np.bool_]) -> NDArray[np.float32]:
        assert bag.corner_N2 is not None
        return render.spread(values[which_N], bag.corner_N2[which_N], geometry, shape_rc)

    everywhere_N = np.ones(len(attention_N), np.bool_)
    ones_N = np.ones(len(attention_N), np.float32)
    panels = [pixels]
    for which_N in (everywhere_N, bag.key_N):
        inside = ~np.isnan(raster(ones_N, which_N))
        panels.append(np.where(inside[..., None], pixels, 255).astype(np.uint8))
    scaled_N = heatmap.scale(attention_N, "minmax")
    panels.append(render.blend(pixels, raster(scaled_N, everywhere_N), OPACITY))
    names = (bag.name, f"{len(attention_N)} nuclei", f"{int(bag.key_N.sum())} epithelial", caption)
    return render.top_patches_jpeg(panels, names, side=500, columns=2)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with img1, img2, ...")
    parser.add_argument("--out", type=Path, default=Path("runs/colon_cancer"), help="folder of the runs")
    parser.add_argument("--method", default="attention")
    parser.add_argument("--fields", nargs="+", required=True, help="such as img1")
    parser.add_argument("--pictures", type=Path, required=True, help="folder to write <field>.jpg to")
    given = parser.parse_args(arguments)
    try:
        for name in given.fields:
            if not (given.data / name).is_dir():
                raise FormatError(f"--fields {name}: {given.data} holds no folder of this name.")
            attention_N, probability = attention_of(name, given.out / given.method)
            caption = f"{given.method}, P(positive) {probability:.2f}"
            jpeg = picture(field(given.data / name), read_bag(given.data / name), attention_N, caption)
            with store.atomic_file(given.pictures / f"{name}.jpg") as temporary:
                temporary.write_bytes(jpeg)
    except (WsiMilError, FileNotFoundError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
