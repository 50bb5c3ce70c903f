"""What compression of float16 features costs and saves, in HDF5 and in zarr.

    python -m benchmarks.store ../shared/data/ucsb_breast [--append]

Embeds overlapping crops of real tissue (a folder of pictures) with the built-in encoder, then writes and
reads them with each filter, in the chunks and shards that the store uses. Times are the best of --repeat,
through the page cache: what the filter costs, not the disk.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
import zarr
from PIL import Image
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec
from zarr.storage import LocalStore

from benchmarks.results import publish
from wsi_mil.embed import encode
from wsi_mil.encoders import load_encoder
from wsi_mil.store.hdf5 import CHUNK_ROWS
from wsi_mil.store.zarr_groups import SHARD_BYTES

HDF5 = {
    "none": {},
    "shuffle + lzf": {"compression": "lzf", "shuffle": True},
    "gzip 1": {"compression": "gzip", "compression_opts": 1},
    "shuffle + gzip 1": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
    "shuffle + gzip 4": {"compression": "gzip", "compression_opts": 4, "shuffle": True},
}
ZARR = {
    "none": None,
    "gzip 1": GzipCodec(level=1),
    "zstd 1": ZstdCodec(level=1),
    "zstd 3": ZstdCodec(level=3),
    **{
        f"{shuffle} + {name} (blosc, level {level})": BloscCodec(
            typesize=2, cname=name, clevel=level, shuffle=shuffle
        )
        for name, level in (("lz4", 5), ("zstd", 1), ("zstd", 5))
        for shuffle in ("shuffle", "bitshuffle")
    },
}


def embed_pictures(folder: Path, count: int) -> np.ndarray:
    """(count, D) float16 of crops of 224 pixels, spread evenly over the pictures."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".png", ".tif", ".jpg"})
    encoder = load_encoder("tf_efficientnet_lite0")
    side = int(np.ceil(np.sqrt(count / len(paths))))
    found: list[np.ndarray] = []
    for path in paths:
        picture = np.asarray(Image.open(path).convert("RGB"))
        ys, xs = (np.linspace(0, size - 224, side).astype(int) for size in picture.shape[:2])
        crops = np.stack([picture[y : y + 224, x : x + 224] for y in ys for x in xs])
        found += [encode(encoder, crops[i : i + 32], torch.device("cpu")) for i in range(0, len(crops), 32)]
    return np.concatenate(found)[:count]


def best(repeat: int, act: Callable[[], object]) -> float:
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        act()
        times.append(time.perf_counter() - start)
    return min(times)


def hdf5(path: Path, values: np.ndarray, options: dict, repeat: int) -> tuple[int, float, float]:
    def write() -> None:
        with h5py.File(path, "w") as file:
            file.create_dataset("features", data=values, chunks=(CHUNK_ROWS, values.shape[1]), **options)

    def read() -> None:
        with h5py.File(path) as file:
            assert len(file["features"][:]) == len(values)

    return best(repeat, write), best(repeat, read), path.stat().st_size


def zarr3(path: Path, values: np.ndarray, codec: object, repeat: int) -> tuple[int, float, float]:
    rows = SHARD_BYTES // (CHUNK_ROWS * 2 * values.shape[1]) * CHUNK_ROWS

    def write() -> None:
        array = zarr.create_array(
            LocalStore(path), shape=values.shape, dtype="<f2", chunks=(CHUNK_ROWS, values.shape[1]),
            shards=(rows, values.shape[1]), compressors=codec, overwrite=True, fill_value=np.nan,
        )  # fmt: skip
        for start in range(0, len(values), rows):
            array[start : start + rows] = values[start : start + rows]

    def read() -> None:
        assert len(zarr.open_array(LocalStore(path), mode="r")[:]) == len(values)

    return (
        best(repeat, write),
        best(repeat, read),
        sum(f.stat().st_size for f in path.rglob("*") if f.is_file()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--patches", type=int, default=2048)
    parser.add_argument("--copies", type=int, default=4, help="how often the patches follow each other")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--append", action="store_true", help="append the table to RESULTS.md")
    arguments = parser.parse_args()
    values = np.concatenate([embed_pictures(arguments.pictures, arguments.patches)] * arguments.copies)
    lines = [
        f"{platform.machine()}. `python -m benchmarks.store {arguments.pictures}`: "
        f"{values.shape[0]} x {values.shape[1]} float16 "
        f"of tf_efficientnet_lite0 ({values.nbytes / 1e6:.1f} MB; {arguments.patches} crops of real tissue, "
        f"{arguments.copies} times, farther apart than a chunk of {CHUNK_ROWS} rows).\n",
        "| | size, % | write, MB/s | read, MB/s |\n|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for kind, measure, options in (("HDF5", hdf5, HDF5), ("zarr", zarr3, ZARR)):
            for number, (name, option) in enumerate(options.items()):
                path = Path(folder) / f"{kind}{number}"
                write, read, size = measure(path, values, option, arguments.repeat)
                speeds = f"{values.nbytes / 1e6 / write:.0f} | {values.nbytes / 1e6 / read:.0f}"
                lines.append(f"| {kind}: {name} | {100 * size / values.nbytes:.1f} | {speeds} |")
                print(lines[-1], flush=True)
    publish("Compression of features", lines, append=arguments.append)


if __name__ == "__main__":
    main()
