"""The pixels of patches as files, for people who want images: a zip, or a tar as webdataset reads it.

Comes in: an open slide and its patches. Goes out: one archive per slide, the same bytes for the same patches.
"""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2

from wsi_mil import blocks, store
from wsi_mil.slide import Slide

_SUFFIXES = {"zip": ".zip", "webdataset": ".tar"}
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the time of writing would make other bytes each time


def archive_path(run: Path, slide_id: str, kind: str) -> Path:
    """Return RUN/patches/<slide_id>.zip or .tar."""
    return store.patches_path(run, slide_id).with_suffix(_SUFFIXES[kind])


def write_pixels(
    path: Path, slide: Slide, patches: store.Patches, kind: Literal["zip", "webdataset"]
) -> tuple[int, int]:
    """Write the patches of a slide as PNG into an archive; return how many are there and how many missing.

    A patch is ``<slide_id>_<row in coords>_<x>_<y>.png`` (level-0 x, y); in a webdataset there is a ``.json``
    of the same name with ``slide_id``, ``x_l0``, ``y_l0``, ``mpp`` and ``index``. Missing are those that
    could not be read.

    Raises:
        StoreError: the disk is full, read-only, or does not let us.
    """
    count = 0
    with store.atomic_file(path) as temporary:
        if kind == "zip":
            # Stored, not deflated: PNG is compressed.
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
                for name, picture, _ in _pictures(slide, patches):
                    archive.writestr(zipfile.ZipInfo(f"{name}.png", _LONG_AGO), picture)
                    count += 1
        else:
            with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
                for name, picture, facts in _pictures(slide, patches):
                    _add(tar, f"{name}.png", picture)
                    _add(tar, f"{name}.json", facts)
                    count += 1
    return count, len(patches.coords) - count


def _pictures(slide: Slide, patches: store.Patches) -> Iterator[tuple[str, bytes, bytes]]:
    plan = patches.geometry
    digits = len(str(len(patches.coords)))
    for batch in blocks.stream(slide, patches.coords, plan, workers=1, max_broken=1.0):
        for row, patch in zip(batch.index.tolist(), batch.patches, strict=True):
            x, y = patches.coords[row].tolist()
            png = cv2.imencode(".png", cv2.cvtColor(patch, cv2.COLOR_RGB2BGR))[1].tobytes()
            facts = {"slide_id": patches.slide_id, "index": row, "x_l0": x, "y_l0": y, "mpp": plan.mpp}
            # A dot would end the key of a sample of a webdataset.
            name = f"{patches.slide_id.replace('.', '_')}_{row:0{digits}d}_{x}_{y}"
            yield name, png, json.dumps(facts).encode()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
