"""CLAM's files: patches/<id>.h5 with coords, h5_files/<id>.h5 and pt_files/<id>.pt with features.

They say no microns per pixel, no encoder and no step. The grid starts anew at every piece of tissue.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi_mil.errors import FormatError
from wsi_mil.store.foreign import reading
from wsi_mil.store.foreign.facts import Facts, Found, Source, Tool, by_stem, twice


def _find(folder: Path) -> Found:
    kinds = {"patches": "*.h5", "h5_files": "*.h5", "pt_files": "*.pt"}
    there = {
        name: by_stem(path for path in folder.rglob(glob) if path.parent.name == name)
        for name, glob in kinds.items()
    }
    refused = {path: why for paths in there.values() for path, why in twice(paths).items()}
    alone = {name: {s: p[0] for s, p in paths.items() if len(p) == 1} for name, paths in there.items()}
    sources, others = [], {}
    for slide_id in sorted(set().union(*alone.values())):
        patches, h5, pt = (alone[name].get(slide_id) for name in kinds)
        if h5:
            more = (patches,) if patches else ()
            sources.append(Source(slide_id=slide_id, coords=h5, features=h5, more=more))
            if pt:
                others[pt] = f"the same features as {h5}"
        elif pt and patches:  # the features are in the order of these coords
            sources.append(Source(slide_id=slide_id, coords=patches, features=pt))
        elif pt:
            refused[pt] = (
                f"{pt}: features without coords; put CLAM's h5_files/{slide_id}.h5 or patches/{slide_id}.h5 "
                "below the same folder"
            )
        else:
            sources.append(Source(slide_id=slide_id, coords=patches))
    return Found(sources=sources, refused=refused, others=others)


def _facts(source: Source) -> Facts:
    path = source.more[0] if source.more else source.coords
    if path is None or (path == source.features and not source.more):
        return Facts()  # features alone: they say nothing of their patches
    with reading.open_hdf5(path) as file:
        return facts_of(reading.dataset(file, "coords").attrs, path)


def facts_of(attrs: Any, path: Path) -> Facts:
    """Return what the attributes of CLAM's coords say."""
    side = reading.whole(attrs, "patch_size", path)
    level = reading.number(attrs, "patch_level", path)
    scale = _scale(attrs, path) if "downsample" in attrs or level else 1.0
    size: Sequence[Any] = attrs.get("level_dim", ())
    at_level_0 = level == 0 and len(size) == 2
    return Facts(
        patch_px=side,
        patch_px_free=True,  # CLAM reads a level of the pyramid; what the encoder saw is up to its transform
        patch_size_l0=side * scale,
        width_l0=int(size[0]) if at_level_0 else None,
        height_l0=int(size[1]) if at_level_0 else None,
    )


def _scale(attrs: Any, path: Path) -> float:
    across, down = np.broadcast_to(np.asarray(attrs.get("downsample", np.nan), float).ravel(), 2)
    if not (across >= 1 and abs(across - down) <= 0.01 * across):
        raise FormatError(
            f"{path}: downsample is {attrs.get('downsample')!r}; wanted a number of at least 1."
        )
    return float(across + down) / 2 * float(attrs.get("custom_downsample", 1))


TOOL = Tool(
    name="clam",
    wanted="h5_files/<id>.h5 (or pt_files/<id>.pt) of its features, and patches/<id>.h5",
    find=_find, facts=_facts, coords=reading.coords_of, features=reading.features_of,
)  # fmt: skip
