"""Patches and features as HDF5 files, one per slide (see FORMATS.md).

Comes in: arrays and their geometry. Goes out: files that say what they are, which version, and which settings
made them, under names that CLAM's and TRIDENT's readers know (``coords``, ``features``). Nothing here knows
how a patch is found or embedded.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil.config import Location
from wsi_mil.errors import FormatError
from wsi_mil.geometry import PatchGeometry
from wsi_mil.store.atomic import atomic_file
from wsi_mil.store.record import same_record

FORMAT_VERSION = 1
_CHUNK_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class Patches:
    """Where the patches of one slide lie.

    ``coords`` (N, 2) int64 level-0 (x, y) of top-left corners, row-major; ``tissue_fraction`` (N,) float32;
    ``record`` the settings that made them (``config.record``). N = 0 is a slide without tissue.
    """

    slide_id: str
    slide_path: Location
    reader: str
    mpp_source: str
    geometry: PatchGeometry
    coords: NDArray[np.int64]
    tissue_fraction: NDArray[np.float32]
    record: dict[str, Any]

    @property
    def digest(self) -> str:
        """Digest of the settings and the coords: other patches have another digest."""
        coords = hashlib.sha256(np.ascontiguousarray(self.coords, dtype="<i8").tobytes()).hexdigest()
        return configs.digest(self.record | {"coords": coords})


@dataclass(frozen=True, kw_only=True)
class Features:
    """What an encoder made of the patches of one slide: enough for training and heatmaps.

    ``features`` (N, D) float16, row k belongs to ``coords`` row k. ``patches_digest`` is that of the patches
    they were made from. ``left_out``: for each of those patches that could not be read and is missing here, a
    dict (index among the patches, x_l0, y_l0, where, reason).
    """

    slide_id: str
    slide_path: Location
    reader: str
    geometry: PatchGeometry
    coords: NDArray[np.int64]
    features: NDArray[np.float16]
    encoder: str
    weights_digest: str
    patches_digest: str
    record: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Refuse features that do not belong to the coords, or are not numbers."""
        if self.features.ndim != 2 or len(self.features) != len(self.coords):
            raise FormatError(
                f"{self.slide_id}: features of shape {self.features.shape} for {len(self.coords)} patches."
            )
        bad = np.flatnonzero(~np.isfinite(self.features).all(axis=1))
        if len(bad):
            raise FormatError(
                f"{self.slide_id}: the features of {len(bad)} patches hold NaN or infinity, the first is "
                f"patch {bad[0]} at {self.coords[bad[0]].tolist()} (level-0 x, y); "
                "embed with --precision fp32, or check the weights."
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What a model must find unchanged in every bag: encoder, weights, dimension, mpp and patch size."""
        return {
            "encoder": self.encoder,
            "weights_digest": self.weights_digest,
            "dim": int(self.features.shape[1]),
            "mpp": self.geometry.mpp,
            "patch_px": self.geometry.patch_px,
        }


def write_patches(path: Path, patches: Patches) -> None:
    """Write one slide's patches to ``path``, whole or not at all."""
    with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
        _write_head(file, "wsi-mil patches", patches, patches.record)
        file.attrs["mpp_source"] = patches.mpp_source
        file.attrs["patches_digest"] = patches.digest
        _write_coords(file, patches)
        file.create_dataset("tissue_fraction", data=patches.tissue_fraction.astype(np.float32))


def read_patches(path: Path) -> Patches:
    """Read one slide's patches.

    Raises:
        FormatError: no such file, no HDF5, or not a patches file of a version that this program knows.
    """
    with _open(path, "wsi-mil patches", "run `wsi-mil tile` first") as file:
        attrs = file.attrs
        return Patches(
            slide_id=str(attrs["slide_id"]),
            slide_path=configs.location(str(attrs["slide_path"])),
            reader=str(attrs["reader"]),
            mpp_source=str(attrs["mpp_source"]),
            geometry=_read_geometry(attrs),
            coords=file["coords"][:].astype(np.int64),
            tissue_fraction=file["tissue_fraction"][:],
            record=json.loads(str(attrs["config"])),
        )


def write_features(path: Path, features: Features) -> None:
    """Write one slide's features to ``path``, whole or not at all."""
    with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
        _write_head(file, "wsi-mil features", features, features.record)
        file.attrs["encoder"] = features.encoder
        file.attrs["weights_digest"] = features.weights_digest
        file.attrs["patches_digest"] = features.patches_digest
        file.attrs["notes"] = json.dumps(features.notes)
        file.attrs["left_out"] = len(features.left_out)
        if features.left_out:  # a dataset: attributes hold 64 KiB at most
            file.create_dataset("left_out", data=[json.dumps(each) for each in features.left_out])
        _write_coords(file, features)
        shape = features.features.shape
        chunks = (min(_CHUNK_ROWS, shape[0]), shape[1]) if shape[0] else None
        file.create_dataset("features", data=features.features.astype(np.float16), chunks=chunks)


def read_features(path: Path) -> Features:
    """Read one slide's features.

    Raises:
        FormatError: no such file, no HDF5, or not a features file of a version that this program knows.
    """
    with _open(path, "wsi-mil features", "run `wsi-mil embed` first") as file:
        attrs = file.attrs
        return Features(
            slide_id=str(attrs["slide_id"]),
            slide_path=configs.location(str(attrs["slide_path"])),
            reader=str(attrs["reader"]),
            geometry=_read_geometry(attrs),
            coords=file["coords"][:].astype(np.int64),
            features=file["features"][:],
            encoder=str(attrs["encoder"]),
            weights_digest=str(attrs["weights_digest"]),
            patches_digest=str(attrs["patches_digest"]),
            record=json.loads(str(attrs["config"])),
            notes=json.loads(str(attrs["notes"])),
            left_out=tuple(json.loads(each) for each in file["left_out"][:]) if "left_out" in file else (),
        )


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
        with _open(path, f"wsi-mil {what}", "") as file:
            found = json.loads(str(file.attrs["config"]))
    except FormatError:
        if overwrite:
            return False
        raise
    return same_record(found, record, path, overwrite)


def _write_head(file: Any, kind: str, item: Patches | Features, record: dict[str, Any]) -> None:
    head = {
        "format": kind,
        "format_version": FORMAT_VERSION,
        "config": json.dumps(record),
        "config_digest": configs.digest(record),
        "slide_id": item.slide_id,
        "slide_path": str(item.slide_path),
        "reader": item.reader,
    }
    for name, value in (head | dataclasses.asdict(item.geometry)).items():
        file.attrs[name] = value


def _write_coords(file: Any, item: Patches | Features) -> None:
    dataset = file.create_dataset("coords", data=item.coords.astype(np.int64))
    # The names under which TRIDENT's readers look for the same facts.
    dataset.attrs["patch_size"] = item.geometry.patch_px
    dataset.attrs["patch_size_level0"] = round(item.geometry.patch_size_l0)
    dataset.attrs["level0_width"] = item.geometry.width_l0
    dataset.attrs["level0_height"] = item.geometry.height_l0
    dataset.attrs["name"] = item.slide_id


def _read_geometry(attrs: Any) -> PatchGeometry:
    return PatchGeometry(
        mpp=float(attrs["mpp"]),
        patch_px=int(attrs["patch_px"]),
        patch_size_l0=float(attrs["patch_size_l0"]),
        stride_l0=float(attrs["stride_l0"]),
        width_l0=int(attrs["width_l0"]),
        height_l0=int(attrs["height_l0"]),
        mpp_l0=float(attrs["mpp_l0"]),
    )


def _open(path: Path, kind: str, advice: str) -> Any:
    """Open ``path`` for reading after checking what it says it is."""
    if not path.exists():
        raise FormatError(f"{path}: no such file; {advice or 'it should hold ' + kind}.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise FormatError(
            f"{path}: not readable as HDF5 ({error}); remove it and run the stage again."
        ) from error
    found, version = file.attrs.get("format"), int(file.attrs.get("format_version", 0))
    if found != kind or version != FORMAT_VERSION:
        file.close()
        if found == kind and version > FORMAT_VERSION:
            raise FormatError(
                f"{path}: format version {version}, this program knows {FORMAT_VERSION}; update wsi-mil."
            )
        raise FormatError(f"{path}: says it is {found!r} version {version}; wanted {kind!r} version 1.")
    return file
