"""A heatmap's values for other programs: a pyramidal OME-TIFF, GeoJSON for QuPath, a table.

Comes in: values of patches. Goes out: files. It knows no model, no run and no slide file.
"""

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import shapely
import tifffile
from numpy.typing import NDArray

from wsi_mil.geometry import PatchGeometry, cells_rc, on_grid
from wsi_mil.heatmap import render

_BLOCK = 256
_PIXELS_PER_STEP = 8
_SHORTEST_PX, _LONGEST_PX = 1024, 4096
_REGION_COLOUR = [255, 200, 0]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Values of patches, raw and on 0..1, wherever they lie: what is coloured."""

    coords: NDArray[np.int64]
    values: NDArray[np.float32]
    scaled: NDArray[np.float32]
    geometry: PatchGeometry
    signed: bool = False


def ome_shape(geometry: PatchGeometry) -> tuple[int, int]:
    """Return the (height, width) of the OME-TIFF: 8 pixels for each step of the grid, 1024 to 4096 a side."""
    longer = max(geometry.width_l0, geometry.height_l0)
    side = min(_LONGEST_PX, max(_SHORTEST_PX, round(_PIXELS_PER_STEP * longer / geometry.stride_l0)), longer)
    return tuple(max(1, round(each * side / longer)) for each in (geometry.height_l0, geometry.width_l0))  # type: ignore[return-value]


def write_ome_tiff(path: Path, layer: Layer, name: str, description: str) -> None:
    """Write the coloured values as a pyramidal OME-TIFF that covers the slide from corner to corner.

    Its pixel size in microns says how it lies over the slide: pixel (0, 0) is the slide's. White where there
    is no patch. It is made and written a row of blocks at a time, each level from the values themselves. Its
    UUID follows from what is in it.
    """
    geometry = layer.geometry
    shapes = [ome_shape(geometry)]
    while max(shapes[-1]) > 2 * _BLOCK:
        shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
    with tifffile.TiffWriter(path, bigtiff=False, ome=True) as tiff:
        for level, shape in enumerate(shapes):
            across = geometry.width_l0 * geometry.mpp_l0 / shape[1]
            down = geometry.height_l0 * geometry.mpp_l0 / shape[0]
            options: dict[str, Any] = {"subfiletype": 1}
            if level == 0:
                options = {
                    "subifds": len(shapes) - 1,
                    "metadata": {
                        "axes": "YXS",
                        "UUID": _uuid_of(layer, name, description),
                        "Name": name,
                        "Description": description,
                        "PhysicalSizeX": across,
                        "PhysicalSizeXUnit": "µm",
                        "PhysicalSizeY": down,
                        "PhysicalSizeYUnit": "µm",
                    },
                }
            tiff.write(
                _blocks(layer, shape),
                shape=(*shape, 3),
                dtype=np.uint8,
                tile=(_BLOCK, _BLOCK),
                photometric="rgb",
                compression="adobe_deflate",
                compressionargs={"level": 1},
                predictor=True,
                resolution=(10_000 / across, 10_000 / down),
                resolutionunit="CENTIMETER",
                software="wsi-mil",
                **options,
            )


def _uuid_of(layer: Layer, name: str, description: str) -> str:
    words = json.dumps([name, description, layer.signed, dataclasses.asdict(layer.geometry)]).encode()
    content = hashlib.blake2b(words + layer.coords.tobytes() + layer.scaled.tobytes(), digest_size=16)
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"wsi-mil/{content.hexdigest()}"))


def _blocks(layer: Layer, shape_rc: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    wide = -(-shape_rc[1] // _BLOCK) * _BLOCK
    for raster in render.strips(layer.scaled, layer.coords, layer.geometry, shape_rc, _BLOCK):
        strip = np.full((_BLOCK, wide, 3), 255, np.uint8)
        covered = ~np.isnan(raster)
        colours = render.colours_of(raster[covered], signed=layer.signed)
        strip[: raster.shape[0], : raster.shape[1]][covered] = colours
        for left in range(0, shape_rc[1], _BLOCK):
            yield np.ascontiguousarray(strip[:, left : left + _BLOCK])


def write_geojson(
    path: Path,
    coords: NDArray[np.int64],
    geometry: PatchGeometry,
    columns: Mapping[str, NDArray[np.float32]],
    regions: Sequence[tuple[str, shapely.Geometry, Mapping[str, float]]] = (),
    key: str = "",
) -> None:
    """Write the patches as cells that QuPath opens, with ``columns`` as their measurements, then regions.

    QuPath's conventions: a FeatureCollection of polygons in level-0 (x, y), closed; ``objectType`` cell for
    patches (with an ``id`` each) and annotation for regions; ``measurements`` by name, numbers only;
    ``classification`` with name and colour. Regions are (name, outline, measurements). The ids follow from
    ``key``: the same map has the same, two maps in one image have different ones.
    """
    stem = str(uuid.uuid5(uuid.NAMESPACE_URL, f"wsi-mil/{key}"))[:24]
    features = [
        *_cells(coords, geometry, columns, stem),
        *(
            f'{{"type": "Feature", "id": "{stem}{number:012x}", {region}'
            for number, region in enumerate(_regions(regions), len(coords))
        ),
    ]
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [\n')
        file.write(",\n".join(features))
        file.write("\n]}\n")


def _cells(
    coords: NDArray[np.int64],
    geometry: PatchGeometry,
    columns: Mapping[str, NDArray[np.float32]],
    stem: str,
) -> list[str]:
    """Return the text of the feature of each patch.

    Text is put together from pieces: a hundred thousand patches lie in a few hundred columns and rows, whose
    numbers are written once.
    """
    names = [json.dumps(name, ensure_ascii=False).replace("%", "%%") for name in columns]
    measured = ", ".join(f"{name}: %.7g" for name in names)
    rows = zip(*[np.asarray(each, np.float64).tolist() for each in columns.values()], strict=True)
    high = np.round(coords + geometry.patch_size_l0, 2)
    left, top = (_written("%d", each) for each in coords.T)
    right, bottom = (_written("%.10g", each) for each in high.T)
    start = f'{{"type": "Feature", "id": "{stem}'
    middle = '", "geometry": {"type": "Polygon", "coordinates": [[['
    end = ']]]}, "properties": {"objectType": "cell", "measurements": {'
    return [
        f"{start}{index:012x}{middle}{x}, {y}], [{r}, {y}], [{r}, {b}], [{x}, {b}], [{x}, {y}{end}"
        f"{measured % row}}}}}}}"
        for index, (x, y, r, b, row) in enumerate(zip(left, top, right, bottom, rows, strict=True))
    ]


def _written(form: str, values: NDArray[Any]) -> list[str]:
    """Return numbers as text, each different one written once."""
    different, which = np.unique(values, return_inverse=True)
    texts = np.array([form % each for each in different.tolist()], dtype=object)
    written: list[str] = texts[which].tolist()
    return written


def _regions(regions: Sequence[tuple[str, shapely.Geometry, Mapping[str, float]]]) -> Iterator[str]:
    """Yield the text of the feature of each region, less its beginning with the id."""
    outlines = shapely.to_geojson(shapely.force_2d(np.array([each for _, each, _ in regions], dtype=object)))
    for (name, _, measurements), outline in zip(regions, outlines, strict=True):
        properties = {
            "objectType": "annotation",
            "name": name,
            "classification": {"name": "top region", "color": _REGION_COLOUR},
            "measurements": dict(measurements),
            "isLocked": True,
        }
        yield f'"geometry": {outline}, "properties": {json.dumps(properties, ensure_ascii=False)}}}'


def top_regions(
    coords: NDArray[np.int64], geometry: PatchGeometry, values: NDArray[np.float32], part: float
) -> list[tuple[str, shapely.Geometry, dict[str, float]]]:
    """Return the outlines of the highest ``part`` of the patches, joined where they touch; largest sum first.

    Patches that tie with the last of them are in. Measurements: patches, and the mean of their values.
    """
    chosen = np.flatnonzero(values >= threshold(values, part))
    size = geometry.patch_size_l0
    if geometry.stride_l0 == size and on_grid(coords[chosen], size):
        # Corners at the grid's own rounded lines: neighbours share their edges exactly.
        cells = cells_rc(coords[chosen], geometry)[:, ::-1]
        (x, y), (right, bottom) = np.rint(cells * size).T, np.rint((cells + 1) * size).T
        outlines = shapely.get_parts(shapely.coverage_union_all(shapely.box(x, y, right, bottom)))
    else:
        x, y = coords[chosen].T.astype(np.float64)
        right, bottom = x + size, y + size
        outlines = shapely.get_parts(shapely.union_all(shapely.box(x, y, right, bottom)))
    middles = shapely.points((x + right) / 2, (y + bottom) / 2)
    of_box, of_outline = shapely.STRtree(outlines).query(middles, predicate="within")
    counts = np.bincount(of_outline, minlength=len(outlines))
    sums = np.bincount(of_outline, values[chosen[of_box]].astype(np.float64), minlength=len(outlines))
    order = np.argsort(-sums, kind="stable")
    simple = shapely.simplify(outlines, 0)  # without the corners between patches in a row
    return [
        (
            f"top region {rank}",
            simple[number],
            {"patches": float(counts[number]), "mean": float(sums[number] / counts[number])},
        )
        for rank, number in enumerate(order.tolist(), 1)
    ]


def threshold(values: NDArray[np.float32], part: float) -> float:
    """Return the lowest value among the highest ``part`` of them; at least one is in it."""
    count = max(1, round(part * len(values)))
    return float(np.partition(values, len(values) - count)[len(values) - count])


def write_table(path: Path, coords: NDArray[np.int64], columns: Mapping[str, NDArray[np.float32]]) -> None:
    """Write a CSV with a row per patch: x_l0, y_l0, and of each column value, percentile and rank.

    percentile is 0 to 100 (the share of the other patches with a lower value, ties half), rank 1 the highest
    (ties share the best).
    """
    header, parts = ["patch", "x_l0", "y_l0"], [*coords.T]
    for name, values in columns.items():
        header += [name, f"{name}_percentile", f"{name}_rank"]
        parts += [values, percentiles(values), scipy.stats.rankdata(-values, method="min").astype(np.int64)]
    line = ",".join(["%d", "%d", "%d", *(["%.9g", "%.4f", "%d"] * len(columns))]) + "\n"
    rows = zip(range(len(coords)), *[each.tolist() for each in parts], strict=True)
    with path.open("w", encoding="utf-8") as file:
        file.write(",".join(f'"{name}"' if "," in name else name for name in header) + "\n")
        file.writelines([line % row for row in rows])


def percentiles(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the share, in %, of the other values that are lower, ties counted half; 50 for a single one."""
    if len(values) == 1:
        return np.full(1, 50.0)
    ranks: NDArray[np.float64] = scipy.stats.rankdata(values)
    return (ranks - 1) / (len(values) - 1) * 100
