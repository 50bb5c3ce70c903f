"""What tiling finds on drawn slides, and how fast it is beside the field's way.

    python -m benchmarks.tile --folder bench [--parts found large field tiles] [--tiles FOLDER] [--append]

* found: sixty drawn slides (``benchmarks.drawn_slides``) as files, through the whole stage with --qc pixels:
  Dice of the mask, precision and recall of pen and blur per patch.
* large: a slide of 100,000 x 100,000 pixels with some 50,000 patches: what comes after the thumbnail was
  read, on one core, and the memory of that process.
* field: twenty slides of 20,000 x 20,000 pixels, tiled by ``tile.run`` and by the field's way: saturation and
  a median filter, contours in a Python loop, and a point test of four points for each candidate of each
  contour's box (as in CLAM and the tools after it; written anew here).
* tiles: real patches of known class (``--tiles``), each laid into glass; which are kept.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import h5py
import numpy as np
import openslide
import tifffile

from benchmarks.drawn_slides import MPP, NAMES, draw
from benchmarks.results import publish
from wsi_mil import geometry, parallel, store, tile, tissue
from wsi_mil.config import TileConfig
from wsi_mil.slide import Slide, open_slide
from wsi_mil.tile.grid import plan_of, tile_picture

PATCH = 128  # pixels at 1.0 um, on the drawn slides
PEN, BLUR_UM, FOCUS = 0.1, 1.6, 25.0
ROUNDS = 3


def found(folder: Path, series: int) -> list[str]:
    """Dice, pen and blur on the sixty slides, each written as a file and read again."""
    kinds: dict[str, list[float]] = {}
    counts = {what: np.zeros(3, int) for what in ("pen", "blur", "focus")}  # hits, called, there
    (folder / "drawn").mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        drawn = draw(name, series)
        path = drawn.write(folder / "drawn" / f"{name}.tiff")
        config = TileConfig(
            slides=path, run=folder / "run", mpp=MPP, patch_px=PATCH, qc="pixels", max_pen=1.0,
            min_tissue=0.0,
        )  # fmt: skip
        with open_slide(path) as slide:
            tiling = tile.tile_slide(slide, config, name)
        path.unlink()
        size = tiling.tissue.mask.shape[::-1]
        truth = cv2.resize(drawn.tissue.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
        mask = tiling.tissue.mask > 0
        total = mask.sum() + truth.sum()
        kinds.setdefault(drawn.kind, []).append(2 * (mask & truth).sum() / total if total else 1.0)
        patches = tiling.patches
        _count(counts["pen"], patches.quality["pen_fraction"] > PEN, _part(drawn.pen, patches) > PEN)
        inside = _part(drawn.tissue, patches)
        look = (inside >= 0.1) & (patches.quality["pen_fraction"] <= PEN) & (patches.tissue_fraction >= 0.1)
        blurred = _part(drawn.tissue & drawn.blurred, patches)[look] > 0.5 * inside[look]
        _count(counts["blur"], patches.quality["blur_um"][look] > BLUR_UM, blurred)
        if drawn.kind != "fluorescence":  # its greys are another scale
            _count(counts["focus"], patches.quality["focus"][look] < FOCUS, blurred)
    scores = [each for values in kinds.values() for each in values]
    lines = [
        f"Sixty drawn slides (series {series}), patches of {PATCH} px at {MPP} um, through JPEG files. Dice "
        f"of the mask: **mean {np.mean(scores):.3f}, worst {min(scores):.3f}**.",
        "",
        "| " + " | ".join(kinds) + " |",
        "|" + "---|" * len(kinds),
        "| " + " | ".join(f"{np.mean(v):.3f} ({min(v):.3f})" for v in kinds.values()) + " |",
        "",
        "| found, per patch | threshold | patches | precision | recall |",
        "|---|---|---|---|---|",
    ]
    rules = {"pen": f"pen_fraction > {PEN}", "blur": f"blur_um > {BLUR_UM:g}", "focus": f"focus < {FOCUS:g}"}
    for what, text in rules.items():
        hits, called, there = counts[what].tolist()
        lines.append(f"| {what} | {text} | {there} | {hits / called:.3f} | {hits / there:.3f} |")
    return lines


def _part(mask: np.ndarray, patches: store.Patches) -> np.ndarray:
    boxes = geometry.boxes_rc(patches.coords, patches.geometry, mask.shape)
    return geometry.box_means(mask.astype(np.uint8) * 255, boxes) / 255


def _count(counts: np.ndarray, called: np.ndarray, there: np.ndarray) -> None:
    counts += [(called & there).sum(), called.sum(), there.sum()]


class Large(Slide):
    """What is known of a slide of 100,000 x 100,000 pixels, without one."""

    def __init__(self) -> None:
        self.path, self.reader, self.mpp_source = Path("large.svs"), "openslide", "given"
        self.width_l0 = self.height_l0 = 100_000
        self.mpp_l0, self.downsamples = 0.25, (1.0,)
        self.background = (255, 255, 255)


def large_picture() -> np.ndarray:
    """The thumbnail of such a slide at 8 um: drawn tissue, 3125 x 3125 pixels."""
    drawn = [cv2.resize(draw(name, mpp=4.0).image, (1042, 1042)) for name in ("he_0", "holes_1", "he_2")]
    rows = [np.hstack([drawn[(i + k) % 3] for k in range(3)]) for i in range(3)]
    return np.ascontiguousarray(np.vstack(rows)[:3125, :3125])


def large(folder: Path) -> None:
    """Everything after the thumbnail: tissue, patches, columns, preview, outline, file. Prints a row."""
    picture = np.load(folder / "large.npy")
    cv2.setNumThreads(1)
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    config = TileConfig(slides=folder, run=folder / "run", mpp=0.25, patch_px=256, overlap_px=0, workers=1)
    slide = Large()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = _gib("VmHWM")
    start, cpu = time.perf_counter(), time.process_time()
    tiling = tile_picture(slide, picture, plan_of(slide, config, 0.25), config, "large")
    from wsi_mil.tile.run import _write_one  # noqa: PLC0415

    record = tiling.patches.record | {"slide_fingerprint": "none"}
    patches = _write_one(
        folder / "run" / "patches" / "large.h5", tiling, tile.draw_preview(tiling), config, record
    )
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = _gib("VmHWM")
    start = time.process_time()
    found_at = fields_patches(picture, 100_000 / len(picture), (100_000, 100_000))
    write_fields(folder / "field.h5", picture, 100_000 / len(picture), found_at)
    field_cpu = time.process_time() - start
    print(len(patches.coords), seconds, cpu, peak, before, len(found_at), field_cpu)


def _gib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 2**20


def large_row(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "large.npy", large_picture())
    command = [sys.executable, "-m", "benchmarks.tile", "--folder", str(folder), "--parts", "large-alone"]
    rows = []
    for _ in range(3):
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        rows.append([float(each) for each in out])
    patches, seconds, cpu, peak, before, theirs, field_cpu = min(rows, key=lambda row: row[2])
    return [
        f"A slide of 100,000 x 100,000 pixels, {patches:.0f} patches, after its thumbnail of 3125 x 3125 was "
        f"read (tissue, grid, columns, preview, outline, file), one core, best of 3: **{seconds:.2f} s** "
        f"({cpu:.2f} s of processor time); the process had at most {peak:.2f} GiB, {before:.2f} GiB of it "
        f"libraries and the thumbnail. The field's way on the same thumbnail: {field_cpu:.2f} s of processor "
        f"time, {theirs:.0f} patches; ours is **{field_cpu / cpu:.1f} times** as fast."
    ]


def field_slide(path: Path, number: int) -> None:
    """Write a slide of 20,000 x 20,000 pixels at 0.5 um: drawn tissue, enlarged, in blocks of JPEG."""
    small = draw(("he_0", "he_2", "holes_1", "he_3")[number % 4], number // 4, mpp=4.0).image
    image = cv2.resize(small, (20_000, 20_000), interpolation=cv2.INTER_LINEAR)
    options = {"tile": (256, 256), "compression": "jpeg", "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        for level in range(4):
            per_cm = 10_000 / (0.5 * 4**level)
            tiff.write(
                image, subfiletype=int(level > 0), resolution=(per_cm, per_cm), resolutionunit="CENTIMETER",
                compressionargs={"level": 75}, **options,
            )  # fmt: skip
            side = len(image) // 4
            image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)


def fields_way(path: Path, output: Path) -> int:
    """Tile a file as the field's tools do, on the level 64 times smaller; return how many patches."""
    slide = openslide.OpenSlide(str(path))
    level = slide.get_best_level_for_downsample(64)
    picture = np.array(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))
    found_at = fields_patches(picture, slide.level_downsamples[level], slide.dimensions)
    write_fields(output, picture, slide.level_downsamples[level], found_at)
    return len(found_at)


def fields_patches(
    picture: np.ndarray, scale: float, size_l0: tuple[int, int], size: int = 256
) -> list[tuple[int, int]]:
    """Contours in a Python loop, and a test of four points for each candidate of each contour's box."""
    saturation = cv2.medianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)[..., 1], 7)
    _, mask = cv2.threshold(saturation, 8, 255, cv2.THRESH_BINARY)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((4, 4), np.uint8))
    contours, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    contours = [(contour * scale).astype(np.int32) for contour in contours]
    found_at = []
    for k, contour in enumerate(contours):
        if tree[0][k][3] >= 0 or cv2.contourArea(contour) < 100 * 256**2 / 16:
            continue
        holes = [contours[j] for j in range(len(contours)) if tree[0][j][3] == k]
        left, top, width, height = cv2.boundingRect(contour)
        for y in range(top, min(top + height, size_l0[1] - size), size):
            for x in range(left, min(left + width, size_l0[0] - size), size):
                centre, shift = (x + size // 2, y + size // 2), size // 4
                points = [(centre[0] + i * shift, centre[1] + j * shift) for i in (-1, 1) for j in (-1, 1)]
                if not any(cv2.pointPolygonTest(contour, point, False) >= 0 for point in points):
                    continue
                if not any(cv2.pointPolygonTest(hole, centre, False) > 0 for hole in holes):
                    found_at.append((x, y))
    return found_at


def write_fields(output: Path, picture: np.ndarray, scale: float, found_at: list[tuple[int, int]]) -> None:
    preview, side = picture.copy(), round(256 / scale)
    for x, y in found_at:
        corner = round(x / scale), round(y / scale)
        cv2.rectangle(preview, corner, (corner[0] + side, corner[1] + side), (0, 0, 0))
    cv2.imwrite(str(output.with_suffix(".jpg")), preview)
    with h5py.File(output, "w") as file:
        file["coords"] = np.array(found_at, np.int64).reshape(-1, 2)


def field(folder: Path, slides: int) -> list[str]:
    """Our stage, with one process and with two, and the field's way on the same files, in turn."""
    place = field_slides(folder, slides)
    cv2.setNumThreads(1)
    out = folder / "field-out"
    out.mkdir(exist_ok=True)
    paths = sorted(place.glob("*.tiff"))

    def the_field() -> int:
        return sum(fields_way(path, out / f"{path.stem}.h5") for path in paths)

    def ours(workers: int) -> int:
        run = folder / "field-run"
        shutil.rmtree(run, ignore_errors=True)
        result = tile.run(TileConfig(slides=place, run=run, workers=workers))
        assert not result.failed, result.failed
        return sum(len(store.read_patches(path).coords) for path in (run / "patches").glob("*.h5"))

    ways = {"field": the_field, "one": lambda: ours(1), "two": lambda: ours(2)}
    counts: dict[str, int] = {}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start, cpu_start = time.perf_counter(), _processor_seconds()
            counts[name] = way()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(_processor_seconds() - cpu_start)

    def ratio(times: dict[str, list[float]], name: str) -> float:
        return float(np.median(np.array(times["field"]) / np.array(times[name])))

    return [
        f"{len(paths)} drawn slides of 20,000 x 20,000 pixels (0.5 um, four levels of JPEG), median of "
        f"{ROUNDS} rounds. The field's way (one process; it reads a level of 1,250 pixels): "
        f"{np.median(cpu['field']):.1f} s of processor time, {counts['field']} patches. `wsi-mil tile`: "
        f"{np.median(cpu['one']):.1f} s, {counts['one']} patches. As fast, by processor time: "
        f"**{ratio(cpu, 'one'):.2f} times**; by the clock: {ratio(wall, 'one'):.2f} times with one process, "
        f"**{ratio(wall, 'two'):.2f} times** with two.",
    ]


def clam(folder: Path, slides: int, checkout: Path) -> list[str]:
    """Our command and CLAM's, with the pictures that it writes by default, on the slides of ``field``."""
    place = field_slides(folder, slides).absolute()
    commands = {
        "CLAM": [sys.executable, "create_patches_fp.py", "--source", place, "--patch_size", "256", "--seg",
                 "--patch", "--stitch", "--save_dir"],
        "ours": [sys.executable, "-m", "wsi_mil", "tile", "--slides", place, "--run"],
    }  # fmt: skip
    cpu: dict[str, list[float]] = {name: [] for name in commands}
    wall: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            out = (folder / f"field-out-{name}").absolute()
            shutil.rmtree(out, ignore_errors=True)
            start, cpu_start = time.perf_counter(), _processor_seconds()
            subprocess.run(
                [*map(str, command), str(out)], check=True, capture_output=True,
                **({"cwd": checkout} if name == "CLAM" else {}),
            )  # fmt: skip
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(_processor_seconds() - cpu_start)
    ratios = [float(np.median(np.array(each["CLAM"]) / np.array(each["ours"]))) for each in (cpu, wall)]
    return [
        f"The same {slides} slides by CLAM's own command (`--seg --patch --stitch`) and by `wsi-mil tile`, "
        f"from start to end with imports: {np.median(cpu['CLAM']):.1f} and {np.median(cpu['ours']):.1f} s of "
        f"processor time, {np.median(wall['CLAM']):.1f} and {np.median(wall['ours']):.1f} s by the clock: "
        f"**{ratios[0]:.2f} times** and **{ratios[1]:.2f} times** as fast.",
    ]


def field_slides(folder: Path, slides: int) -> Path:
    """Return the folder of drawn slides of 20,000 x 20,000 pixels, which are written once."""
    place = folder / f"field{slides}"
    place.mkdir(parents=True, exist_ok=True)
    for number in range(slides):
        path = place / f"s{number:02d}.tiff"
        if not path.exists():
            field_slide(path, number)
    return place


def _processor_seconds() -> float:
    """Return the processor time of this process and of those it waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def tiles(folder: Path) -> list[str]:
    """Real patches of known class, each mirrored into a piece of tissue in a bed of glass."""
    rows = []
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".tif", ".png", ".jpg"})
    for path in paths:
        picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        name = (
            path.stem.split("-")[0] if path.parent.name.startswith("nct") else path.parent.name.split("_")[1]
        )
        rows.append((name, in_glass(picture)))
    names = sorted({row[0] for row in rows})
    lines = ["| class | patches | tissue fraction | kept at --min-tissue 0.1 |", "|---|---|---|---|"]
    for name in names:
        values = [row[1] for row in rows if row[0] == name]
        kept = sum(value >= 0.1 for value in values)
        lines.append(f"| {name} | {len(values)} | {min(values):.2f} to {max(values):.2f} | {kept} |")
    return lines


def in_glass(picture: np.ndarray, mpp: float = 0.5) -> float:
    """Tissue fraction of a real patch: it is mirrored to 5 x 5 of itself, with as much glass around it."""
    side = len(picture)
    piece = np.pad(picture, ((2 * side,) * 2, (2 * side,) * 2, (0, 0)), mode="symmetric")
    rng = np.random.default_rng(0)
    slide = np.clip(243 + rng.normal(0, 1.5, (9 * side, 9 * side, 3)), 0, 255).astype(np.uint8)
    slide[2 * side : 7 * side, 2 * side : 7 * side] = piece
    size = round(9 * side * mpp / 8)
    thumbnail = cv2.resize(slide, (size, size), interpolation=cv2.INTER_AREA)
    result = tissue.find_tissue(thumbnail, 8.0, min_area_um2=10_000, max_hole_um2=10_000)
    k = size / 9
    box = np.array([[4 * k, 4 * k, 5 * k, 5 * k]])
    return float(geometry.box_means(result.mask, box)[0] / 255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("bench"))
    parser.add_argument("--parts", nargs="*", default=["found", "large", "field", "tiles"])
    parser.add_argument("--series", type=int, default=0)
    parser.add_argument("--slides", type=int, default=20)
    parser.add_argument("--tiles", type=Path, help="folder of real patches; left out where it is not given")
    parser.add_argument("--clam", type=Path, help="checkout of CLAM, to run its command beside ours")
    parser.add_argument("--append", action="store_true", help="append the tables to RESULTS.md")
    arguments = parser.parse_args()
    folder = arguments.folder / "tile"
    if arguments.parts == ["large-alone"]:
        large(arguments.folder)
        return
    lines: list[str] = [f"`make bench-tile`; {parallel.cpu_count()} cores.", ""]
    if "found" in arguments.parts:
        lines += [*found(folder, arguments.series), ""]
    if "large" in arguments.parts:
        lines += [*large_row(folder), ""]
    if "field" in arguments.parts:
        lines += [*field(folder, arguments.slides), ""]
        if arguments.clam:
            lines += [*clam(folder, arguments.slides, arguments.clam), ""]
    if "tiles" in arguments.parts and arguments.tiles:
        lines += [*tiles(arguments.tiles), ""]
    publish("Tiling", lines[:-1], append=arguments.append)


if __name__ == "__main__":
    main()
