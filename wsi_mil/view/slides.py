"""The slides of a run as the page sees them: names, sizes, outlines, heatmap values.

Comes in: a run folder. Goes out: plain values, arrays, and slides opened through ``Handles``. A slide is
found by its id in a table made from the names of the run's own files: nothing that a page sends becomes a
path.
"""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from wsi_mil import store
from wsi_mil.config import Icc, Location
from wsi_mil.errors import FormatError, SlideError, WsiMilError
from wsi_mil.geometry import PatchGeometry
from wsi_mil.locate import SlideFinder
from wsi_mil.slide import Reader, Slide, open_slide
from wsi_mil.view import tiles
from wsi_mil.view.handles import Handles

_OPEN_SLIDES = 8
_KEPT_HEATMAPS = 8


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a slide was when it was tiled, how large it is, and in which colours.

    ``path`` is "" where no file says it; ``fingerprint``: as in ``store.Patches``.
    """

    slide_id: str
    path: Location
    reader: Reader
    geometry: PatchGeometry
    icc: Icc = "none"
    fingerprint: str = ""


class RunSlides:
    """The slides of one run folder. Safe from several threads; new heatmaps of known slides are seen."""

    def __init__(self, run: Path, finder: SlideFinder | None = None) -> None:
        """Look which slides the run has; nothing is opened yet. ``finder`` finds those that were moved."""
        self._finder = finder or SlideFinder()
        self.run = run
        self.heatmaps = _heatmaps(run)
        ids = {path.stem for path in (run / "patches").glob("*.h5") if path.name[0] != "."}
        self.ids = sorted(ids.union(*self.heatmaps.values()) if self.heatmaps else ids)
        self._known = frozenset(self.ids)
        self._handles = Handles(_OPEN_SLIDES)
        self._lock = threading.Lock()
        self._places = lru_cache(maxsize=256)(self._read_place)
        self._read_heatmap = lru_cache(maxsize=_KEPT_HEATMAPS)(_read_heatmap)

    def __contains__(self, slide_id: str) -> bool:
        """Tell whether the run has this slide."""
        return slide_id in self._known

    def rows(self) -> list[dict[str, Any]]:
        """Return what the list of slides shows: id, heatmaps, and each model's label and prediction."""
        verdicts = _verdicts(self.run)
        return [
            {
                "id": slide_id,
                "heatmaps": [name for name, ids in self.heatmaps.items() if slide_id in ids],
                "verdicts": {name: each[slide_id] for name, each in verdicts.items() if slide_id in each},
            }
            for slide_id in self.ids
        ]

    def describe(self, slide_id: str) -> dict[str, Any]:
        """Return what the page needs to show a slide: size, depths, patches' size, outline, heatmaps.

        ``problem`` says why there is no picture of it, else it is "".

        Raises:
            FormatError: neither patches nor heatmaps of it can be read.
        """
        place = self._places(slide_id)
        problem, last, note = "", 0, ""
        try:
            with self.open(slide_id) as slide:
                last, note = tiles.coarsest(slide), slide.note
        except SlideError as error:
            problem = str(error)
        geometry = place.geometry
        return {
            "id": slide_id,
            "width": geometry.width_l0,
            "height": geometry.height_l0,
            "mpp": geometry.mpp_l0,
            "side": tiles.SIDE,
            "coarsest": last,
            "problem": problem,
            "note": note,
            "patch": {"size": geometry.patch_size_l0, "px": geometry.patch_px, "mpp": geometry.mpp},
            "outline": _outline(store.patches_path(self.run, slide_id).with_suffix(".geojson")),
            "heatmaps": self._describe_heatmaps(slide_id),
        }

    @contextlib.contextmanager
    def open(self, slide_id: str) -> Iterator[Slide]:
        """Give the open slide.

        Raises:
            SlideError: it is not there, cannot be opened, or is not the one that was tiled.
        """
        place = self._places(slide_id)

        def opened() -> Slide:
            path = self._finder.find(slide_id, [place.path], place.fingerprint)
            slide = open_slide(path, place.reader, place.geometry.mpp_l0, place.icc)
            size, wanted = (slide.width_l0, slide.height_l0), (
                place.geometry.width_l0, place.geometry.height_l0
            )  # fmt: skip
            if size != wanted:
                slide.close()
                raise SlideError(
                    f"{path}: is {size[0]} x {size[1]} pixels, and the patches were cut from a slide "
                    f"of {wanted[0]} x {wanted[1]}: another slide under the same name."
                )
            return slide

        with self._handles.use(slide_id, opened) as slide:
            yield slide

    def heatmap(self, slide_id: str, name: str) -> store.Heatmap:
        """Return a slide's heatmap of a model.

        Raises:
            FormatError: there is none, or it cannot be read.
        """
        if slide_id not in self.heatmaps.get(name, ()):
            raise FormatError(f"{slide_id}: no heatmap of {name!r}; run `wsi-mil heatmap`.")
        path = store.heatmap_folder(self.run, name, slide_id) / "heatmap.zarr"
        with self._lock:  # zarr's own threads suffice; two pages want the same one
            return self._read_heatmap(path, _stamp(path))

    def close(self) -> None:
        """Close the slides that are open."""
        self._handles.close()

    def _describe_heatmaps(self, slide_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for name, ids in self.heatmaps.items():
            if slide_id not in ids:
                continue
            try:
                heatmap = self.heatmap(slide_id, name)
            except WsiMilError as error:
                found.append({"name": name, "problem": str(error)})
                continue
            geometry = heatmap.geometry
            found.append(
                {
                    "name": name,
                    "problem": "",
                    "quantities": list(heatmap.values),
                    "outputs": list(heatmap.outputs),
                    "shown": dict(heatmap.shown),
                    "patches": len(heatmap.coords),
                    "dense": len(heatmap.dense_coords),
                    "size": geometry.patch_size_l0,
                    "stride": geometry.stride_l0,
                    "on_grid": bool(heatmap.has_grid),
                    "normalize": heatmap.record.get("normalize", "minmax"),
                    "facts": _plain(heatmap.facts),
                }
            )
        return found

    def _read_place(self, slide_id: str) -> Place:
        path = store.patches_path(self.run, slide_id)
        if path.exists():
            patches = store.read_patches(path)
            return Place(
                slide_id=slide_id,
                path=patches.slide_path,
                reader=patches.reader,  # type: ignore[arg-type]
                geometry=patches.geometry,
                icc=patches.icc,
                fingerprint=patches.slide_fingerprint,
            )
        for name, ids in self.heatmaps.items():
            if slide_id in ids:
                geometry = self.heatmap(slide_id, name).geometry
                return Place(slide_id=slide_id, path="", reader="auto", geometry=geometry)
        raise FormatError(f"{slide_id}: neither {path} nor a heatmap of it is there any more.")


def _heatmaps(run: Path) -> dict[str, frozenset[str]]:
    """Return which slides have a heatmap, by the model's name."""
    found = {}
    folder = run / "heatmaps"
    for model in sorted(folder.iterdir()) if folder.is_dir() else ():
        if model.is_dir() and model.name[0] != ".":
            ids = {path.parent.name for path in model.glob("*/heatmap.zarr")}
            found[model.name] = frozenset(each for each in ids if each[0] != ".")
    return {name: ids for name, ids in found.items() if ids}


def _stamp(path: Path) -> int:
    """Return when a group was written: an overwritten one is read anew."""
    try:
        return (path / "zarr.json").stat().st_mtime_ns
    except OSError as error:
        raise FormatError(f"{path}: is not there any more ({error.strerror}).") from error


def _read_heatmap(path: Path, _stamp_ns: int) -> store.Heatmap:
    return store.read_heatmap(path)


def _verdicts(run: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Return label and prediction of each slide by each model; a table that cannot be read has none."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for part in ("models", "predictions"):
        for path in sorted((run / part).glob("*/predictions.csv")):
            with contextlib.suppress(OSError, ValueError, KeyError):
                found[path.parent.name] = {
                    row["slide_id"]: {"label": row.get("label", ""), "predicted": row["predicted"]}
                    for row in store.read_csv(path)
                }
    return found


def _outline(path: Path) -> list[list[list[float]]]:
    """Return the rings of the tissue, lists of level-0 (x, y); none where there is no file or no tissue."""
    try:
        features = json.loads(path.read_text(encoding="utf-8"))["features"]
        rings: list[list[list[float]]] = []
        for feature in features:
            shape = feature["geometry"]
            polygons = [shape["coordinates"]] if shape["type"] == "Polygon" else shape["coordinates"]
            rings += [ring for polygon in polygons for ring in polygon]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return rings


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that fit into a line or a small table; long lists stay in the file."""
    kept = (str, int, float, bool, dict, type(None))
    return {name: value for name, value in facts.items() if isinstance(value, kept)}
