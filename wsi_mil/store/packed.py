"""Bags packed for training: the features of many slides of one encoder in one memory-mapped array.

Comes in: features, slide by slide. Goes out: RUN/train/bags/<encoder>/ with ``features.f16``, plain float16
rows, and ``index.json``, which says whose they are (FORMATS.md). It is a cache: whatever it holds, the
features hold too. When it is made and used, the train stage decides.
"""

import contextlib
import json
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from wsi_mil.errors import FormatError
from wsi_mil.store import checksum as checksums
from wsi_mil.store.atomic import atomic_folder
from wsi_mil.store.disk import refusal, refused_advice
from wsi_mil.store.layout import bags_folder
from wsi_mil.store.problems import Kind, Problem, of_error

_FORMAT, _VERSION = "wsi-mil bags", 1
_INDEX, _FEATURES = "index.json", "features.f16"
_PIECE = 8 << 20
"""Bytes that are read ahead at a time."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """The features of slides, row after row in one array.

    ``array`` (T, D) float16 is memory-mapped and read only; rows ``ranges[i]`` (start, stop) are those of
    ``slide_ids[i]``, whose features have the checksum ``checksums[i]``. The array may hold more slides than
    are listed. ``identity`` is what all of them share (``Features.identity``).
    """

    array: NDArray[np.float16]
    slide_ids: tuple[str, ...]
    ranges: tuple[tuple[int, int], ...]
    checksums: tuple[str, ...]
    identity: dict[str, Any]

    def rows(self, i: int) -> slice:
        """Return which rows of ``array`` are those of slide ``i``."""
        return slice(*self.ranges[i])

    def bag(self, i: int) -> NDArray[np.float16]:
        """Return the features (N, D) of slide ``i``: a view, which reads from the disk what is looked at."""
        return self.array[self.rows(i)]

    def is_whole(self, i: int) -> bool:
        """Tell whether the features of slide ``i`` are those that were packed, by their checksum."""
        return checksums.of_array(self.bag(i)) == self.checksums[i]

    def read_ahead(self) -> threading.Thread | None:
        """Have the system read the file into its cache, from the first row to the last, in the background.

        Nothing is done where it is more than half of this machine's memory; whoever uses the array then
        reads what it needs.
        """
        path = getattr(self.array, "filename", None)  # None: an array that is no memory map
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if path is None or self.array.nbytes > memory / 2:
            return None
        reading = threading.Thread(target=_read_through, args=(path,), name="read ahead", daemon=True)
        reading.start()
        return reading

    def take(self, slide_ids: Iterable[str]) -> "Packed":
        """Return the same array for some of the slides, in the order asked for."""
        at = {slide_id: i for i, slide_id in enumerate(self.slide_ids)}
        picked = [at[slide_id] for slide_id in slide_ids]
        return Packed(
            array=self.array,
            slide_ids=tuple(self.slide_ids[i] for i in picked),
            ranges=tuple(self.ranges[i] for i in picked),
            checksums=tuple(self.checksums[i] for i in picked),
            identity=self.identity,
        )


def write_packed(
    run: Path,
    encoder: str,
    identity: dict[str, Any],
    slides: Iterable[tuple[str, NDArray[np.float16]]],
    need: int | None = None,
) -> Packed:
    """Write the features (N, D) of slides, one after the other, in place of what was packed before.

    ``need`` is how many bytes they have, where that is known: for the message of a full disk.

    Raises:
        StoreError: the disk is full, read-only, or does not let us.
        FormatError: features of another dimension than ``identity`` says.
        ValueError: not one patch among them.
    """
    dim, start, index = int(identity["dim"]), 0, []
    folder = bags_folder(run, encoder)
    with atomic_folder(folder, need) as temporary:
        with (temporary / _FEATURES).open("wb", buffering=0) as file:
            for slide_id, features_ND in slides:
                if features_ND.ndim != 2 or features_ND.shape[1] != dim:
                    raise FormatError(
                        f"{slide_id}: features of shape {features_ND.shape}; wanted (N, {dim})."
                    )
                _write(file, features_ND)
                stop = start + len(features_ND)
                checksum = checksums.of_array(features_ND.astype("<f2", copy=False))
                index.append({"slide_id": slide_id, "start": start, "stop": stop, "checksum": checksum})
                start = stop
        if not start:
            raise ValueError("not one patch to pack")
        content = {
            "format": _FORMAT,
            "format_version": _VERSION,
            "encoder": encoder,
            "identity": identity,
            "shape": [start, dim],
            "slides": index,
        }
        (temporary / _INDEX).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return read_packed(run, encoder)


def read_packed(run: Path, encoder: str) -> Packed:
    """Return what is packed of an encoder; nothing is read but the index.

    Raises:
        FormatError: there is nothing, or it is not what it should be.
    """
    return _read(bags_folder(run, encoder))


def check_packed(folder: Path) -> list[Problem]:
    """Return what is wrong with a folder of packed bags; it is repaired by training again."""

    def problem(kind: Kind, detail: str) -> list[Problem]:
        name = folder / _INDEX if kind != "checksum" else folder / _FEATURES
        return [Problem(file=str(name), kind=kind, detail=detail, command="train", removable=folder)]

    try:
        packed = _read(folder)
    except FormatError as error:
        text = str(error).removeprefix(f"{folder}: ")
        if refusal(error):
            found = Problem(file=str(folder), kind="unreadable", detail=text, command="train")
            return [of_error(found, error)]
        kind: Kind = "wrong format" if "format version" in text else "unreadable"
        return problem(kind, text.split("; remove it")[0])
    for i, slide_id in enumerate(packed.slide_ids):
        if not packed.is_whole(i):
            return problem("checksum", f"the features of {slide_id} are not those that were packed")
    return []


def _read(folder: Path) -> Packed:
    path = folder / _FEATURES
    try:
        content = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        if content["format"] == _FORMAT and int(content["format_version"]) > _VERSION:
            raise FormatError(
                f"{folder}: format version {content['format_version']}, this program knows {_VERSION}; "
                "update wsi-mil, or remove it: the next training makes it again."
            )
        if content["format"] != _FORMAT or content["format_version"] != _VERSION:
            raise ValueError(f"it says it is {content['format']!r} version {content['format_version']}")
        rows, dim = (int(each) for each in content["shape"])
        slides = content["slides"]
        packed_ranges = tuple((int(each["start"]), int(each["stop"])) for each in slides)
        _check_ranges(packed_ranges, rows)
        size = path.stat().st_size
        if size != 2 * rows * dim:
            raise ValueError(
                f"{_FEATURES} has {size} bytes, and {rows} rows of {dim} features {2 * rows * dim}"
            )
        return Packed(
            array=np.memmap(path, "<f2", "r", shape=(rows, dim)),
            slide_ids=tuple(str(each["slide_id"]) for each in slides),
            ranges=packed_ranges,
            checksums=tuple(str(each["checksum"]) for each in slides),
            identity=dict(content["identity"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, FormatError):
            raise
        if said := refusal(error):
            raise FormatError(f"{folder}: cannot be read ({said}); {refused_advice(error)}.") from error
        raise FormatError(
            f"{folder}: no packed bags, or damaged ({error!r}); remove it: the next training makes it again."
        ) from error


def _read_through(path: Path) -> None:
    """Read a file and keep nothing of it; a file that cannot be read is the business of who needs it."""
    piece = bytearray(_PIECE)
    with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass


def _check_ranges(ranges: Sequence[tuple[int, int]], rows: int) -> None:
    """Refuse an index whose slides do not follow each other from the first row to the last."""
    edges = [0, *(stop for _, stop in ranges)]
    if (
        [start for start, _ in ranges] != edges[:-1]
        or sorted(edges) != edges
        or edges[-1] != rows
        or not rows
    ):
        raise ValueError(f"the rows of its slides are not the {rows} rows that it has")


def _write(file: BinaryIO, features_ND: NDArray[np.float16]) -> None:
    data = np.ascontiguousarray(features_ND, "<f2").reshape(-1).view(np.uint8).data
    while data:  # an unbuffered file may take less than it is given
        data = data[file.write(data) :]
