"""Time and memory of one heatmap of a large slide, all its outputs, against the size of the slide.

    make bench-heatmap         (or: python -m benchmarks.heatmap --folder bench --append)

Draws a tiled, pyramidal slide of PATCHES squares of 256 pixels (its level 0 repeats 16 encoded blocks, so
that it is written in seconds and is read as any JPEG), stores random features of the default encoder's width,
writes a model of the default recipe (gated attention, a committee of five), and calls ``heatmap.run`` on it
in a process of its own. Memory is the peak resident set beyond what the process has after its imports. A
second slide has a sixteenth of the patches. A third line is the first slide with its file gone: what
everything but reading it costs.

A second table is of slides of 16,384, 49,152 and 98,304 pixels a side with 4,096 patches each, evenly spread:
what a map costs must not follow level 0. Their pyramids go on by four to 4096 pixels or fewer, as scanners'
do. The ratio is of the processor time, against the first.
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
SIDES, ACROSS = (64, 192, 384), 64
ENCODER = "tf_efficientnet_lite0"


def write_slide(path: Path, side: int, downs: tuple[int, ...] = (1, 4, 16)) -> None:
    """Write a slide of side x side blocks (a multiple of the last of ``downs``) with these levels."""
    rng = np.random.default_rng(0)
    pictures = []
    for kind in range(KINDS):
        grain = rng.normal(0, 25, (BLOCK // 16, BLOCK // 16, 1)).repeat(16, 0).repeat(16, 1)
        colour = np.array([190 - 4 * kind, 120 + 3 * kind, 165])
        pictures.append(Image.fromarray(np.clip(colour + grain, 0, 255).astype(np.uint8)))
    squares = rng.integers(KINDS, size=(KINDS, 4, 4))  # 4 x 4 blocks are one of level 4
    kinds = squares[rng.integers(KINDS, size=(side // 4, side // 4))].swapaxes(1, 2).reshape(side, side)
    known: dict[tuple[int, bytes], bytes] = {}

    def encode(pixels: NDArray[np.uint8]) -> bytes:
        return bytes(imagecodecs.jpeg8_encode(pixels, level=80, subsampling="420"))

    def blocks(down: int) -> Iterator[bytes]:
        small = np.stack([np.asarray(each.reduce(down) if down > 1 else each) for each in pictures])
        for row in range(0, side, down):
            for column in range(0, side, down):
                part = kinds[row : row + down, column : column + down]
                key = down, part.tobytes()
                if key not in known:
                    shown = np.concatenate([np.concatenate(list(small[each]), axis=1) for each in part])
                    known[key] = encode(shown)
                yield known[key]

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for down in downs:
            pixels = side * BLOCK // down
            tiff.write(
                blocks(down), shape=(pixels, pixels, 3), dtype=np.uint8, tile=(BLOCK, BLOCK),
                photometric="ycbcr", compression="jpeg", subsampling=(2, 2), metadata=None,
                subfiletype=1 if down > 1 else 0, resolution=(10_000 / MPP / down,) * 2,
                resolutionunit="CENTIMETER",
            )  # fmt: skip


def write_run(run: Path, slide: Path, side: int, across: int | None = None) -> None:
    """Write features and a model, as embed and train would; of across x across patches, or of all."""
    geometry = PatchGeometry.plan(
        width_l0=side * BLOCK, height_l0=side * BLOCK, mpp_l0=MPP, mpp=MPP, patch_px=BLOCK
    )
    places = np.arange(across or side) * side // (across or side)
    coords = grid_l0(geometry)[(places[:, None] * side + places).ravel()]
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


def best_of(run: Path, draws: int) -> tuple[str, float]:
    """Return the cells of a row: the fastest of some draws, and the most memory of any; and its CPU time."""
    command = [sys.executable, "-m", "benchmarks.heatmap", "--one", str(run)]
    found = []
    for _ in range(draws):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    fastest = min(found, key=lambda each: each["cpu"])
    cells = f"{fastest['seconds']:.1f} | {fastest['cpu']:.2f} | {max(each['mib'] for each in found):.0f} |"
    return cells, fastest["cpu"]


def by_size(folder: Path, draws: int) -> Iterator[str]:
    """Yield the table of slides of different sizes with as many patches each."""
    yield from ("| level 0 | patches | seconds | CPU seconds | MiB | ratio |", "|---|---|---|---|---|---|")
    first = 0.0
    for side in SIDES:
        run = folder / f"heatmap-of-{side}"
        slide = run / f"slide_{side}.tiff"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(parents=True)
        downs = tuple(4**k for k in range(6) if k == 0 or side * BLOCK > 4096 * 4 ** (k - 1))
        write_slide(slide, side, downs)
        write_run(run, slide, side, ACROSS)
        cells, used = best_of(run, draws)
        first = first or used
        yield f"| {side * BLOCK:,} x {side * BLOCK:,} | {ACROSS**2:,} | {cells} {used / first:.2f} |"
        shutil.rmtree(run)


def by_patches(folder: Path, patches: int, draws: int) -> Iterator[str]:
    """Yield the table of slides with many patches and with a sixteenth of them."""
    yield from ("| patches | level 0 | slide | seconds | CPU seconds | MiB |", "|---|---|---|---|---|---|")
    for count in (patches, patches // 16):
        side = round(count**0.5 / 16) * 16
        run = folder / f"heatmap-{side * side}"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(parents=True)
        slide = run / f"slide_{side * side}.tiff"
        write_slide(slide, side)
        write_run(run, slide, side)
        size = f"| {side * side:,} | {side * BLOCK:,} x {side * BLOCK:,}"
        yield f"{size} | read | {best_of(run, draws)[0]}"
        if count == patches:
            slide.unlink()
            yield f"{size} | gone | {best_of(run, draws)[0]}"
        shutil.rmtree(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("bench"))
    parser.add_argument("--patches", type=int, default=100_000)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--only", choices=("patches", "sizes"), help="one of the two tables")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--append", action="store_true", help="append the table to RESULTS.md")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.one)))
        return
    rows: list[str] = []
    if given.only != "sizes":
        rows += [*by_patches(given.folder, given.patches, given.draws), ""]
    if given.only != "patches":
        rows += by_size(given.folder, given.draws)
    publish("Heatmaps of large slides", rows, append=given.append)


if __name__ == "__main__":
    main()
