"""torchmil's bags: features/<id>.npy and coords/<id>.npy (or .h5 with datasets of these names).

They say nothing else. Coords are taken for level-0 pixels of top-left corners, as its WSI datasets do.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_mil.store.foreign import reading
from wsi_mil.store.foreign.facts import Facts, Found, Source, Tool, by_stem, twice

_SUFFIXES = (".npy", ".h5")


def _find(folder: Path) -> Found:
    files = [path for path in folder.rglob("*") if path.suffix in _SUFFIXES]
    coords = by_stem(path for path in files if path.parent.name == "coords")
    refused = twice(coords)
    sources, others, used = [], {}, set()
    for path in sorted(files):
        name = path.parent.name
        if name in {"labels", "patch_labels", "inst_labels"}:
            others[path] = "labels; train takes a CSV file slide_id,label"
        if name != "features" and not name.startswith("features_"):
            continue
        where = coords.get(path.stem, [])
        if not where:
            refused[path] = f"{path}: features without coords; coords/{path.name} is not below the folder"
        elif len(where) == 1:
            used.add(path.stem)
            encoder = name.removeprefix("features").removeprefix("_") or None
            sources.append(Source(slide_id=path.stem, encoder=encoder, coords=where[0], features=path))
    sources += [
        Source(slide_id=stem, coords=paths[0])
        for stem, paths in coords.items()
        if stem not in used and len(paths) == 1
    ]
    return Found(sources=sources, refused=refused, others=others)


def _facts(_source: Source) -> Facts:
    return Facts()


def _coords(source: Source, _mpp_l0: float, _patch_size_l0: float) -> NDArray[np.int64]:
    assert source.coords is not None
    if source.coords.suffix == ".npy":
        return reading.corners(reading.read_array(source.coords), source.coords)
    with reading.open_hdf5(source.coords) as file:
        return reading.corners(reading.dataset(file, "coords")[:], source.coords)


def _features(source: Source) -> NDArray[np.float16]:
    assert source.features is not None
    if source.features.suffix == ".npy":
        return reading.half(reading.read_array(source.features), source.features)
    with reading.open_hdf5(source.features) as file:
        return reading.half(reading.dataset(file, "features"), source.features)


TOOL = Tool(
    name="torchmil",
    wanted="features/<id>.npy and coords/<id>.npy",
    find=_find, facts=_facts, coords=_coords, features=_features,
)  # fmt: skip
