"""How far apart are features of one slide in two formats, and how much of that is JPEG compressing twice?

    python -m benchmarks.formats ../shared/data/slides

Compares the CMU slide as SVS with its DICOM conversion, and, as a control, with its own pixels compressed
once more as the DICOM's are: frames of 500 pixels, quality 80, colour at half resolution (4:2:0) where the
SVS has it at full resolution. Prints cosines of the features.
"""

import argparse
import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.pyramid import write_pyramid
from wsi_mil import embed, tile
from wsi_mil.config import TileConfig
from wsi_mil.encoders import load_encoder
from wsi_mil.slide import open_slide

FRAME = 500


def compressed_again(pixels: np.ndarray, quality: int) -> np.ndarray:
    again = pixels.copy()
    for y in range(0, pixels.shape[0], FRAME):
        for x in range(0, pixels.shape[1], FRAME):
            buffer = io.BytesIO()
            frame = Image.fromarray(pixels[y : y + FRAME, x : x + FRAME])
            frame.save(buffer, "JPEG", quality=quality, subsampling=2)
            again[y : y + FRAME, x : x + FRAME] = np.asarray(Image.open(buffer))
    return again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slides", type=Path)
    folder = parser.parse_args().slides
    svs, dicom = folder / "CMU-1-Small-Region.svs", folder / "cmu1_dicom" / "level-0-frames-0-30.dcm"
    encoder = load_encoder("tf_efficientnet_lite0")
    with tempfile.TemporaryDirectory() as temporary:
        again = Path(temporary) / "again.tiff"
        with open_slide(svs) as slide:
            square = slide.read(0, 0, max(slide.width_l0, slide.height_l0), slide.mpp_l0)
            pixels = square[: slide.height_l0, : slide.width_l0]
            patches = tile.tile_slide(slide, TileConfig(slides=svs, run=folder)).patches
        write_pyramid(again, compressed_again(pixels, 80), 0.499, compression="deflate")
        features = {}
        for name, path in (("svs", svs), ("dicom", dicom), ("svs compressed again", again)):
            with open_slide(path) as slide:
                found = embed.embed_slide(slide, patches, encoder, device=torch.device("cpu"))
            features[name] = found.features.astype(float)
    for name in ("dicom", "svs compressed again"):
        a, b = features["svs"], features[name]
        each = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
        slide_cosine = mean_a @ mean_b / np.linalg.norm(mean_a) / np.linalg.norm(mean_b)
        print(
            f"svs and {name}: {len(each)} patches, cosine min {each.min():.3f}, "
            f"median {np.median(each):.3f}; of the slide's mean {slide_cosine:.4f}"
        )


if __name__ == "__main__":
    main()
