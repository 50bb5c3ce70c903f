"""Heatmap values on disk: heatmap.zarr, a zarr v3 group with raw values per patch and on the patch grid.

Comes in: values of patches. Goes out: a group that says what its numbers are. Pictures are not its business.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil.errors import FormatError
from wsi_mil.geometry import PatchGeometry, cell_means, cells_rc, on_grid
from wsi_mil.store import checksum
from wsi_mil.store.record import same_record

FORMAT_VERSION = 2

QUANTITIES = {
    "attention": "weight of each patch in the bag, sums to 1 over the slide; of instance-based models and "
    "torchmil's DTFDMIL the patches' scores",
    "evidence": "attention x the patch's contribution to the output's logit: with facts.bias they sum to "
    "facts.logit",
    "probability": "what the model predicts for each patch as a bag of one",
}
"""What a heatmap may show, and what its numbers are."""


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """Raw values of one slide's patches at ``coords`` (N, 2), level-0 (x, y).

    ``values`` has (C, N) float32 for each quantity that the model has, a row for each of ``outputs`` (C
    names). ``shown`` is the ``quantity`` and ``output`` that the overlay draws. ``facts`` are what a reader
    should know: model, fold, probabilities, bias and logit. ``record`` is what made it. ``dense_coords``
    (M, 2) and ``dense_values`` are patches between those of the grid, embedded for a finer map of the top
    regions: they are in no bag, and no sum goes over them.
    """

    slide_id: str
    geometry: PatchGeometry
    coords: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float32]]
    outputs: tuple[str, ...]
    shown: Mapping[str, str]
    facts: dict[str, Any]
    record: dict[str, Any]
    dense_coords: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    dense_values: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def attention(self) -> NDArray[np.float32]:
        """The attention (N,) of the output that is drawn."""
        attention: NDArray[np.float32] = self.values["attention"][self.row()]
        return attention

    @property
    def drawn(self) -> NDArray[np.float32]:
        """The values (N,) that the overlay draws."""
        drawn: NDArray[np.float32] = self.values[self.shown["quantity"]][self.row()]
        return drawn

    def row(self, output: str | None = None) -> int:
        """Return which row of the values is that of ``output``; without one, that of the output drawn."""
        return self.outputs.index(self.shown["output"] if output is None else output)

    def grid(self, quantity: str | None = None, output: str | None = None) -> NDArray[np.float32]:
        """Return values on the slide's grid, (rows, columns); NaN where there is no patch.

        Without arguments those that the overlay draws. Patches that are not on one grid give area-weighted
        means, see ``cell_means``. Patches of other tools may reach over the edges of the slide: the grid then
        has a row or a column more.
        """
        values = self.values[self.shown["quantity"] if quantity is None else quantity][self.row(output)]
        if not self.has_grid:
            return cell_means(values, self.coords, self.geometry)
        rows, columns = cells_rc(self.coords, self.geometry).T
        planned = self.geometry.grid_shape_rc
        shape = max(planned[0], rows.max(initial=-1) + 1), max(planned[1], columns.max(initial=-1) + 1)
        grid = np.full(shape, np.nan, dtype=np.float32)
        grid[rows, columns] = values
        return grid

    @functools.cached_property
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
            "outputs": list(heatmap.outputs),
            "shown": dict(heatmap.shown),
            "quantities": {name: QUANTITIES[name] for name in heatmap.values},
            "grid": "a patch per cell"
            if heatmap.has_grid
            else "area-weighted means of the patches in a cell",
            "config": heatmap.record,
            "config_digest": configs.digest(heatmap.record),
            "facts": heatmap.facts,
            **dataclasses.asdict(heatmap.geometry),
        }
    )
    _write_array(group, "coords", heatmap.coords.astype(np.int64))
    for name, values in heatmap.values.items():
        _write_array(group, f"values/{name}", values.astype(np.float32))
        grid = np.stack([heatmap.grid(name, output) for output in heatmap.outputs])
        _write_array(group, f"grid/{name}", grid)
    if len(heatmap.dense_coords):
        _write_array(group, "dense/coords", heatmap.dense_coords.astype(np.int64))
        for name, values in heatmap.dense_values.items():
            _write_array(group, f"dense/values/{name}", values.astype(np.float32))


def _write_array(group: zarr.Group, name: str, values: NDArray[Any]) -> None:
    # Chunks of an output each: a reader of one does not decode the others.
    chunks = (1, *values.shape[1:]) if values.ndim > 1 and name != "coords" else values.shape
    array = group.create_array(
        name, shape=values.shape, dtype=values.dtype, chunks=tuple(max(1, each) for each in chunks)
    )
    array[...] = values
    array.attrs["checksum"] = checksum.of_array(values)


def read_heatmap(path: Path) -> Heatmap:
    """Read a heatmap.zarr.

    Raises:
        FormatError: there is none, it is not one of a version that this program knows, or it is damaged.
    """
    group, attrs = _open(path)
    kinds = {field.name: field.type for field in dataclasses.fields(PatchGeometry)}
    try:
        dense = "dense/coords" in group
        names = list(attrs["quantities"])
        return Heatmap(
            slide_id=attrs["slide_id"],
            geometry=PatchGeometry(**{name: attrs[name] for name in kinds}),
            coords=_read_array(group, "coords"),
            values={name: _read_array(group, f"values/{name}") for name in names},
            outputs=tuple(attrs["outputs"]),
            shown=attrs["shown"],
            facts=attrs["facts"],
            record=attrs["config"],
            dense_coords=_read_array(group, "dense/coords") if dense else np.zeros((0, 2), np.int64),
            dense_values={name: _read_array(group, f"dense/values/{name}") for name in names if dense},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{path}: damaged, or not as FORMATS.md says ({error}); draw it again with "
            "`wsi-mil heatmap --overwrite`."
        ) from error


def heatmap_version(path: Path) -> int | None:
    """Return the version of a heatmap.zarr, also of one that cannot be read here; None: it says none."""
    try:
        attrs = zarr.open_group(path, mode="r").attrs.asdict()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # reading it says what is wrong
    version = attrs.get("format_version")
    return version if attrs.get("format") == "wsi-mil heatmap" and isinstance(version, int) else None


def heatmap_is_done(folder: Path, record: dict[str, Any]) -> bool:
    """Tell whether the heatmap folder of a slide is there, made with ``record``; see ``is_done``.

    Raises:
        StaleOutputError: it is there, made with other settings or another model.
        FormatError: it is there, of another version, or damaged.
    """
    if not folder.exists():
        return False
    return same_record(_open(folder / "heatmap.zarr")[1]["config"], record, folder)


def heatmap_has_picture(folder: Path) -> bool:
    """Tell whether a heatmap that is there was drawn over its slide, and not on grey without it.

    Raises:
        FormatError: it is of another version, or damaged.
    """
    facts = _open(folder / "heatmap.zarr")[1].get("facts", {})
    if "slide_path" in facts:
        return bool(facts["slide_path"])
    return not facts.get("note")  # written before the path was kept: only grey ones had a note


def _open(path: Path) -> tuple[zarr.Group, dict[str, Any]]:
    try:
        group = zarr.open_group(path, mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(f"{path}: no heatmap there ({error}); run `wsi-mil heatmap`.") from error
    attrs: dict[str, Any] = group.attrs.asdict()
    found, version = attrs.get("format"), attrs.get("format_version")
    if found != "wsi-mil heatmap" or not isinstance(version, int):
        raise FormatError(
            f"{path}: says it is {found!r} version {version}; wanted 'wsi-mil heatmap' {FORMAT_VERSION}."
        )
    if version < FORMAT_VERSION:
        raise FormatError(
            f"{path}: a heatmap of version {version}, made by an earlier version of this program; "
            f"wanted {FORMAT_VERSION}. Draw it again with `wsi-mil heatmap --overwrite`."
        )
    if version > FORMAT_VERSION:
        raise FormatError(
            f"{path}: a heatmap of version {version}, made by a newer version of this program; wanted "
            f"{FORMAT_VERSION}. Install that one, or draw it again with `wsi-mil heatmap --overwrite`."
        )
    return group, attrs


def _read_array(group: zarr.Group, name: str) -> NDArray[Any]:
    array = group[name]
    values: NDArray[Any] = np.asarray(array[...])  # type: ignore[index]
    if array.attrs.get("checksum") != checksum.of_array(values):
        raise ValueError(f"{name} has other values than were written")
    return values
