"""Patches and features as HDF5 files, one per slide (see FORMATS.md).

Comes in: arrays and their geometry. Goes out: files that say what they are, which version, and which settings
made them, under names that CLAM's and TRIDENT's readers know (``coords``, ``features``), with a checksum for
each dataset. Nothing here knows how a patch is found or embedded.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil.errors import FormatError
from wsi_mil.store import attributes as attrs
from wsi_mil.store import checksum
from wsi_mil.store.atomic import atomic_file
from wsi_mil.store.disk import refusal, refused_advice
from wsi_mil.store.items import Features, FeaturesHead, FeaturesSummary, Patches
from wsi_mil.store.record import same_record

CHUNK_ROWS = 512
DAMAGE = (
    KeyError, ValueError, TypeError, IndexError, AttributeError, OSError, RuntimeError, MemoryError,
    OverflowError,
)  # fmt: skip
"""What libraries raise at a file that is not what it should be."""
_LOCKING = False
"""No locks: a file is written under a name of the process's own and never changed under its final name, and
many file systems of clusters grant none."""
_ROOM = 256 * 1024  # what HDF5 itself needs beside the arrays of a file, at most


def write_patches(path: Path, patches: Patches) -> None:
    """Write one slide's patches to ``path``, whole or not at all.

    Raises:
        StoreError: the disk is full, read-only, or does not let us.
    """
    arrays = {
        "coords": patches.coords.astype("<i8"),
        "tissue_fraction": patches.tissue_fraction.astype("<f4"),
    } | {name: column.astype("<f4") for name, column in patches.quality.items()}
    attributes = attrs.of_patches(patches)
    with _new_file(path, sum(each.nbytes for each in arrays.values())) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
            attributes[name]["checksum"] = checksum.of_array(array)
        _write_attributes(file, attributes)


def read_patches(path: Path) -> Patches:
    """Read one slide's patches.

    Raises:
        FormatError: no such file, no HDF5, or not a patches file of a version that this program knows.
    """
    with opened(path, attrs.PATCHES, "run `wsi-mil tile` first") as file:
        root = file.attrs
        return Patches(
            slide_id=str(root["slide_id"]),
            slide_path=configs.location(str(root["slide_path"])),
            reader=str(root["reader"]),
            mpp_source=str(root["mpp_source"]),
            geometry=attrs.to_geometry(root),
            coords=file["coords"][:].astype(np.int64),
            tissue_fraction=file["tissue_fraction"][:],
            record=json.loads(str(root["config"])),
            slide_fingerprint=str(root.get("slide_fingerprint", "")),
            quality={name: file[name][:] for name in file if name not in {"coords", "tissue_fraction"}},
            notes=json.loads(str(root.get("notes", "{}"))),
        )


def write_features(path: Path, features: Features) -> None:
    """Write one slide's features to ``path``, whole or not at all.

    Raises:
        StoreError: the disk is full, read-only, or does not let us.
    """
    stream_features(path, features.head, features.coords, [features.features], features.left_out)


def stream_features(
    path: Path,
    head: FeaturesHead,
    coords: NDArray[np.int64],
    blocks: Iterable[NDArray[np.float16]],
    left_out: Iterable[Mapping[str, Any]],
) -> None:
    """Write features that come in blocks of rows, in the order of ``coords``, whole or not at all.

    Raises:
        StoreError: the disk is full, read-only, or does not let us.
    """
    texts = [json.dumps(each) for each in left_out]
    attributes = attrs.of_features(head, len(texts))
    coords = coords.astype("<i8")
    shape = len(coords), head.dim
    need = coords.nbytes + 2 * shape[0] * shape[1] + sum(len(text) + 64 for text in texts)
    with _new_file(path, need) as file:
        if texts:  # a dataset: attributes hold 64 KiB at most
            file.create_dataset("left_out", data=texts)
            attributes["left_out"]["checksum"] = checksum.of_texts(texts)
        file.create_dataset("coords", data=coords)
        attributes["coords"]["checksum"] = checksum.of_array(coords)
        chunks = (min(CHUNK_ROWS, shape[0]), shape[1]) if all(shape) else None
        dataset = file.create_dataset("features", shape=shape, dtype="<f2", chunks=chunks)
        total, start = checksum.Checksum(), 0
        for block in blocks:
            rows = block.astype("<f2", copy=False)
            if len(rows):
                dataset[start : start + len(rows)] = rows
            total.update(rows)
            start += len(rows)
        attributes["features"]["checksum"] = total.text()
        _write_attributes(file, attributes)


def read_features(path: Path) -> Features:
    """Read one slide's features.

    Raises:
        FormatError: no such file, no HDF5, not a features file of a version that this program knows, or
            other values than those that were written.
    """
    with opened(path, attrs.FEATURES, "run `wsi-mil embed` first") as file:
        return attrs.to_features(
            str(path),
            file.attrs,
            coords=file["coords"][:],
            features=file["features"][:],
            checksum=file["features"].attrs.get("checksum"),
            left_out=left_out_texts(file),
        )


def summarise_features(path: Path) -> FeaturesSummary:
    """Return what a features file says about itself, without reading its arrays.

    Raises:
        FormatError: as ``read_features``.
    """
    with opened(path, attrs.FEATURES, "run `wsi-mil embed` first") as file:
        return attrs.to_summary(read_attributes(file), file["features"].shape)


def is_done(path: Path, record: dict[str, Any], what: str, overwrite: bool = False) -> bool:
    """Tell whether the HDF5 output at ``path`` is there, made with the settings in ``record``.

    With ``overwrite`` an output of other settings counts as absent.

    Raises:
        StaleOutputError: it is there, made with other settings; the message names the first that differs.
        FormatError: it is there and is not one of ours.
    """
    if not path.exists():
        return False
    try:
        with opened(path, f"wsi-mil {what}", "") as file:
            found = json.loads(str(file.attrs["config"]))
    except FormatError:
        if overwrite:
            return False
        raise
    return same_record(found, record, path, overwrite)


@contextmanager
def opened(path: Path, kind: str, advice: str) -> Iterator[Any]:
    """Open ``path`` for reading after checking what it says it is.

    Raises:
        FormatError: it is not what it should be, or the block meets something that it should not hold.
    """
    if not path.exists():
        raise FormatError(f"{path}: no such file; {advice or 'it should hold ' + kind}.")
    try:
        file = h5py.File(path, "r", locking=_LOCKING)
    except PermissionError as error:
        raise FormatError(f"{path}: no permission to read it; change its permissions (chmod).") from error
    except OSError as error:
        if said := refusal(error):
            raise FormatError(f"{path}: cannot be opened ({said}); {refused_advice(error)}.") from error
        raise FormatError(
            f"{path}: not readable as HDF5 ({error}); remove it and run the stage again."
        ) from error
    with file:
        try:
            attrs.check_format(str(path), file.attrs, kind)
            yield file
        except FormatError:
            raise
        except DAMAGE as error:
            if said := refusal(error):
                raise FormatError(f"{path}: cannot be read ({said}); {refused_advice(error)}.") from error
            raise FormatError(
                f"{path}: damaged, or not as FORMATS.md says ({error}); remove it and run the stage again."
            ) from error


def read_attributes(file: Any) -> attrs.Attributes:
    """Return the attributes of the root and of each dataset."""
    found = {"": dict(file.attrs)}
    return found | {name: dict(file[name].attrs) for name in file}


def left_out_texts(file: Any) -> list[str]:
    """Return the JSON texts of the patches that are left out of a features file."""
    return [each.decode() for each in file["left_out"][:]] if "left_out" in file else []


def _write_attributes(file: Any, attributes: attrs.Attributes) -> None:
    attributes[""]["attributes_checksum"] = checksum.of_attributes(attributes)
    for owner, values in attributes.items():
        target = file[owner] if owner else file
        for name, value in values.items():
            target.attrs[name] = value


@contextmanager
def _new_file(path: Path, size: int) -> Iterator[Any]:
    """Yield a new HDF5 file that becomes ``path`` when the block ends well; its arrays have ``size`` bytes.

    The space is reserved first, because the HDF5 library does not outlive a disk that fills up under it: its
    file can be neither written nor closed, and the process crashes when it tries.
    """
    with atomic_file(path, size) as temporary:
        file = h5py.File(temporary, "w", locking=_LOCKING)
        try:
            _reserve(temporary, size + size // 50 + _ROOM)
            yield file
            file.flush()
            used = file.id.get_filesize()
        except OSError:
            _give_up(file)
            raise
        except BaseException:
            file.close()
            raise
        file.close()
        os.truncate(temporary, used)  # gives back what was reserved and is not needed


def _reserve(path: Path, size: int) -> None:
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def _give_up(file: Any) -> None:
    """Close a file that the disk refused: what the library still has to write goes nowhere."""
    with tempfile.TemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as nowhere:
        os.dup2(nowhere.fileno(), file.id.get_vfd_handle())
    with suppress(OSError, RuntimeError):  # its cache may be beyond closing, which harms nobody now
        file.close()
