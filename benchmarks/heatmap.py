"""Time and memory of one heatmap of a large slide, all its outputs, against the size of the slide.

    make bench-heatmap         (or: python -m benchmarks.heatmap --folder bench --append)

Draws a tiled, pyramidal slide of PATCHES squares of 256 pixels (its level 0 repeats 16 encoded blocks, so
that it is written in seconds and is read as any JPEG), stores random features of the default encoder's width,
writes a model of the default recipe (gated attention, a committee of five), and calls ``heatmap.run`` on it
in a process of its own. Memory is the peak resident set beyond what the process has after its imports. A
second slide with a sixteenth of the patches has an overlay of the same size: what pictures cost must not
follow level 0. A third line is the first slide with its file gone: what everything but reading it costs.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.results import publish
from wsi_mil import heatmap, models, store
from wsi_mil.config import HeatmapConfig
from wsi_mil.geometry import PatchGeometry, grid_l0

DIM, BLOCK, MPP, KINDS = 1280, 256, 0.5, 16
ENCODER = "tf_efficientnet_lite0"


def write_slide(path: Path, side: int) -> None:
    """Write a slide of side x side blocks (a multiple of 16) with levels 1, 4 and 16."""
    rng = np.random.default_rng(0)
    pictures = []
    for kind in range(KINDS):
        grain = rng.normal(0, 25, (BLOCK // 16, BLOCK // 16, 1)).repeat(16, 0).repeat(16, 1)
        colour = np.array([190 - 4 * kind, 120 + 3 * kind, 165])
        pictures.append(Image.fromarray(np.clip(colour + grain, 0, 255).astype(np.uint8)))
    kinds = rng.integers(KINDS, size=(side, side))

    def encode(pixels: NDArray[np.uint8]) -> bytes:
        return bytes(imagecodecs.jpeg8_encode(pixels, level=80, subsampling="420"))

    def blocks(down: int) -> Iterator[bytes]:
        small = np.stack([np.asarray(each.reduce(down) if down > 1 else each) for each in pictures])
        whole = [encode(each) for each in small] if down == 1 else []
        for row in range(0, side, down):
            for column in range(0, side, down):
                part = kinds[row : row + down, column : column + down]
                if down == 1:
                    yield whole[part[0, 0]]
                else:
                    yield encode(np.concatenate([np.concatenate(list(small[each]), axis=1) for each in part]))

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for down in (1, 4, 16):
            pixels = side * BLOCK // down
            tiff.write(
                blocks(down), shape=(pixels, pixels, 3), dtype=np.uint8, tile=(BLOCK, BLOCK),
                photometric="ycbcr", compression="jpeg", subsampling=(2, 2), metadata=None,
                subfiletype=1 if down > 1 else 0, resolution=(10_000 / MPP / down,) * 2,
                resolutionunit="CENTIMETER",
            )  # fmt: skip


def write_run(run: Path, slide: Path, side: int) -> None:
    """Write features and a model, as embed and train would."""
    geometry = PatchGeometry.plan(
        width_l0=side * BLOCK, height_l0=side * BLOCK, mpp_l0=MPP, mpp=MPP, patch_px=BLOCK
    )
    coords = grid_l0(geometry)
    rng = np.random.default_rng(2)
    features = rng.standard_normal((len(coords), DIM), dtype=np.float32).astype(np.float16)
    item = store.Features(
        slide_id=slide.stem, slide_path=slide, reader="auto", geometry=geometry, coords=coords,
        features=features, encoder=ENCODER, weights_digest="bench", patches_digest="bench", record={},
    )  # fmt: skip
    store.write_features(store.features_path(run, ENCODER, slide.stem), item)
    head = {
        "model": "gated-attention", "identity": dict(item.identity), "hidden_dim": 64, "attention_dim": 64,
        "task": {"task": "classification", "names": ["normal", "tumor"]}, "members": 5, "branches": "shared",
        "dropout": 0.0,
    }  # fmt: skip
    torch.manual_seed(0)
    model = models.build(head)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    folder = store.model_folder(run, "m")
    folder.mkdir(parents=True, exist_ok=True)
    store.write_fold(folder / "fold_0.safetensors", models.tensors(model), {**head, "fold": 0})
    digests = {"config_digest": "c", "features_digest": "f", "labels_digest": "l"}
    store.write_text(folder / "metrics.json", json.dumps(digests))


def measured(run: Path) -> dict[str, float]:
    """Draw in this process and return seconds, and MiB beyond what it has already."""
    shutil.rmtree(run / "heatmaps", ignore_errors=True)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = _status("VmHWM")
    start, used = time.perf_counter(), time.process_time()
    result = heatmap.run(HeatmapConfig(run=run, show="evidence"))
    assert not result.failed, result.failed[0].traceback
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - used,
        "mib": _status("VmHWM") - before,
    }


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def best_of(run: Path, draws: int) -> str:
    """Return the cells of a row: the fastest of some draws, and the most memory of any."""
    command = [sys.executable, "-m", "benchmarks.heatmap", "--one", str(run)]
    found = []
    for _ in range(draws):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    fastest = min(found, key=lambda each: each["seconds"])
    return f"{fastest['seconds']:.1f} | {fastest['cpu']:.1f} | {max(each['mib'] for each in found):.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("bench"))
    parser.add_argument("--patches", type=int, default=100_000)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--append", action="store_true", help="append the table to RESULTS.md")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.one)))
        return
    rows = ["| patches | level 0 | slide | seconds | CPU seconds | MiB |", "|---|---|---|---|---|---|"]
    for patches in (given.patches, given.patches // 16):
        side = round(patches**0.5 / 16) * 16
        run = given.folder / f"heatmap-{side * side}"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(parents=True)
        slide = run / f"slide_{side * side}.tiff"
        write_slide(slide, side)
        write_run(run, slide, side)
        size = f"| {side * side:,} | {side * BLOCK:,} x {side * BLOCK:,}"
        rows.append(f"{size} | read | {best_of(run, given.draws)}")
        if patches == given.patches:
            slide.unlink()
            rows.append(f"{size} | gone | {best_of(run, given.draws)}")
        shutil.rmtree(run)
    publish("Heatmaps of large slides", rows, append=given.append)


if __name__ == "__main__":
    main()
