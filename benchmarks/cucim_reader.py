"""Read regions with cuCIM in a process of its own: its library does not start in one that holds torch.

Started by ``benchmarks.read``. Argument: a slide. Each line on stdin is JSON (mode, cache_mib, side, patch,
coords); each answer on stdout is the number of regions per second.
"""

import json
import sys
import time
from typing import Any

import cv2
import numpy as np
from cucim import CuImage


def read_single(image: Any, job: dict[str, Any]) -> None:
    for x, y in job["coords"]:
        resize(np.asarray(image.read_region((x, y), (job["side"],) * 2, 0)), job)


def read_batch(image: Any, job: dict[str, Any]) -> None:
    if job["cache_mib"]:
        CuImage.cache("per_process", memory_capacity=job["cache_mib"])
    size = (job["side"],) * 2
    for batch in image.read_region(job["coords"], size, 0, batch_size=32, num_workers=2):
        for region in np.asarray(batch).reshape(-1, *size, 3):
            resize(region, job)
    if job["cache_mib"]:
        CuImage.cache("nocache")


def resize(region: np.ndarray, job: dict[str, Any]) -> None:
    if job["side"] != job["patch"]:
        cv2.resize(region, (job["patch"],) * 2, interpolation=cv2.INTER_AREA)


def main() -> None:
    image = CuImage(sys.argv[1])
    for line in sys.stdin:
        job = json.loads(line)
        start = time.perf_counter()
        (read_batch if job["mode"] == "batch" else read_single)(image, job)
        print(len(job["coords"]) / (time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
