"""How long `wsi-mil inspect` takes over a folder, how much memory, and how little of a remote slide it reads.

    python -m benchmarks.inspect_slides --folder bench [--append]

Baseline in the same run: opening each slide with OpenSlide and reading its properties, and nothing else.
"""

import argparse
import functools
import http.server
import json
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openslide

from benchmarks.results import publish
from pipelines.pyramid import write_pyramid
from tests.test_remote import RangeHandler

# The peak of a process that was started by this one counts this one's memory: it tells its own.
_INSPECT = """
import re, sys
from pathlib import Path
from wsi_mil.cli import main
if __name__ == "__main__":
    main(sys.argv[1:])
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""
DRAWN, COPIES, SIDE, LARGE_SIDE = 10, 20, 2048, 12_288


def draw(side: int, seed: int) -> np.ndarray:
    """Return something as hard to compress as tissue, at little cost: one drawn patch, shifted about."""
    rng = np.random.default_rng(seed)
    cell = np.clip(rng.normal((190, 120, 165), 25, (512, 512, 3)), 0, 255).astype(np.uint8)
    image = np.tile(cell, (-(-side // 512), -(-side // 512), 1))[:side, :side]
    image[: side // 4] = 240
    return image


def make_slides(folder: Path) -> None:
    """Write DRAWN slides and COPIES of each that differ in their last bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(DRAWN):
        path = folder / f"s{number:02}_00.svs"
        if not path.exists():
            write_pyramid(path, draw(SIDE, number), 0.5, block=240)
        for copy in range(1, COPIES):
            other = folder / f"s{number:02}_{copy:02}.svs"
            if not other.exists():
                shutil.copy(path, other)
                with other.open("ab") as file:
                    file.write(copy.to_bytes(16, "little"))


def timed(*arguments: str) -> tuple[float, float, float, dict]:
    """Run `wsi-mil inspect --json` and return seconds, CPU seconds, peak MiB of the main process, output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    command = [sys.executable, "-c", _INSPECT, "inspect", "--json", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, int(result.stderr.rsplit(None, 1)[-1]) / 1024, json.loads(result.stdout)


def baseline(folder: Path) -> tuple[float, float]:
    """Return seconds and CPU seconds that OpenSlide takes to open all slides and read their properties."""
    start, cpu = time.perf_counter(), time.process_time()
    for path in sorted(folder.iterdir()):
        with openslide.OpenSlide(path) as slide:
            dict(slide.properties)
    return time.perf_counter() - start, time.process_time() - cpu


@contextmanager
def served(folder: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """Serve a folder with ranges, and remember which were asked for."""
    handler = functools.partial(RangeHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.asked, server.delay, server.ranges = [], 0.0, True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def main() -> None:
    """Make the slides that are missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench"))
    parser.add_argument("--append", action="store_true", help="append the table to benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    folder, remote = arguments.folder / "inspect", arguments.folder / "inspect_remote"
    make_slides(folder)
    remote.mkdir(parents=True, exist_ok=True)
    large = remote / "large.svs"
    if not large.exists():
        write_pyramid(large, draw(LARGE_SIDE, 99), 0.25, block=240)
    count = len(list(folder.iterdir()))
    lines = [f"`python -m benchmarks.inspect_slides`; {count} drawn slides of {SIDE} x {SIDE}, JPEG.", ""]
    lines += ["| what | seconds | CPU seconds | peak MiB (a process) |", "|---|---|---|---|"]
    plain, plain_cpu = min(baseline(folder) for _ in range(2))
    lines.append(
        f"| OpenSlide opens each and tells its properties: no more | {plain:.2f} | {plain_cpu:.2f} | |"
    )
    for workers in ("1", "2"):
        seconds, cpu, peak, found = timed(str(folder), "--workers", workers)
        assert len(found["slides"]) == count
        assert found["wrong"] == 0
        ratio = f"{cpu / plain_cpu:.0f} x the CPU time of the first line, {1000 * cpu / count:.0f} ms a slide"
        lines.append(f"| `inspect --workers {workers}`: {ratio} | {seconds:.2f} | {cpu:.2f} | {peak:.0f} |")
    with served(remote) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/large.svs"
        seconds, _, peak, found = timed(url)
        fetched, requests = sum(size for _, size in server.asked), len(server.asked)
    size = large.stat().st_size
    (slide,) = found["slides"]
    assert slide["fast_path"]
    assert not slide["problems"]
    lines += [
        "",
        f"A slide of {LARGE_SIDE} x {LARGE_SIDE} behind a URL ({size / 1e6:.0f} MB, {len(slide['levels'])} "
        f"levels): {fetched / 1e6:.2f} MB in {requests} requests, {fetched / size:.1%} of it; "
        f"{slide['seconds']:.2f} s, peak {peak:.0f} MiB.",
    ]
    publish("wsi-mil inspect", lines, append=arguments.append)


if __name__ == "__main__":
    main()
