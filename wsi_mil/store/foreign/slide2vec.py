"""slide2vec's and hs2p's files: tile_embeddings/<id>.pt|npz with <id>.meta.json, tiles/<id>.coordinates.npz
with <id>.coordinates.meta.json.

The JSON is written last: a payload without it is unfinished. A slide without patches has the JSON only. The
grid starts anew at every piece of tissue.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil.errors import FormatError
from wsi_mil.store.foreign import reading
from wsi_mil.store.foreign.facts import Facts, Found, Source, Tool

_META, _COORDS_META, _COORDS = ".meta.json", ".coordinates.meta.json", ".coordinates.npz"


def _find(folder: Path) -> Found:
    sources, refused, others = [], {}, {}
    tilings = {
        path: path.name.removesuffix(_COORDS_META) for path in sorted(folder.rglob(f"*{_COORDS_META}"))
    }
    used = set()
    embeddings = [
        p for p in sorted(folder.rglob("*")) if "tile_embeddings" in p.relative_to(folder.parent).parts
    ]
    for path in embeddings:
        if not path.name.endswith(_META):
            if path.suffix in {".pt", ".npz"} and not path.with_name(path.stem + _META).is_file():
                refused[path] = (
                    f"{path}: no {path.stem}{_META} beside it, which is written last: it is unfinished"
                )
            continue
        slide_id = path.name.removesuffix(_META)
        try:
            meta = reading.read_json(path)
            tiling = _tiling_of(slide_id, meta, tilings)
            source = _source(slide_id, path, meta, tiling)
        except FormatError as error:
            refused[path] = str(error)
            continue
        used.add(tiling)
        sources.append(source)
    for path, slide_id in tilings.items():
        if path not in used:
            sources.append(_patches_only(slide_id, path))
    for path in folder.rglob("*.meta.json"):
        if path.parent.name in {"slide_embeddings", "hierarchical_embeddings", "patient_embeddings"}:
            others[path] = f"{path.parent.name.replace('_', ' ')}, not features of patches"
    return Found(sources=sources, refused=refused, others=others)


def _tiling_of(slide_id: str, meta: dict[str, Any], tilings: dict[Path, str]) -> Path:
    """Return the coordinates' JSON: where the features say, else the only one of that name in the folder."""
    said = Path(str(meta.get("coordinates_meta_path") or "nowhere"))
    if said.is_file():
        return said
    same = [path for path, name in tilings.items() if name == slide_id]
    if len(same) != 1:
        found = ", ".join(map(str, same)) or "none"
        raise FormatError(
            f"{slide_id}: wanted its tiles/{slide_id}{_COORDS_META}; {said} is not there, in "
            f"the folder: {found}."
        )
    return same[0]


def _source(slide_id: str, path: Path, meta: dict[str, Any], tiling: Path) -> Source:
    count = int(reading.number(meta, "num_tiles", path))
    payload = path.with_name(f"{slide_id}.{meta.get('format', 'pt')}")
    if count and not payload.is_file():
        raise FormatError(f"{path}: says {count} patches; {payload.name} is not there.")
    coords = tiling.with_name(tiling.name.removesuffix(_COORDS_META) + _COORDS)
    return Source(
        slide_id=slide_id,
        encoder=str(meta.get("encoder_name") or "") or None,
        coords=coords if count else None,
        features=payload if count else path,
        more=(path, tiling),
    )


def _patches_only(slide_id: str, tiling: Path) -> Source:
    coords = tiling.with_name(slide_id + _COORDS)
    return Source(slide_id=slide_id, coords=coords if coords.is_file() else None, more=(tiling,))


def _facts(source: Source) -> Facts:
    path = source.more[-1]
    meta = reading.read_json(path)
    parts = {name: meta.get(name) for name in ("provenance", "slide", "tiling", "artifact")}
    if not all(isinstance(each, dict) for each in parts.values()):
        raise FormatError(f"{path}: found {', '.join(meta)}; wanted {', '.join(parts)}.")
    slide, tiling, artifact = parts["slide"] or {}, parts["tiling"] or {}, parts["artifact"] or {}
    if artifact.get("coordinate_space") != "level0_px":
        raise FormatError(f"{path}: coords are in {artifact.get('coordinate_space')!r}; wanted 'level0_px'.")
    if reading.number(tiling, "n_tiles", path) > 0 and source.coords is None:
        raise FormatError(f"{path}: says {tiling['n_tiles']} patches; {path.stem} has no {_COORDS}.")
    size: list[Any] = slide.get("dimensions") or []
    if len(size) != 2:
        raise FormatError(f"{path}: slide dimensions are {size!r}; wanted width, height.")
    return Facts(
        patch_px=reading.whole(tiling, "requested_tile_size_px", path),
        patch_size_l0=reading.number(tiling, "tile_size_lv0", path),
        steps_l0=(reading.number(tiling, "step_px_lv0", path),),
        mpp=reading.number(tiling, "requested_spacing_um", path),
        mpp_l0=reading.number(slide, "base_spacing_um", path) if slide.get("base_spacing_um") else None,
        width_l0=int(size[0]),
        height_l0=int(size[1]),
        slide_path=str((parts["provenance"] or {}).get("image_path") or ""),
        notes={"annotation": artifact["annotation"]} if artifact.get("annotation") else {},
    )


def _coords(source: Source, _mpp_l0: float, _patch_size_l0: float) -> NDArray[np.int64]:
    if source.coords is None:
        return np.zeros((0, 2), np.int64)
    axes = [reading.read_array(source.coords, name) for name in ("x", "y")]
    if axes[0].ndim != 1 or axes[0].shape != axes[1].shape:
        raise FormatError(f"{source.coords}: x and y of shapes {axes[0].shape} and {axes[1].shape}.")
    return reading.corners(np.stack(axes, axis=1), source.coords)


def _features(source: Source) -> NDArray[np.float16]:
    path = source.features
    assert path is not None
    if source.coords is None:  # no patches: the JSON alone
        return np.zeros((0, 0), np.float16)
    found = reading.read_tensor(path) if path.suffix == ".pt" else reading.read_array(path, "features")
    return reading.half(found, path)


def _tissue(source: Source, count: int) -> NDArray[np.float32]:
    if source.coords is None:
        return np.zeros(0, np.float32)
    found = reading.read_array(source.coords, "tissue_fractions")
    if found.shape != (count,) or found.dtype.kind != "f":
        raise FormatError(f"{source.coords}: tissue_fractions of shape {found.shape} for {count} patches.")
    return found.astype(np.float32)


TOOL = Tool(
    name="slide2vec",
    wanted="tile_embeddings/<id>.pt (or .npz) with <id>.meta.json, and tiles/<id>.coordinates.npz",
    find=_find, facts=_facts, coords=_coords, features=_features, tissue=_tissue,
)  # fmt: skip
