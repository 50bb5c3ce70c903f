"""How fast are patches read, against OpenSlide, tiffslide, cuCIM and the JPEG decoder alone?

    make bench-read            (or: python -m benchmarks.read --folder bench --append)

Makes a slide of 16,000 x 16,000 pixels (JPEG 4:2:2, quality 75; blocks of 256 and of 240): a mosaic of the
CMU slide of ../shared, randomly mirrored, where that is there, else drawn tissue, and says which. Every round
runs all contenders of a case one after the other, each for a short while; a ratio is taken within a round,
and the table shows the median over the rounds, with the middle half of them.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import openslide
import simplejpeg
import tifffile
import tiffslide
from PIL import Image

from benchmarks.results import publish
from pipelines.demo import histology
from wsi_mil import blocks, geometry
from wsi_mil.geometry import PatchGeometry
from wsi_mil.slide import open_slide

SIDE, MPP, PATCH = 16_000, 0.25, 256
CMU = Path(__file__).parents[2] / "shared" / "data" / "slides" / "CMU-1-Small-Region.svs"
Contender = Callable[[], float]
"""Reads some patches and returns patches per second."""


# Slides ----------------------------------------------------------------------------------------------


def mosaic() -> tuple[np.ndarray, str]:
    """Return SIDE x SIDE pixels of tissue, and words for where they are from."""
    if CMU.is_file():
        with openslide.OpenSlide(CMU) as slide:
            tile = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
        words = "mosaic of CMU-1-Small-Region.svs, randomly mirrored"
    else:
        tile = drawn_tissue()
        words = "drawn tissue (no ../shared here)"
    rng = np.random.default_rng(0)
    height, width = (side // 240 * 240 for side in tile.shape[:2])
    picture = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
    for y in range(0, SIDE, height):
        for x in range(0, SIDE, width):
            piece = tile[:height, :width][:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
            target = picture[y : y + height, x : x + width]
            target[:] = piece[: target.shape[0], : target.shape[1]]
    return picture, words


def drawn_tissue() -> np.ndarray:
    rng = np.random.default_rng(0)
    stain = histology.draw_stain(rng)
    picture, _ = histology.draw_slide(rng, side_um=720, mpp=MPP, tissue_fraction=0.7, stain=stain, tumor=True)
    return picture


def make_slides(folder: Path) -> str:
    """Write the slides that are not there yet; return words for what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    words = folder / "words.txt"
    if words.is_file() and all((folder / f"blocks{b}.tiff").is_file() for b in (256, 240)):
        return words.read_text()
    picture, text = mosaic()
    for block in (256, 240):
        tifffile.imwrite(
            folder / f"blocks{block}.tiff", picture, photometric="rgb", tile=(block, block), metadata=None,
            compression="jpeg", compressionargs={"level": 75}, subsampling=(2, 1),
            resolution=(10_000 / MPP, 10_000 / MPP), resolutionunit="CENTIMETER",
        )  # fmt: skip
    words.write_text(text)
    return text


def islands(coords: np.ndarray, part: float) -> np.ndarray:
    """Return the ``part`` of the coords that lies in a few smooth islands, as tissue does."""
    rng = np.random.default_rng(1)
    noise = cv2.GaussianBlur(rng.normal(size=(SIDE // 64, SIDE // 64)), (0, 0), 14)
    height = noise[np.minimum(coords[:, 1] // 64, noise.shape[0] - 1), np.minimum(coords[:, 0] // 64, 249)]
    return coords[height >= np.quantile(height, 1 - part)]


# Contenders ------------------------------------------------------------------------------------------


def timed(read: Callable[[np.ndarray], int], coords: np.ndarray) -> float:
    start = time.perf_counter()
    count = read(coords)
    return count / (time.perf_counter() - start)


def ours(path: Path, plan: PatchGeometry, workers: int) -> Callable[[np.ndarray], int]:
    def read(coords: np.ndarray) -> int:
        with open_slide(path) as slide:
            batches = blocks.stream(slide, coords, plan, workers=workers)
            return sum(len(batch.patches) for batch in batches)

    return read


def with_pil(handle: object, plan: PatchGeometry) -> Callable[[np.ndarray], int]:
    """The field's loop: a region, to RGB, resized by PIL where the resolution asks for it."""
    side = round(plan.patch_size_l0)

    def read(coords: np.ndarray) -> int:
        for x, y in coords.tolist():
            region = handle.read_region((x, y), 0, (side, side)).convert("RGB")  # type: ignore[attr-defined]
            if side != PATCH:
                region = region.resize((PATCH, PATCH), Image.Resampling.BICUBIC)
            np.asarray(region)
        return len(coords)

    return read


def in_threads(read: Callable[[np.ndarray], int], count: int) -> Callable[[np.ndarray], int]:
    def both(coords: np.ndarray) -> int:
        threads = [threading.Thread(target=read, args=(part,)) for part in np.array_split(coords, count)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return len(coords)

    return both


def decoder(path: Path, decode: Callable[[bytes], object], share: float, threads: int = 1) -> Contender:
    """Decode a sample of the slide's blocks and do nothing with them: patches of pixels per second."""
    page = tifffile.TiffFile(path).pages[0]
    data = path.read_bytes()
    sample = [
        data[offset : offset + count]
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
    ][:: max(1, round(1 / share))]

    def some(part: list[bytes]) -> None:
        for each in part:
            decode(each)

    def run() -> float:
        start = time.perf_counter()
        workers = [threading.Thread(target=some, args=(sample[k::threads],)) for k in range(threads)]
        for each in workers:
            each.start()
        for each in workers:
            each.join()
        pixels = len(sample) * page.tilewidth * page.tilelength
        return pixels / PATCH**2 / (time.perf_counter() - start)

    return run


def plain_decode(data: bytes) -> object:
    return imagecodecs.jpeg8_decode(data, colorspace="YCBCR", outcolorspace="RGB")


def strict_decode(data: bytes) -> object:
    return simplejpeg.decode_jpeg(data, "RGB")


class Cucim:
    """cuCIM on one slide, in a process of its own."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cucim_reader", str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, mode: str, cache_mib: int, plan: PatchGeometry, coords: np.ndarray) -> float:
        job = {
            "mode": mode, "cache_mib": cache_mib, "side": round(plan.patch_size_l0), "patch": PATCH,
            "coords": coords.tolist(),
        }  # fmt: skip
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


# Cases -----------------------------------------------------------------------------------------------


def case(mpp: float, overlap_px: int, keep: float) -> tuple[PatchGeometry, np.ndarray]:
    plan = PatchGeometry.plan(
        width_l0=SIDE, height_l0=SIDE, mpp_l0=MPP, mpp=mpp, patch_px=PATCH, overlap_px=overlap_px
    )
    coords = geometry.grid_l0(plan)
    return plan, coords if keep == 1 else islands(coords, keep)


def contenders(
    path: Path, plan: PatchGeometry, coords: np.ndarray, cucim: Cucim | None
) -> dict[str, Contender]:
    """Return name -> what runs it, each on some rows of the coords: as many as it reads in half a second."""
    some, more, most = (coords[len(coords) // 4 :][:count] for count in (240, 1240, 1860))
    slow, other = openslide.OpenSlide(path), tiffslide.TiffSlide(path)
    scale = (plan.patch_size_l0 / PATCH) ** 2

    def alone(decode: Callable[[bytes], object], threads: int) -> Contender:
        run = decoder(path, decode, 0.25, threads)
        return lambda: run() / scale

    # In this order: what is compared closely runs one after the other.
    runs: dict[str, Contender] = {
        "decode alone, 1 thread": alone(plain_decode, 1),
        "wsi-mil, 1 thread": lambda: timed(ours(path, plan, 1), most),
        "wsi-mil, 2 threads": lambda: timed(ours(path, plan, 2), most),
        "decode alone, 2 threads": alone(plain_decode, 2),
    }
    if cucim:
        runs |= {
            "cuCIM batch, 2 workers": lambda: cucim.run("batch", 0, plan, more),
            "cuCIM batch, 2 workers, 1 GiB cache": lambda: cucim.run("batch", 1024, plan, more),
            "cuCIM, one by one": lambda: cucim.run("single", 0, plan, some),
        }
    runs |= {
        "OpenSlide, 1 thread": lambda: timed(with_pil(slow, plan), some),
        "OpenSlide, 2 threads": lambda: timed(in_threads(with_pil(slow, plan), 2), some),
        "tiffslide, 1 thread": lambda: timed(with_pil(other, plan), some),
        "decode alone (refusing damage), 1 thread": alone(strict_decode, 1),
    }
    return runs


def measure(runs: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            speed = run()
            if number:  # the first round warms caches up
                found[name].append(speed)
        print(".", end="", flush=True)
    print()
    return found


def ratio(found: dict[str, list[float]], name: str, other: str) -> tuple[float, float, float]:
    """Return the median of the ratios within rounds, and the quartiles."""
    ratios = sorted(a / b for a, b in zip(found[name], found[other], strict=True))
    low, _, high = statistics.quantiles(ratios, n=4)
    return statistics.median(ratios), low, high


CASES = {
    # name: (blocks, mpp, overlap, part of the patches, [(ours, other, at least)])
    "native, blocks 256": (256, 0.25, 0, 1, [
        ("wsi-mil, 1 thread", "OpenSlide, 1 thread", 5),
        ("wsi-mil, 1 thread", "decode alone, 1 thread", 0.85),
        ("wsi-mil, 2 threads", "wsi-mil, 1 thread", 1.8),
        ("decode alone, 2 threads", "decode alone, 1 thread", 0),
        ("wsi-mil, 2 threads", "cuCIM batch, 2 workers", 0.95),
    ]),
    "native, blocks 240": (240, 0.25, 0, 1, [
        ("wsi-mil, 1 thread", "OpenSlide, 1 thread", 4.5),
        ("wsi-mil, 1 thread", "decode alone, 1 thread", 0.75),
        ("wsi-mil, 2 threads", "wsi-mil, 1 thread", 1.8),
        ("decode alone, 2 threads", "decode alone, 1 thread", 0),
        ("wsi-mil, 2 threads", "cuCIM batch, 2 workers", 2.5),
    ]),
    "half resolution (0.25 -> 0.5 mpp), blocks 256": (256, 0.5, 0, 1, [
        ("wsi-mil, 1 thread", "OpenSlide, 1 thread", 6.5), ("wsi-mil, 1 thread", "cuCIM, one by one", 0),
        ("wsi-mil, 2 threads", "cuCIM batch, 2 workers", 0),
    ]),
    "half resolution (0.25 -> 0.5 mpp), blocks 240": (240, 0.5, 0, 1, [
        ("wsi-mil, 1 thread", "OpenSlide, 1 thread", 6.5), ("wsi-mil, 1 thread", "cuCIM, one by one", 0),
        ("wsi-mil, 2 threads", "cuCIM batch, 2 workers", 0),
    ]),
    "mpp ratio 1.6, overlap 50 %, blocks 256": (256, 0.4, 128, 1, [
        ("wsi-mil, 1 thread", "OpenSlide, 1 thread", 4),
    ]),
    "mpp ratio 1.6, overlap 50 %, blocks 240": (240, 0.4, 128, 1, [
        ("wsi-mil, 1 thread", "OpenSlide, 1 thread", 4),
    ]),
    "10 % of the patches, in islands, blocks 256": (256, 0.25, 0, 0.1, [
        ("wsi-mil, 1 thread", "OpenSlide, 1 thread", 3.5),
    ]),
    "10 % of the patches, in islands, blocks 240": (240, 0.25, 0, 0.1, [
        ("wsi-mil, 1 thread", "OpenSlide, 1 thread", 3.5),
    ]),
}  # fmt: skip


def run_cases(folder: Path, rounds: int, cucim: bool, only: str) -> list[str]:
    """Return the lines of two tables: ratios against what must be reached, and speeds."""
    goals = ["| case | what | against | ratio (middle half) | must reach | |", "|---|---|---|---|---|---|"]
    speeds: dict[str, dict[str, float]] = {}
    for title, (block, mpp, overlap_px, keep, wanted) in CASES.items():
        if only not in title:
            continue
        path = folder / f"blocks{block}.tiff"
        plan, coords = case(mpp, overlap_px, keep)
        print(f"{title}: {len(coords)} patches", end=" ", flush=True)
        other = Cucim(path) if cucim else None
        found = measure(contenders(path, plan, coords, other), rounds)
        if other:
            other.close()
        speeds[title] = {name: statistics.median(values) for name, values in found.items()}
        for name, other, least in wanted:
            if other not in found:
                continue
            middle, low, high = ratio(found, name, other)
            verdict = "" if not least else "met" if middle >= least else "**missed**"
            goals.append(
                f"| {title} | {name} | {other} | {middle:.2f} ({low:.2f} to {high:.2f}) | {least or ''} "
                f"| {verdict} |"
            )
    names = list(dict.fromkeys(name for each in speeds.values() for name in each))
    table = ["| patches/s | " + " | ".join(speeds) + " |", "|---|" + "---|" * len(speeds)]
    for name in names:
        cells = (f"{each[name]:.0f}" if name in each else "" for each in speeds.values())
        table.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*goals, "", *table]


# Memory ----------------------------------------------------------------------------------------------

MEASURE_MEMORY = """
import sys
from pathlib import Path
from wsi_mil import blocks, geometry
from wsi_mil.geometry import PatchGeometry
from wsi_mil.slide import open_slide

path, mpp, overlap = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of importing torch
before = status("VmRSS")
with open_slide(path) as slide:
    plan = PatchGeometry.plan(width_l0=slide.width_l0, height_l0=slide.height_l0, mpp_l0=slide.mpp_l0,
                              mpp=mpp, patch_px=256, overlap_px=overlap)
    coords = geometry.grid_l0(plan)
    order = blocks.sweep_order(slide, coords, plan)
    count = sum(len(batch.patches) for batch in blocks.stream(slide, coords[order], plan, workers=2))
print(count, status("VmHWM") - before)
"""


def sparse_slide(folder: Path) -> Path:
    """Write 100,000 x 100,000 pixels of which 6 % are blocks of tissue, in islands; the rest is empty."""
    path, side, block = folder / "sparse.tiff", 100_000, 256
    if path.is_file():
        return path
    with tifffile.TiffFile(folder / "blocks256.tiff") as tiff:
        page = tiff.pages[0]
        data = (folder / "blocks256.tiff").read_bytes()
        pieces = [data[o : o + n] for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    across = -(-side // block)
    noise = cv2.GaussianBlur(np.random.default_rng(2).normal(size=(across, across)), (0, 0), 12)
    tissue = (noise >= np.quantile(noise, 0.94)).ravel()
    rows = (pieces[k % len(pieces)] if there else b"" for k, there in enumerate(tissue.tolist()))
    temporary = path.with_suffix(".part")
    with tifffile.TiffWriter(temporary, bigtiff=True) as tiff:
        tiff.write(
            rows, shape=(side, side, 3), dtype=np.uint8, tile=(block, block), photometric="ycbcr",
            compression="jpeg", subsampling=(2, 1), metadata=None,
            resolution=(10_000 / MPP, 10_000 / MPP), resolutionunit="CENTIMETER",
        )  # fmt: skip
    temporary.rename(path)
    return path


def run_memory(folder: Path) -> list[str]:
    path = sparse_slide(folder)
    lines = [
        "| memory, slide of 100,000 x 100,000 | patches | growth in MiB | at most | |",
        "|---|---|---|---|---|",
    ]
    for words, mpp, overlap in (("native", 0.25, 0), ("mpp ratio 1.6, overlap 50 %", 0.4, 128)):
        arguments = [sys.executable, "-c", MEASURE_MEMORY, str(path), str(mpp), str(overlap)]
        printed = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split()
        count, growth = int(printed[0]), float(printed[1])
        verdict = "met" if growth <= 456 else "**missed**"
        lines.append(f"| {words} | {count} | {growth:.0f} | 256 + 200 | {verdict} |")
        print(lines[-1])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=Path("bench"), help="where the slides are made and kept"
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", default="", help="only the cases with this in their name")
    parser.add_argument("--append", action="store_true", help="append the tables to benchmarks/RESULTS.md")
    options = parser.parse_args()
    words = make_slides(options.folder)
    cucim = importlib.util.find_spec("cucim") is not None
    lines = [
        f"`make bench-read`: {SIDE} x {SIDE} pixels, JPEG 4:2:2, quality 75, {words}; patches of {PATCH}; "
        f"{options.rounds} rounds; {os.cpu_count()} cores ({platform.machine()}); OpenSlide "
        f"{openslide.__library_version__}, imagecodecs {imagecodecs.__version__}, simplejpeg "
        f"{simplejpeg.__version__}{'' if cucim else '; cuCIM is not installed here'}.",
        "",
        *run_cases(options.folder, options.rounds, cucim, options.only),
    ]
    if not options.only:
        lines += ["", *run_memory(options.folder)]
    publish("Reading", lines, append=options.append)


if __name__ == "__main__":
    main()
