"""Every file of a run against its own checksums, its name, its settings, its inputs and its stage's table.

Comes in: a run folder. Goes out: checks, to be called one by one, and the problems that they found. Nothing
outside the run folder is followed or removed; features at a URL are read, as the run's own pointer says.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_mil.errors import FormatError, StoreError
from wsi_mil.store import hdf5, zarr_groups
from wsi_mil.store import verify_files as files
from wsi_mil.store import verify_outputs as outputs
from wsi_mil.store.attributes import FEATURES, Attributes
from wsi_mil.store.disk import refusal
from wsi_mil.store.features import FeatureStore
from wsi_mil.store.hdf5_features import Hdf5Features
from wsi_mil.store.items import Patches
from wsi_mil.store.layout import patches_path, read_pointer
from wsi_mil.store.leftovers import leftovers
from wsi_mil.store.opening import name_of
from wsi_mil.store.packed import check_packed
from wsi_mil.store.problems import Problem, inside, of_error
from wsi_mil.store.verify_files import Checked, Subject
from wsi_mil.store.zarr_features import LocalZarr, RemoteZarr, ZarrFeatures

_STAGES = ("tile", "import", "embed", "train", "heatmap", "predict", "report")


@dataclass
class Verification:
    """The checks of a run: ``checks`` is what to call, in this order; ``problems`` what they have found.

    ``files`` are what is checked: files, folders of packed bags, models, heatmaps and predictions, groups of
    a zarr store.
    """

    run: Path
    problems: list[Problem] = field(default_factory=list)
    checks: list[Callable[[], None]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    _patches: dict[str, Checked] = field(default_factory=dict)
    _features: dict[tuple[str, str], Checked] = field(default_factory=dict)
    _stores: dict[str, FeatureStore] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """List the checks; nothing is opened yet but pointers."""
        for path in self._inside("patches", "*.h5"):
            self._add(str(path), self._check_patches, path)
        for path in self._inside("features", "*"):
            self._list_features(path)
        for path in self._inside("train", "bags/*"):
            if path.is_dir():
                self._add(str(path), lambda path: self.problems.extend(check_packed(path)), path)
        for path in self._inside("models", "*"):
            if path.is_dir():
                self._add(str(path), lambda path: self.problems.extend(outputs.check_model(path)), path)
        for path in self._inside("heatmaps", "*/*"):
            if path.is_dir():
                self._add(str(path), lambda path: self.problems.extend(outputs.check_heatmap(path)), path)
        for path in self._inside("predictions", "*"):
            if path.is_dir():
                self._add(str(path), lambda path: self.problems.extend(outputs.check_predictions(path)), path)
        self.checks.append(lambda: self._check(str(self.run), self._check_tables))
        self.checks.append(lambda: self.problems.extend(leftovers(self.run)))

    def _add(self, file: str, check: Callable[..., None], *arguments: object) -> None:
        self.files.append(file)
        self.checks.append(lambda: self._check(file, check, *arguments))

    def _check(self, file: str, check: Callable[..., None], *arguments: object) -> None:
        """Check a file; what the system would not have opened is a problem, and no other check stops."""
        try:
            check(*arguments)
        except OSError as error:
            if not refusal(error):
                raise
            self.problems.append(of_error(Problem(file=file, kind="not opened", detail=""), error))

    def _inside(self, folder: str, pattern: str) -> Iterator[Path]:
        """Yield what matches and lies in the run; say what a link leads out of it."""
        for path in sorted((self.run / folder).glob(pattern)):
            if any(part[0] == "." for part in path.relative_to(self.run).parts):
                continue
            if inside(self.run, path):
                yield path
            else:
                self._remark(str(path), "a link that leads out of the run folder")

    def _remark(self, file: str, detail: str) -> None:
        self.problems.append(
            Problem(file=file, kind="not checked", detail=detail, advice="nothing; it was left alone.")
        )

    def _list_features(self, path: Path) -> None:
        store: FeatureStore
        if path.is_dir() and path.name.endswith(".zarr"):
            store = LocalZarr(self.run, path.name.removesuffix(".zarr"))
            slides = [each.name for each in self._inside(f"features/{path.name}", "*") if each.is_dir()]
        elif path.is_dir():
            store = Hdf5Features(self.run, path.name)
            slides = [each.stem for each in self._inside(f"features/{path.name}", "*.h5")]
        elif path.suffix == ".json":
            self._list_elsewhere(path)
            return
        else:
            return
        self._list_slides(store, slides)

    def _list_elsewhere(self, path: Path) -> None:
        try:
            pointer = read_pointer(path)
            if "://" in pointer["url"]:
                store: FeatureStore = RemoteZarr(self.run, pointer["encoder"], pointer["url"])
            else:
                store = LocalZarr(self.run, pointer["encoder"], Path(pointer["url"]))
            self._list_slides(store, store.slide_ids())
        except FormatError as error:
            self._only_by_hand(str(path), str(error))
        except StoreError as error:
            self._only_by_hand(str(path), str(error))

    def _only_by_hand(self, file: str, words: str) -> None:
        advice = "see to it by hand: what lies outside the run folder is never touched."
        self.problems.append(Problem(file=file, kind="unreadable", detail=words, advice=advice))

    def _list_slides(self, store: FeatureStore, slides: list[str]) -> None:
        encoder = store.encoder
        self._stores[name_of(store)] = store
        for slide_id in slides:
            self._add(store.where(slide_id), self._check_features, store, encoder, slide_id)

    def _check_patches(self, path: Path) -> None:
        checked, _ = files.check_patches(path)
        self._patches[path.stem] = checked
        self.problems += checked.problems

    def _check_features(self, store: FeatureStore, encoder: str, slide_id: str) -> None:
        where = store.where(slide_id)
        local = "://" not in where and inside(self.run, Path(where))
        subject = Subject(
            where=where, slide_id=slide_id, command="embed", removable=Path(where) if local else None
        )
        opened: Any = hdf5.opened(Path(where), FEATURES, "")
        read: Callable[[Any], tuple[Attributes, list[str]]] = _read_hdf5
        if isinstance(store, ZarrFeatures):
            opened, read = store.opened(slide_id), _read_zarr
        try:
            checked = files.check_features(subject, opened, read, encoder, self._patches_of(slide_id, where))
        except StoreError as error:
            self._only_by_hand(where, str(error))
            return
        self._features[name_of(store), slide_id] = checked
        self.problems += checked.problems

    def _patches_of(self, slide_id: str, where: str) -> Patches | None:
        """Return a slide's patches, where nothing is wrong with them; say where they are not there."""
        known = self._patches.get(slide_id)
        path = patches_path(self.run, slide_id)
        if known is None:
            said = any(each.file == str(path) for each in self.problems)
            if not said and not path.exists():
                detail = f"the features in {where} were made from them"
                self.problems.append(Problem(file=str(path), kind="missing", detail=detail, command="tile"))
            return None
        if any(not each.is_remark for each in known.problems):
            return None
        return hdf5.read_patches(path)

    def _check_tables(self) -> None:
        for stage in _STAGES:
            self.problems += outputs.check_stage(self.run, stage)
        found = outputs.check_patches_table(self.run, self._patches)
        found += outputs.check_features_table(self.run, self._stores, self._features)
        found += outputs.check_heatmaps_table(self.run)
        found += outputs.check_predictions_table(self.run)
        said = {(each.file, each.kind) for each in self.problems}
        self.problems += [each for each in found if (each.file, each.kind) not in said]


def _read_hdf5(file: Any) -> tuple[Attributes, list[str]]:
    return hdf5.read_attributes(file), hdf5.left_out_texts(file)


def _read_zarr(group: Any) -> tuple[Attributes, list[str]]:
    return zarr_groups.read_attributes(group), zarr_groups.left_out_texts(group)
