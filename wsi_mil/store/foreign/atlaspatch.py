"""AtlasPatch's files: patches/<id>.h5 with coords in five columns and the features of several encoders.

The first two columns are the level-0 corner; then width, height and level of what is read. The grid starts
anew at every piece of tissue.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_mil.errors import FormatError
from wsi_mil.store.foreign import reading, trident
from wsi_mil.store.foreign.facts import Facts, Found, Source, Tool

_UNFINISHED = "__tmp_"


def _find(folder: Path) -> Found:
    sources, refused = [], {}
    for path in sorted(folder.rglob("*.h5")):
        if path.name.startswith("."):
            continue  # named with the others: what a crash left
        try:
            with reading.open_hdf5(path) as file:
                encoders = [name for name in file.get("features", ()) if not name.startswith(_UNFINISHED)]
        except FormatError as error:
            refused[path] = str(error)
            continue
        sources += [
            Source(slide_id=path.stem, encoder=name, coords=path, features=path) for name in encoders
        ] or [Source(slide_id=path.stem, coords=path)]
    return Found(sources=sources, refused=refused)


def _facts(source: Source) -> Facts:
    assert source.coords is not None
    with reading.open_hdf5(source.coords) as file:
        attrs = dict(file.attrs)
    facts = trident.facts_of(attrs, source.coords)
    mpp_l0 = reading.number(attrs, "mpp", source.coords) if "mpp" in attrs else None
    return Facts(
        patch_px=facts.patch_px,
        patch_size_l0=facts.patch_size_l0,
        steps_l0=(float(round(facts.steps_l0[1])),),  # AtlasPatch rounds the step, not its parts
        mpp_l0=mpp_l0,
        width_l0=facts.width_l0,
        height_l0=facts.height_l0,
        slide_path=reading.text(attrs, "wsi_path"),
    )


def _coords(source: Source, _mpp_l0: float, _patch_size_l0: float) -> NDArray[np.int64]:
    assert source.coords is not None
    with reading.open_hdf5(source.coords) as file:
        found = reading.dataset(file, "coords")[:]
    if found.ndim != 2 or found.shape[1] != 5:
        raise FormatError(f"{source.coords}: coords of shape {found.shape}; wanted (patches, 5).")
    return reading.corners(found[:, :2], source.coords)


def _features(source: Source) -> NDArray[np.float16]:
    assert source.features is not None
    with reading.open_hdf5(source.features) as file:
        found = reading.dataset(file, f"features/{source.encoder}")
        return reading.half(found, f"{source.features} features/{source.encoder}")


TOOL = Tool(
    name="atlaspatch",
    wanted="patches/<id>.h5 with coords and features/<encoder>",
    find=_find, facts=_facts, coords=_coords, features=_features,
)  # fmt: skip
