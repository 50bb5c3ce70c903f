"""Serve a slide of 100,000 x 100,000 pixels to many clients that pan at the same time, and take the time.

    python -m benchmarks.view --folder bench [--clients 20] [--seconds 60]

The slide is a pyramid of JPEG blocks, drawn once (histology of the demo) and pointed to again and again: the
file is small, and every block has to be decoded. Each client is a thread with six connections, as a browser
has; it looks at a window of 1400 x 900 pixels, moves on or zooms, asks for the squares that it does not have,
waits for all of them, looks for 0.3 s, and moves again. The server is a process of its own (`wsi-mil view`).
"""

import argparse
import http.client
import json
import os
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import imagecodecs
import numpy as np
import tifffile

from benchmarks.results import publish
from pipelines.demo.histology import Stain, draw_slide
from wsi_mil import store
from wsi_mil.geometry import PatchGeometry, grid_l0
from wsi_mil.view import tiles
from wsi_mil.view.slides import RunSlides

SIDE, BLOCK, MPP = 100_000, 256, 0.25
FACTOR, SMALLEST = 4, 1000  # of the levels
_JPEG = {"level": 85, "colorspace": "RGB", "outcolorspace": "YCBCR", "subsampling": "420"}
CACHE_MIB = 64  # small, so that it is full long before the end
LOOK_S, CONNECTIONS, WINDOW = 0.3, 6, (1400, 900)


def write_slide(path: Path) -> None:
    """Write a pyramid whose blocks are few, and pointed to by all places of a level in turn."""
    picture, _ = draw_slide(
        np.random.default_rng(0), side_um=1024, mpp=0.5, tissue_fraction=0.9, stain=Stain(), tumor=True
    )
    sides = [SIDE]
    while sides[-1] // FACTOR >= SMALLEST:
        sides.append(sides[-1] // FACTOR)
    unfinished = path.with_name(f"unfinished_{path.name}")
    with tifffile.TiffWriter(unfinished, bigtiff=True) as tiff:
        for index, side in enumerate(sides):
            shown = cv2.resize(picture, None, fx=0.5**index, fy=0.5**index, interpolation=cv2.INTER_AREA)
            data = [
                imagecodecs.jpeg8_encode(
                    each, level=85, colorspace="RGB", outcolorspace="YCBCR", subsampling="420"
                )
                for each in _blocks(shown)
            ]
            count = (-(-side // BLOCK)) ** 2
            per_cm = 10_000 / (MPP * SIDE / side)
            tiff.write(
                iter(data + [b""] * (count - len(data))),
                shape=(side, side, 3), dtype=np.uint8, tile=(BLOCK, BLOCK),
                photometric="ycbcr", subsampling=(2, 2), compression="jpeg", metadata=None,
                resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", subfiletype=int(index > 0),
            )  # fmt: skip
    _repeat_blocks(unfinished)
    unfinished.replace(path)


def _blocks(picture: np.ndarray) -> Iterator[np.ndarray]:
    for top in range(0, picture.shape[0] - BLOCK + 1, BLOCK):
        for left in range(0, picture.shape[1] - BLOCK + 1, BLOCK):
            yield np.ascontiguousarray(picture[top : top + BLOCK, left : left + BLOCK])


def _repeat_blocks(path: Path) -> None:
    """Let the places without data point to the blocks that have some, each row starting with another one."""
    with tifffile.TiffFile(path) as tiff:
        tables = []
        for page in tiff.pages:
            offsets, counts = np.array(page.dataoffsets), np.array(page.databytecounts)
            (there,) = np.nonzero(counts)
            columns = -(-page.imagewidth // BLOCK)
            row, column = np.divmod(np.arange(len(counts)), columns)
            chosen = there[(column + 7 * row) % len(there)]
            for tag, values in (("TileOffsets", offsets[chosen]), ("TileByteCounts", counts[chosen])):
                tables.append((page.tags[tag], values, tiff.byteorder))
    with path.open("r+b") as file:
        for tag, values, order in tables:
            kind = {3: "H", 4: "I", 16: "Q"}[int(tag.dtype)]
            file.seek(tag.valueoffset)
            file.write(struct.pack(f"{order}{len(values)}{kind}", *values.tolist()))


def make_run(folder: Path) -> Path:
    """Write the slide, its patches and a heatmap of all of it; return the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    slide, run = folder / "huge.tiff", folder / "view-run"
    if not slide.exists():
        write_slide(slide)
    plan = PatchGeometry.plan(width_l0=SIDE, height_l0=SIDE, mpp_l0=MPP, mpp=0.5, patch_px=160)
    coords = grid_l0(plan)
    patches = store.Patches(
        slide_id="huge", slide_path=slide.absolute(), reader="openslide", mpp_source="given", geometry=plan,
        coords=coords, tissue_fraction=np.ones(len(coords), np.float32), record={},
    )  # fmt: skip
    path = store.patches_path(run, "huge")
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_patches(path, patches)
    drawn = np.random.default_rng(0).random((3, 2, len(coords)), dtype=np.float32)
    heatmap = store.Heatmap(
        slide_id="huge", geometry=plan, coords=coords, outputs=("normal", "tumor"), record={}, facts={},
        values=dict(zip(("attention", "evidence", "probability"), drawn, strict=True)),
        shown={"quantity": "attention", "output": "tumor"},
    )  # fmt: skip
    target = store.heatmap_folder(run, "m", "huge")
    target.mkdir(parents=True, exist_ok=True)
    store.write_heatmap(target / "heatmap.zarr", heatmap)
    return run


class Client:
    """One person: a window that moves, six connections, and the squares that it has seen."""

    def __init__(self, url: str, seed: int) -> None:
        parts = urlsplit(url)
        self.host, self.base, self.rng = parts.netloc, parts.path, np.random.default_rng(seed)
        self.local, self.pool = threading.local(), ThreadPoolExecutor(CONNECTIONS)
        self.seen: set[tuple[int, int, int]] = set()
        self.seconds: list[float] = []
        self.errors: list[str] = []

    def fetch(self, name: tuple[int, int, int]) -> None:
        start = time.perf_counter()
        try:
            if not hasattr(self.local, "connection"):
                self.local.connection = http.client.HTTPConnection(self.host, timeout=30)
            address = f"{self.base}slides/huge/square/{'/'.join(map(str, name))}"
            try:
                self.local.connection.request("GET", address)
                answer = self.local.connection.getresponse()
            except http.client.RemoteDisconnected:  # idle for too long: browsers ask again, too
                self.local.connection.close()
                self.local.connection.request("GET", address)
                answer = self.local.connection.getresponse()
            body = answer.read()
            if answer.status != 200 or body[:2] != b"\xff\xd8":
                self.errors.append(f"{name}: {answer.status} {body[:80]!r}")
        except OSError as error:
            self.errors.append(f"{name}: {error!r}")
        self.seconds.append(time.perf_counter() - start)

    def pan(self, until: float) -> None:
        depth, (x, y) = 9, (SIDE / 2, SIDE / 2)
        while time.monotonic() < until:
            depth = int(np.clip(depth + self.rng.choice([-1, 0, 0, 0, 0, 1]), 0, 9))
            scale = 2.0**depth
            x, y = np.clip(np.array([x, y]) + self.rng.normal(0, 400, 2) * scale, 0, SIDE)
            step = 256 * scale
            names = {
                (depth, column, row)
                for column in range(max(0, int((x - WINDOW[0] / 2 * scale) // step)),
                                    min(-(-SIDE // int(step)), int((x + WINDOW[0] / 2 * scale) // step) + 1))
                for row in range(max(0, int((y - WINDOW[1] / 2 * scale) // step)),
                                 min(-(-SIDE // int(step)), int((y + WINDOW[1] / 2 * scale) // step) + 1))
            }  # fmt: skip
            list(self.pool.map(self.fetch, sorted(names - self.seen)))
            self.seen |= names
            time.sleep(LOOK_S)
        self.pool.shutdown()


def alone(run: Path, count: int = 150) -> tuple[float, float]:
    """Return the median wall time and the mean CPU time, in ms, of a square read with nobody else asking.

    How far the two are apart says how busy the machine is with other things.
    """
    rng, wall = np.random.default_rng(1), []
    with RunSlides(run).open("huge") as slide:
        before = time.process_time()
        for depth in rng.integers(0, 6, count).tolist():
            columns, rows = tiles.counts(SIDE, SIDE, depth)
            start = time.perf_counter()
            tiles.to_jpeg(tiles.read_square(slide, depth, *(int(rng.integers(n)) for n in (columns, rows))))
            wall.append(time.perf_counter() - start)
        used = time.process_time() - before
    return 1000 * statistics.median(wall), 1000 * used / count


def memory_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(run: Path, clients: int, seconds: float) -> dict[str, Any]:
    """Let ``clients`` pan for ``seconds`` and return what they saw."""
    command = [sys.executable, "-m", "wsi_mil", "view", "--run", str(run), "--cache-mib", str(CACHE_MIB)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            assert server.stdout
            url = next(line.strip() for line in server.stdout if line.strip().startswith("http"))
            everyone = [Client(url, seed) for seed in range(clients)]
            threads = [
                threading.Thread(target=each.pan, args=(time.monotonic() + seconds,)) for each in everyone
            ]
            memory, start, before = [], time.monotonic(), cpu_seconds(server.pid)
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                memory.append((time.monotonic() - start, memory_mib(server.pid)))
                time.sleep(0.5)
            used, wall = cpu_seconds(server.pid) - before, time.monotonic() - start
        finally:
            server.terminate()
    took = sorted(second for each in everyone for second in each.seconds)
    third = [mib for at, mib in memory if seconds / 3 < at < 2 * seconds / 3]
    return {
        "squares": len(took), "per_s": len(took) / wall, "median": 1000 * statistics.median(took),
        "p95": 1000 * took[int(0.95 * len(took))], "errors": [e for each in everyone for e in each.errors],
        "cores": used / wall, "cpu_ms": 1000 * used / len(took), "memory_first": memory[0][1],
        "memory_middle": statistics.median(third), "memory_last": memory[-1][1],
    }  # fmt: skip


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.view", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("bench"))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 20])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--append", action="store_true")
    options = parser.parse_args()
    run = make_run(options.folder)
    patches = len(store.read_patches(store.patches_path(run, "huge")).coords)
    lines = [
        f"`python -m benchmarks.view --clients {' '.join(map(str, options.clients))} --seconds "
        f"{options.seconds:g}`, {os.cpu_count()} cores. {SIDE} x {SIDE} pixels, {patches} patches.",
        "",
        "| clients | load before | one square alone: ms, CPU ms | squares | per second | median ms | 95 % ms "
        "| errors | server's cores | CPU ms a square | MiB at start, middle, end |",
        "|" + "---|" * 11,
    ]
    for clients in options.clients:
        load = os.getloadavg()[0]
        by_wall, by_cpu = alone(run)
        found = measure(run, clients, options.seconds)
        print(json.dumps({**found, "errors": found["errors"][:5]}))
        memory = ", ".join(f"{found[f'memory_{when}']:.0f}" for when in ("first", "middle", "last"))
        lines.append(
            f"| {clients} | {load:.1f} | {by_wall:.1f}, {by_cpu:.1f} | {found['squares']} "
            f"| {found['per_s']:.0f} | {found['median']:.1f} "
            f"| {found['p95']:.0f} | {len(found['errors'])} | {found['cores']:.2f} | {found['cpu_ms']:.1f} "
            f"| {memory} |"
        )
    publish("Viewer", lines, append=options.append)


if __name__ == "__main__":
    main()
