"""Read what other programs wrote, and trust nothing: no code is run, and every value is looked at.

Comes in: a path. Goes out: numbers, or a FormatError that says what is wrong with the file.
"""

import hashlib
import json
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from wsi_mil.errors import FormatError
from wsi_mil.store.disk import refusal, refused_advice
from wsi_mil.store.foreign.facts import Source

_ROWS = 8192  # of features that are looked at together
_LARGEST = float(np.finfo(np.float16).max)
_NUMPY_ERRORS = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)
_AGAIN = "the file is damaged: copy it again from where it came from"


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Yield the open HDF5 file.

    Raises:
        FormatError: it is none, or cannot be read where the block reads it.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:
        if said := refusal(error):
            raise FormatError(f"{path}: cannot be opened ({said}); {refused_advice(error)}.") from error
        raise FormatError(f"{path}: not readable as HDF5 ({error}); {_AGAIN}.") from error


def dataset(file: Any, name: str) -> Any:
    """Return a dataset of an open HDF5 file; raise FormatError where there is none of that name."""
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        there = ", ".join(file) or "none"
        raise FormatError(f"{file.filename}: no dataset {name!r}; there are: {there}.")
    return found


def number(attributes: Any, name: str, where: object) -> float:
    """Return the attribute (or JSON field) ``name`` as a finite number; raise FormatError otherwise."""
    found = attributes.get(name)
    try:
        value = float(found)
    except (TypeError, ValueError):
        value = float("nan")
    if not np.isfinite(value):
        raise FormatError(f"{where}: {name} is {found!r}; wanted a number.")
    return value


def whole(attributes: Any, name: str, where: object) -> int:
    """Return the attribute ``name`` as a whole number above 0; raise FormatError otherwise."""
    value = number(attributes, name, where)
    if value != round(value) or value < 1:
        raise FormatError(f"{where}: {name} is {value:g}; wanted a whole number above 0.")
    return int(value)


def text(attributes: Any, name: str) -> str:
    """Return the attribute ``name`` as text; "" where there is none, or 'None'."""
    found = attributes.get(name, "")
    found = found.decode(errors="replace") if isinstance(found, bytes) else str(found)
    return "" if found == "None" else found


def read_tensor(path: Path) -> torch.Tensor:
    """Return the tensor that a .pt file holds. Nothing but tensors is unpickled.

    Raises:
        FormatError: the file is damaged, holds code, or holds more than one plain tensor.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0] if str(error) else "not a pickle"
        raise FormatError(
            f"{path}: not a plain tensor: it is damaged, or it holds code, which is not run ({reason})."
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise FormatError(f"{path}: not readable as a tensor ({error}); {_AGAIN}.") from error
    if not isinstance(found, torch.Tensor) or found.layout != torch.strided:
        raise FormatError(
            f"{path}: holds a {type(found).__name__}; wanted one plain tensor (patches, features)."
        )
    return found.detach()


def read_array(path: Path, name: str | None = None) -> NDArray[Any]:
    """Return the array of a .npy file, or that called ``name`` of a .npz file; objects are refused.

    Raises:
        FormatError: the file is damaged, holds objects, or has no array of that name.
    """
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            array = found if name is None else found[name]
            return np.asarray(array)
    except _NUMPY_ERRORS as error:
        what = f" with an array {name!r}" if name else ""
        raise FormatError(f"{path}: not readable as a NumPy file{what} ({error}).") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise FormatError where it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: not readable as JSON ({error}).") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path}: holds a {type(found).__name__}; wanted an object.")
    return found


def corners(values: Any, where: object, *, round_them: bool = False) -> NDArray[np.int64]:
    """Return (N, 2) int64 level-0 (x, y); fractions are refused unless ``round_them``.

    Raises:
        FormatError: another shape, not numbers, NaN, or fractions of pixels.
    """
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros((0, 2), np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iuf":
        raise FormatError(f"{where}: coords are {array.dtype} of shape {array.shape}; wanted (patches, 2).")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise FormatError(f"{where}: the coords of patch {bad[0]} are {array[bad[0]].tolist()}.")
    whole_ones = np.rint(array)
    if not round_them and (np.abs(array - whole_ones) > 1e-3).any():
        raise FormatError(f"{where}: coords have fractions; wanted whole level-0 pixels.")
    result: NDArray[np.int64] = whole_ones.astype(np.int64)
    return result


def half(values: Any, where: object) -> NDArray[np.float16]:
    """Return (N, D) features as float16. ``values`` is an array, a tensor or an HDF5 dataset.

    Raises:
        FormatError: another shape or kind, NaN, infinity, or a value that float16 cannot hold.
    """
    if isinstance(values, torch.Tensor):
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    shape: Sequence[int] = values.shape
    if 0 in shape:
        return np.zeros((0, shape[1] if len(shape) == 2 else 0), np.float16)
    if len(shape) != 2 or values.dtype.kind != "f":
        raise FormatError(
            f"{where}: features are {values.dtype} of shape {tuple(shape)}; wanted (patches, features)."
        )
    result = np.empty(shape, np.float16)
    for start in range(0, shape[0], _ROWS):
        rows = np.asarray(values[start : start + _ROWS])
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise FormatError(f"{where}: the features of patch {start + bad[0]} hold NaN or infinity.")
        large = np.flatnonzero((np.abs(rows) > _LARGEST).any(axis=1))
        if len(large):
            worst = float(np.abs(rows[large[0]]).max())
            raise FormatError(
                f"{where}: the features of patch {start + large[0]} reach {worst:g}; float16, in which "
                f"features are kept, ends at {_LARGEST:g}. Scale them down where they are made."
            )
        result[start : start + _ROWS] = rows
    return result


def digest_of(paths: Sequence[Path]) -> str:
    """Return 16 hexadecimal digits (BLAKE2b) of what the files hold, in their order."""
    total = hashlib.blake2b(digest_size=8)
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "blake2b").digest())
    return total.hexdigest()


def coords_of(source: Source, _mpp_l0: float, _patch_size_l0: float) -> NDArray[np.int64]:
    """Return the dataset ``coords`` (N, 2) of an HDF5 file, as CLAM and TRIDENT keep it."""
    path = source.coords
    assert path is not None
    with open_hdf5(path) as file:
        return corners(dataset(file, "coords")[:], path)


def features_of(source: Source) -> NDArray[np.float16]:
    """Return features (N, D): a tensor in a .pt file, or the dataset ``features`` of an HDF5 file."""
    path = source.features
    assert path is not None
    if path.suffix == ".pt":
        return half(read_tensor(path), path)
    with open_hdf5(path) as file:
        return half(dataset(file, "features"), path)
