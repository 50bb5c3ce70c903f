"""The drawn bags of ``benchmarks.train``, once for each reader, and files put out of the page cache.

60 training bags of 1,500 to 6,000 patches and 100 bags of 1,000 to score, 1,024 features each: 32 latent
dimensions through a fixed random map, plus noise, plus a shift that each slide has of its own. A patch that
is a witness is moved by ``SHIFT`` along one latent direction. The part of a bag that is witnesses is
uniform in 0 to 10 % where the bag is positive and in 0 to 2 % where it is not, so that no model can rank
all bags right: who knew the parts themselves would reach an AUROC of 0.9 (expected), and the table says
what it is for the bags drawn.
"""

import ctypes
import mmap
import os
import sys
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from wsi_mil import store
from wsi_mil.geometry import PatchGeometry, grid_l0

TRAIN, VAL = 60, 100
SMALLEST, LARGEST, VAL_PATCHES = 1_500, 6_000, 1_000
DIM, LATENT, SHIFT, NOISE, SLIDE = 1_024, 32, 4.0, 0.5, 0.05
POSITIVE, NEGATIVE = 0.10, 0.02
"""Largest part of a bag that is witnesses."""

ENCODER = "drawn"
EVICTED = 0.02
"""A file counts as evicted when at most this part of it is in memory."""


def make(folder: Path) -> float:
    """Write the bags where they are not yet; return the AUROC of the parts themselves."""
    done = folder / "train-ceiling.txt"
    if done.is_file():
        return float(done.read_text())
    rng = np.random.default_rng(0)
    map_LD = rng.normal(size=(LATENT, DIM)).astype(np.float32) / np.sqrt(LATENT)
    direction_L = rng.normal(size=LATENT)
    direction_L *= SHIFT / np.linalg.norm(direction_L)
    for each in ("h5", "npy/features", "npy/labels", "clam/pt_files", "val"):
        (folder / each).mkdir(parents=True, exist_ok=True)
    rows = ["slide_id,label"]
    parts = []
    for number in range(TRAIN + VAL):
        code = number % 2
        n = int(rng.integers(SMALLEST, LARGEST + 1)) if number < TRAIN else VAL_PATCHES
        part = rng.uniform(0, POSITIVE if code else NEGATIVE)
        x_ND = draw(rng, n, part, map_LD, direction_L)
        if number < TRAIN:
            write(folder, f"s{number:03d}", x_ND, code)
            rows.append(f"s{number:03d},{'positive' if code else 'negative'}")
        else:
            np.save(folder / "val" / f"v{number:03d}.npy", x_ND)
            parts.append(part)
    (folder / "train-run" / "labels.csv").write_text("\n".join(rows) + "\n")
    ceiling = float(roc_auc_score(val_codes(), parts))
    done.write_text(str(ceiling))
    return ceiling


def draw(
    rng: np.random.Generator,
    n: int,
    part: float,
    map_LD: NDArray[np.float32],
    direction_L: NDArray[np.float64],
) -> NDArray[np.float16]:
    z_NL = rng.standard_normal((n, LATENT), dtype=np.float32)
    z_NL[rng.permutation(n)[: round(part * n)]] += direction_L.astype(np.float32)
    x_ND = z_NL @ map_LD
    x_ND += NOISE * rng.standard_normal((n, map_LD.shape[1]), dtype=np.float32)
    x_ND += SLIDE * rng.standard_normal(map_LD.shape[1], dtype=np.float32)
    return x_ND.astype(np.float16)


def write(folder: Path, slide_id: str, x_ND: NDArray[np.float16], code: int) -> None:
    """Write one bag as each reader wants it; all hold the same numbers."""
    plan = PatchGeometry.plan(
        width_l0=100 * 224, height_l0=100 * 224, mpp_l0=0.5, mpp=0.5, patch_px=224
    )  # fmt: skip
    item = store.Features(
        slide_id=slide_id, slide_path=Path(f"{slide_id}.svs"), reader="none", geometry=plan,
        coords=grid_l0(plan)[: len(x_ND)], features=x_ND, encoder=ENCODER, weights_digest="drawn",
        patches_digest="drawn", record={"encoder": ENCODER},
    )  # fmt: skip
    store.write_features(store.features_path(folder / "train-run", ENCODER, slide_id), item)
    x_ND = x_ND.astype(np.float32)
    with h5py.File(folder / "h5" / f"{slide_id}.h5", "w") as file:
        file["features"] = x_ND
    np.save(folder / "npy" / "features" / f"{slide_id}.npy", x_ND)
    np.save(folder / "npy" / "labels" / f"{slide_id}.npy", np.array(code))
    torch.save(torch.from_numpy(x_ND), folder / "clam" / "pt_files" / f"{slide_id}.pt")


def stored(folder: Path, kind: str) -> list[Path]:
    """Return the training bags' files in the order of their codes 0, 1, 0, 1, ...; kind: h5 (float32, as the
    field's tools write them) or run (float16, as ours)."""
    return sorted((folder / "h5" if kind == "h5" else folder / "train-run/features" / ENCODER).glob("*.h5"))


def lengths(folder: Path) -> list[int]:
    found = []
    for path in stored(folder, "h5"):
        with h5py.File(path) as file:
            found.append(len(file["features"]))
    return found


def val_bags(folder: Path) -> list[NDArray[np.float16]]:
    return [np.load(each) for each in sorted((folder / "val").glob("*.npy"))]


def val_codes() -> NDArray[np.int64]:
    """Return the classes of ``val_bags``."""
    return np.arange(TRAIN, TRAIN + VAL) % 2


def evict(paths: list[Path]) -> None:
    """Put files out of the page cache (written back, then POSIX_FADV_DONTNEED), and see that they are.

    What caches lie beyond this machine's memory (a host's, a disk's own) is out of reach.
    """
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    left = max(resident(path) for path in paths)
    if left > EVICTED:
        print(f"NOT COLD: {left:.0%} of a file stayed in the page cache", file=sys.stderr)


def warm(paths: list[Path]) -> None:
    for path in paths:
        path.read_bytes()


def resident(path: Path) -> float:
    """Return the part of a file's pages that is in memory (mincore)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as map_:
        first = ctypes.c_char.from_buffer(map_)
        seen = (ctypes.c_ubyte * -(-len(map_) // mmap.PAGESIZE))()
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(map_)), seen)
        del first
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
    return sum(each & 1 for each in seen) / len(seen)
