"""TRIDENT's files: <mag>x_<px>px_<overlap>px_overlap/ with patches/<id>_patches.h5 and
features_<encoder>/<id>.h5.

Magnifications in them are nominal: 40 stands for anything from 0.2 to 0.3 microns per pixel. Patches lie on
one grid that starts at (0, 0), and those at the right and lower edges reach beyond the slide.
"""

from pathlib import Path
from typing import Any

import numpy as np

from wsi_mil.errors import FormatError
from wsi_mil.store.foreign import reading
from wsi_mil.store.foreign.facts import Facts, Found, Source, Tool, by_stem, twice

_PATCHES = "_patches"


def _find(folder: Path) -> Found:
    patches = by_stem(p for p in folder.rglob(f"*{_PATCHES}.h5") if p.parent.name == "patches")
    refused = twice(patches)
    sources = []
    others: dict[Path, str] = {}
    with_features = set()
    parents = {path.parent for path in folder.rglob("*") if path.suffix in {".h5", ".pt"}}
    for parent in sorted(parents):
        if parent.name.startswith("slide_features_"):
            others |= dict.fromkeys(parent.iterdir(), "features of whole slides, not of patches")
        if not parent.name.startswith("features_"):
            continue
        files = by_stem(path for path in parent.iterdir() if path.suffix in {".h5", ".pt"})
        refused |= twice(files)
        for slide_id, (path, *more) in files.items():
            if more:
                continue
            coords = parent.parent / "patches" / f"{slide_id}{_PATCHES}.h5"
            with_features.add(coords)
            if path.suffix == ".h5":
                coords = path
            elif not coords.is_file():
                refused[path] = f"{path}: features without coords; {coords} is not there"
                continue
            encoder = parent.name.removeprefix("features_")
            sources.append(Source(slide_id=slide_id, encoder=encoder, coords=coords, features=path))
    for name, (path, *more) in patches.items():
        if more:
            continue
        if path in with_features:
            others[path] = "the same coords as in the features of that slide"
        else:
            sources.append(Source(slide_id=name.removesuffix(_PATCHES), coords=path))
    return Found(sources=sources, refused=refused, others=others)


def _facts(source: Source) -> Facts:
    assert source.coords is not None
    with reading.open_hdf5(source.coords) as file:
        return facts_of(dict(reading.dataset(file, "coords").attrs), source.coords)


def facts_of(attrs: dict[str, Any], where: object) -> Facts:
    """Return what TRIDENT's attributes (AtlasPatch has the same) say of the patches."""
    if "patch_size_level0" not in attrs:
        raise FormatError(
            f"{where}: coords without patch_size_level0; found {', '.join(attrs) or 'no attributes'}. "
            "Coords that CLAM made are read with --from clam."
        )
    side = reading.whole(attrs, "patch_size", where)
    size = reading.number(attrs, "patch_size_level0", where)
    overlap = reading.number(attrs, "overlap", where)
    magnifications = attrs.get("level0_magnification"), attrs.get("target_magnification")
    if all(isinstance(each, int | float | np.number) and each > 0 for each in magnifications):
        # patch_size_level0 is the floor of this
        scale = float(magnifications[0]) / float(magnifications[1])  # type: ignore[arg-type]
        if abs(side * scale - size) > 1:
            raise FormatError(
                f"{where}: patches of {side} pixels from {magnifications[0]}x to {magnifications[1]}x would "
                f"be {side * scale:g} level-0 pixels; patch_size_level0 says {size:g}."
            )
    else:
        scale = size / side
    return Facts(
        patch_px=side,
        patch_size_l0=side * scale,
        # TRIDENT steps by whole pixels; wsi-mil by exact ones, rounded once
        steps_l0=(float(round(side * scale) - round(overlap * scale)), (side - overlap) * scale),
        width_l0=reading.whole(attrs, "level0_width", where),
        height_l0=reading.whole(attrs, "level0_height", where),
    )


TOOL = Tool(
    name="trident",
    wanted="features_<encoder>/<id>.h5, or patches/<id>_patches.h5",
    find=_find, facts=_facts, coords=reading.coords_of, features=reading.features_of,
)  # fmt: skip
