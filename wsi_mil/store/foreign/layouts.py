"""Write features as other tools' files, each whole or not at all, in the layout that the tool itself writes.

Comes in: ``Features``. Goes out: files that the tools' own readers open. Features are written as float32,
because their models take no float16; STAMP alone keeps float16.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil.errors import FormatError, StaleOutputError
from wsi_mil.geometry import PatchGeometry
from wsi_mil.store.atomic import atomic_file
from wsi_mil.store.foreign import reading
from wsi_mil.store.items import Features
from wsi_mil.store.layout import features_folder

_STAMP_VERSION = "2.1.0"  # the first whose files have tile_size_um; STAMP refuses files newer than itself


@dataclass(frozen=True, kw_only=True)
class ForeignFile:
    """One file to write: HDF5 with ``datasets`` (chunks of ``chunk_rows``; 0 is not chunked), or a tensor
    (.pt).

    ``attributes`` are by dataset, those of the file under "".
    """

    path: Path
    datasets: dict[str, NDArray[Any]] = field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    chunk_rows: int = 0
    tensor: NDArray[np.float32] | None = None

    def write(self) -> None:
        """Write the file, whole or not at all."""
        with atomic_file(self.path) as temporary:
            if self.tensor is not None:
                torch.save(torch.from_numpy(self.tensor), temporary)
                return
            with h5py.File(temporary, "w") as file:
                for name, values in self.datasets.items():
                    self._add(file, name, values)
                for name, attributes in self.attributes.items():
                    target = file[name] if name else file
                    for key, value in attributes.items():
                        target.attrs[key] = value

    def _add(self, file: Any, name: str, values: NDArray[Any]) -> None:
        if not self.chunk_rows:
            file.create_dataset(name, data=values)
            return
        chunks = (self.chunk_rows, *values.shape[1:])
        growing = (None, *values.shape[1:])
        file.create_dataset(name, data=values, chunks=chunks, maxshape=growing)

    def is_done(self) -> bool:
        """Tell whether the file is there with this content.

        Raises:
            StaleOutputError: it is there with other content; the message says where they differ.
        """
        if not self.path.exists():
            return False
        difference = self._difference()
        if difference:
            raise StaleOutputError(
                f"{self.path}: is there and is not what would be written: {difference}. Use another "
                "--output, or write it again with --overwrite."
            )
        return True

    def _difference(self) -> str:
        try:
            if self.tensor is not None:
                found = reading.read_tensor(self.path).numpy()
                return "" if _equal(found, self.tensor) else "the tensor has other values"
            with reading.open_hdf5(self.path) as file:
                for name, values in self.datasets.items():
                    if not _equal(reading.dataset(file, name)[:], values):
                        return f"{name} has other values"
                for name, attributes in self.attributes.items():
                    target = file[name] if name else file
                    for key, value in attributes.items():
                        if not np.array_equal(target.attrs.get(key), value):
                            return f"{key} was {target.attrs.get(key)!r} and is now {value!r}"
        except FormatError as error:
            return str(error)
        return ""


def _equal(found: NDArray[Any], wanted: NDArray[Any]) -> bool:
    return found.dtype == wanted.dtype and np.array_equal(found, wanted)


def _clam(features: Features, output: Path) -> list[ForeignFile]:
    """patches/, h5_files/, pt_files/; the last is the one by which CLAM knows that a slide is done.

    Patches are squares of level 0, because which levels a slide has is not known here.
    """
    geometry, name = features.geometry, f"{features.slide_id}.h5"
    values = features.features.astype(np.float32)
    patches = {
        "patch_size": round(geometry.patch_size_l0),
        "patch_level": 0,
        "downsample": (1.0, 1.0),
        "downsampled_level_dim": (geometry.width_l0, geometry.height_l0),
        "level_dim": (geometry.width_l0, geometry.height_l0),
        "name": features.slide_id,
        "save_path": "patches",
    }
    return [
        ForeignFile(
            path=output / "patches" / name,
            datasets={"coords": features.coords.astype(np.int64)},
            attributes={"coords": patches},
            chunk_rows=1,
        ),
        ForeignFile(
            path=output / "h5_files" / name,
            datasets={"features": values, "coords": features.coords.astype(np.int32)},
            chunk_rows=32,
        ),
        ForeignFile(path=output / "pt_files" / f"{features.slide_id}.pt", tensor=values),
    ]


def _trident(features: Features, output: Path) -> list[ForeignFile]:
    """<mag>x_<px>px_<overlap>px_overlap/ with patches/<id>_patches.h5 and features_<encoder>/<id>.h5.

    Magnifications are 10 / mpp, fractions included: TRIDENT computes with their ratio, which is then exact.
    """
    geometry, slide_id = features.geometry, features.slide_id
    scale = geometry.patch_size_l0 / geometry.patch_px
    overlap = round(geometry.patch_px - geometry.stride_l0 / scale)
    magnification = _plain(10 / geometry.mpp)
    folder = f"{magnification:g}x_{geometry.patch_px}px_{overlap}px_overlap"
    encoder = features_folder(Path(), features.encoder).name
    level0 = 10 / geometry.mpp_l0
    coords = {
        "patch_size": geometry.patch_px,
        "patch_size_level0": int(geometry.patch_size_l0 + 1e-6),
        "level0_magnification": _plain(level0),
        "target_magnification": _plain(level0 / scale),
        "overlap": overlap,
        "name": slide_id,
        "savetodir": folder,
        "level0_width": geometry.width_l0,
        "level0_height": geometry.height_l0,
    }
    values = {"name": slide_id, "savetodir": f"{folder}/features_{encoder}", "encoder": features.encoder}
    corners = features.coords.astype(np.int64)
    return [
        ForeignFile(
            path=output / folder / "patches" / f"{slide_id}_patches.h5",
            datasets={"coords": corners},
            attributes={"coords": coords},
            chunk_rows=1,
        ),
        ForeignFile(
            path=output / folder / f"features_{encoder}" / f"{slide_id}.h5",
            datasets={"features": features.features.astype(np.float32), "coords": corners},
            attributes={"features": values, "coords": coords},
            chunk_rows=1,
        ),
    ]


def _plain(value: float) -> int | float:
    """Return a whole number as int, as TRIDENT writes it; a fraction to 12 digits."""
    return round(value) if abs(value - round(value)) < 1e-9 else float(f"{value:.12g}")


def _stamp(features: Features, output: Path) -> list[ForeignFile]:
    """<encoder>-<hash>/<id>.h5; STAMP writes no file for a slide without patches, so neither does this."""
    if not len(features.coords):
        return []
    geometry = features.geometry
    code = configs.digest(features.identity)[:8]
    encoder = features_folder(Path(), features.encoder).name
    head = {
        "stamp_version": _STAMP_VERSION,
        "extractor": features.encoder,
        "unit": "um",
        "tile_size_um": _side_um(geometry),
        "tile_size_px": geometry.patch_px,
        "code_hash": code,
        "feat_type": "tile",
    }
    coords_um = (features.coords * geometry.mpp_l0).astype(np.float32)
    return [
        ForeignFile(
            path=output / f"{encoder}-{code}" / f"{features.slide_id}.h5",
            datasets={"coords": coords_um, "feats": features.features},
            attributes={"": head},
        )
    ]


def _side_um(geometry: PatchGeometry) -> float:
    return float(f"{geometry.patch_size_l0 * geometry.mpp_l0:.12g}")


def _pt(features: Features, output: Path) -> list[ForeignFile]:
    return [ForeignFile(path=output / f"{features.slide_id}.pt", tensor=features.features.astype(np.float32))]


LAYOUTS: dict[str, Callable[[Features, Path], list[ForeignFile]]] = {
    "clam": _clam, "trident": _trident, "stamp": _stamp, "pt": _pt,
}  # fmt: skip
"""For each name that ``--to`` takes, the files of one slide, in the order in which to write them."""
