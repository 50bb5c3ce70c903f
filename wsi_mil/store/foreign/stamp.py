"""STAMP's files: <extractor>-<hash>/<id>.h5 with feats and coords in microns.

They say nothing of the slide's size or resolution. Files before version 2 have coords in units of 256
microns per 224, as STAMP's own reader takes them. Within a block that STAMP reads at once patches lie
tile_size_um apart, and blocks are whole pixels, so that patches are on one grid only where a patch is a
whole number of pixels.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil.errors import FormatError
from wsi_mil.store.foreign import reading
from wsi_mil.store.foreign.facts import Facts, Found, Source, Tool

_HISTORIC_PX, _HISTORIC_UM = 224, 256.0
_BLOCK_L0 = 1024  # pixels; the last block of a row reaches beyond the slide, and so may its patches


def _find(folder: Path) -> Found:
    sources, refused, others = [], {}, {}
    for path in sorted(folder.rglob("*.h5")):
        try:
            with reading.open_hdf5(path) as file:
                kind = reading.text(file.attrs, "feat_type") or "tile"
                encoder = reading.text(file.attrs, "extractor")
        except FormatError as error:
            refused[path] = str(error)
            continue
        if kind == "tile":
            sources.append(Source(slide_id=path.stem, encoder=encoder or None, coords=path, features=path))
        else:
            others[path] = f"features of a {kind}, not of patches"
    return Found(sources=sources, refused=refused, others=others)


def _units(file: Any, path: Path) -> tuple[float, int | None, float]:
    """Return the side of a patch in microns and in pixels, and the microns of one unit of the coords."""
    attrs = file.attrs
    side_px = reading.whole(attrs, "tile_size_px", path) if "tile_size_px" in attrs else None
    if "tile_size" in attrs and reading.text(attrs, "unit") == "um":
        return reading.number(attrs, "tile_size", path), side_px, 1.0
    if "tile_size_um" in attrs:
        return reading.number(attrs, "tile_size_um", path), side_px, 1.0
    coords = np.asarray(reading.dataset(file, "coords")[:], float)
    step = attrs.get("tile_size", _step(coords))
    if step is not None and round(float(step)) == _HISTORIC_PX:
        return _HISTORIC_UM, _HISTORIC_PX, _HISTORIC_UM / _HISTORIC_PX
    raise FormatError(
        f"{path}: says neither tile_size_um nor tile_size with unit 'um', and its coords do not lie 224 "
        "apart as in STAMP's first format; make the features again with a newer STAMP."
    )


def _step(coords: NDArray[np.float64]) -> float | None:
    """Return the smallest step between different x, or different y, as STAMP's reader does."""
    if coords.ndim != 2:
        return None
    steps = np.concatenate([np.diff(np.unique(axis)) for axis in coords.T])
    return float(steps.min()) if len(steps) else None


def _facts(source: Source) -> Facts:
    assert source.coords is not None
    with reading.open_hdf5(source.coords) as file:
        if "coords" not in file:
            raise FormatError(f"{source.coords}: features without coords; nothing says where they belong.")
        side_um, side_px, unit_um = _units(file, source.coords)
        version = reading.text(file.attrs, "stamp_version")
    if not side_um > 0:
        raise FormatError(f"{source.coords}: patches of {side_um:g} microns.")
    return Facts(
        patch_px=side_px,
        mpp=side_um / side_px if side_px else None,
        beyond_l0=_BLOCK_L0,
        notes={"stamp_version": version, "tile_size_um": side_um}
        | ({"historic": True} if unit_um != 1 else {}),
    )


def _coords(source: Source, mpp_l0: float, _patch_size_l0: float) -> NDArray[np.int64]:
    assert source.coords is not None
    with reading.open_hdf5(source.coords) as file:
        _, _, unit_um = _units(file, source.coords)
        found = reading.dataset(file, "coords")[:]
    if found.dtype.kind not in "iuf":
        raise FormatError(f"{source.coords}: coords are {found.dtype}; wanted numbers.")
    return reading.corners(found.astype(np.float64) * unit_um / mpp_l0, source.coords, round_them=True)


def _features(source: Source) -> NDArray[np.float16]:
    assert source.features is not None
    with reading.open_hdf5(source.features) as file:
        name = "feats" if "feats" in file else "patch_embeddings"
        return reading.half(reading.dataset(file, name), source.features)


TOOL = Tool(
    name="stamp",
    wanted="<extractor>-<hash>/<id>.h5 with feats and coords",
    find=_find, facts=_facts, coords=_coords, features=_features,
)  # fmt: skip
