"""slideflow's bags: <id>.pt with features, <id>.index.npz with the centres of patches, bags_config.json.

They say nothing of the slide's size or resolution. A patch is ``int(tile_um / mpp_l0)`` level-0 pixels wide
and its centre lies half of that, rounded down, from its corner; tile_um may be a magnification instead
("20x").
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil.errors import FormatError
from wsi_mil.store.foreign import reading
from wsi_mil.store.foreign.facts import Facts, Found, Source, Tool

_CONFIG = "bags_config.json"


def _find(folder: Path) -> Found:
    sources, refused = [], {}
    for path in sorted(folder.rglob("*.pt")):
        indexes = [path.with_name(f"{path.stem}.index{suffix}") for suffix in (".npz", ".npy")]
        index = next((each for each in indexes if each.is_file()), None)
        config = path.with_name(_CONFIG)
        if index is None:
            refused[path] = f"{path}: features without coords; {indexes[0].name} is not there"
            continue
        more = (config,) if config.is_file() else ()
        try:
            encoder = _encoder(reading.read_json(config)) if more else None
        except FormatError as error:
            refused[path] = str(error)
            continue
        sources.append(Source(slide_id=path.stem, encoder=encoder, coords=index, features=path, more=more))
    return Found(sources=sources, refused=refused)


def _encoder(config: dict[str, Any]) -> str | None:
    extractor = config.get("extractor")
    if not isinstance(extractor, dict):
        return None
    kwargs = extractor.get("kwargs")
    named = kwargs.get("model_name") if isinstance(kwargs, dict) else None
    return str(named or str(extractor.get("class", "")).rpartition(".")[2]) or None


def _facts(source: Source) -> Facts:
    if not source.more:
        return Facts()
    config = reading.read_json(source.more[0])
    side_px = reading.whole(config, "tile_px", source.more[0])
    side_um = config.get("tile_um")
    in_microns = isinstance(side_um, int | float)
    return Facts(
        patch_px=side_px,
        mpp=reading.number(config, "tile_um", source.more[0]) / side_px if in_microns else None,
        notes={"tile_um": side_um, "normalizer": config.get("normalizer")},
    )


def _coords(source: Source, _mpp_l0: float, patch_size_l0: float) -> NDArray[np.int64]:
    assert source.coords is not None
    name = "arr_0" if source.coords.suffix == ".npz" else None
    centres = reading.corners(reading.read_array(source.coords, name), source.coords)
    # The millionth: 302 um at 0.5 um is 604 pixels, whatever the rounding of the mpp
    return centres - int(patch_size_l0 + 1e-6) // 2


def _features(source: Source) -> NDArray[np.float16]:
    assert source.features is not None
    return reading.half(reading.read_tensor(source.features), source.features)


TOOL = Tool(
    name="slideflow",
    wanted="<id>.pt with <id>.index.npz, and bags_config.json",
    find=_find, facts=_facts, coords=_coords, features=_features,
)  # fmt: skip
