"""Heatmap values on disk: heatmap.zarr, a zarr v3 group with raw values on the patch grid and per patch.

Comes in: values of patches. Goes out: a group that says what its numbers are. Pictures are not its business.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil.errors import FormatError
from wsi_mil.geometry import PatchGeometry, cell_means, cells_rc, on_grid
from wsi_mil.store.record import same_record

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """Raw values of one slide's patches: ``attention`` (N,) float32 for ``coords`` (N, 2) level-0 (x, y).

    ``facts`` are what a reader should know: model, fold, classes, probabilities. ``record`` is what made it.
    """

    slide_id: str
    geometry: PatchGeometry
    coords: NDArray[np.int64]
    attention: NDArray[np.float32]
    facts: dict[str, Any]
    record: dict[str, Any]

    def grid(self) -> NDArray[np.float32]:
        """Return the values on the slide's grid, (rows, columns); NaN where there is no patch.

        Patches that are not on one grid give area-weighted means, see ``cell_means``. Patches of other tools
        may reach over the edges of the slide: the grid then has a row or a column more.
        """
        if not self.has_grid:
            return cell_means(self.attention, self.coords, self.geometry)
        rows, columns = cells_rc(self.coords, self.geometry).T
        planned = self.geometry.grid_shape_rc
        shape = max(planned[0], rows.max(initial=-1) + 1), max(planned[1], columns.max(initial=-1) + 1)
        grid = np.full(shape, np.nan, dtype=np.float32)
        grid[rows, columns] = self.attention
        return grid

    @property
    def has_grid(self) -> bool:
        """Whether every patch has a cell of the global grid to itself."""
        return on_grid(self.coords, self.geometry.stride_l0)


def write_heatmap(path: Path, heatmap: Heatmap) -> None:
    """Write the group at ``path``. Call it inside ``atomic_folder``: the folder is what appears whole."""
    group = zarr.open_group(path, mode="w", zarr_format=3)
    group.attrs.update(
        {
            "format": "wsi-mil heatmap",
            "format_version": FORMAT_VERSION,
            "slide_id": heatmap.slide_id,
            "value": "attention: weight of each patch in the bag, sums to 1 over the slide",
            "grid": "a patch per cell"
            if heatmap.has_grid
            else "area-weighted means of the patches in a cell",
            "config": heatmap.record,
            "config_digest": configs.digest(heatmap.record),
            "facts": heatmap.facts,
            **dataclasses.asdict(heatmap.geometry),
        }
    )
    group.create_array("grid", data=heatmap.grid())
    group.create_array("coords", data=heatmap.coords.astype(np.int64))
    group.create_array("attention", data=heatmap.attention.astype(np.float32))


def read_heatmap(path: Path) -> Heatmap:
    """Read a heatmap.zarr.

    Raises:
        FormatError: there is none, or it is not one of a version that this program knows.
    """
    group, attrs = _open(path)
    kinds = {field.name: field.type for field in dataclasses.fields(PatchGeometry)}
    return Heatmap(
        slide_id=attrs["slide_id"],
        geometry=PatchGeometry(**{name: attrs[name] for name in kinds}),
        coords=np.asarray(group["coords"]),
        attention=np.asarray(group["attention"]),
        facts=attrs["facts"],
        record=attrs["config"],
    )


def heatmap_is_done(folder: Path, record: dict[str, Any], overwrite: bool = False) -> bool:
    """Tell whether the heatmap folder of a slide is there, made with ``record``; see ``is_done``.

    Raises:
        StaleOutputError: it is there, made with other settings or another model.
    """
    if not folder.exists():
        return False
    try:
        found = _open(folder / "heatmap.zarr")[1]["config"]
    except FormatError:
        if overwrite:
            return False
        raise
    return same_record(found, record, folder, overwrite)


def _open(path: Path) -> tuple[zarr.Group, dict[str, Any]]:
    try:
        group = zarr.open_group(path, mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(f"{path}: no heatmap there ({error}); run `wsi-mil heatmap`.") from error
    attrs: dict[str, Any] = group.attrs.asdict()
    found, version = attrs.get("format"), attrs.get("format_version")
    if found != "wsi-mil heatmap" or version != FORMAT_VERSION:
        raise FormatError(
            f"{path}: says it is {found!r} version {version}; wanted 'wsi-mil heatmap' {FORMAT_VERSION}."
        )
    return group, attrs
