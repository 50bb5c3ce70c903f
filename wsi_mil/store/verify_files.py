"""Checks of one file of patches or one slide's features: what it says against what it holds.

Comes in: an open HDF5 file or zarr group. Goes out: what is wrong with it. Arrays pass through
block by block.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil.errors import FormatError
from wsi_mil.store import attributes as attrs
from wsi_mil.store import checksum, hdf5
from wsi_mil.store.disk import refusal
from wsi_mil.store.items import Patches
from wsi_mil.store.layout import same_encoder
from wsi_mil.store.problems import Kind, Problem, of_error

_ROWS = 4096


@dataclass(kw_only=True)
class Checked:
    """What the check of a file found: problems, and facts that the stage's table must agree with."""

    problems: list[Problem] = field(default_factory=list)
    patches: int | None = None
    checksum: str = ""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The file under check: its path or address, the slide that its name says, and how it is repaired."""

    where: str
    slide_id: str
    command: str
    removable: Path | None

    def problem(self, kind: Kind, detail: str, advice: str = "") -> Problem:
        """Return a problem with this file."""
        keep = bool(advice)
        return Problem(
            file=self.where,
            kind=kind,
            detail=detail,
            command=self.command,
            advice=advice,
            removable=None if keep else self.removable,
        )


def check_patches(path: Path) -> tuple[Checked, Patches | None]:
    """Check a patches file; return also the patches, where nothing is wrong with them."""
    subject = Subject(where=str(path), slide_id=path.stem, command="tile", removable=path)
    checked = Checked()

    def look(file: Any) -> None:
        found = hdf5.read_attributes(file)
        checked.problems += _attribute_problems(subject, found)
        names = tuple(dict.fromkeys(("coords", "tissue_fraction", *file)))
        checked.problems += _array_problems(subject, file, found, names)[0]
        lengths = {name: file[name].shape[0] for name in names}
        checked.patches = lengths["coords"]
        if len(set(lengths.values())) > 1:
            checked.problems.append(subject.problem("counts", f"rows of its datasets: {lengths}"))

    _guarded(subject, checked, hdf5.opened(path, attrs.PATCHES, ""), look)
    if checked.problems and not all(each.is_remark for each in checked.problems):
        return checked, None
    patches = hdf5.read_patches(path)
    with hdf5.opened(path, attrs.PATCHES, "") as file:
        stated = file.attrs.get("patches_digest")
    if stated != patches.digest:
        checked.problems.append(
            subject.problem(
                "other settings", f"patches_digest is {stated}, its coords and settings give {patches.digest}"
            )
        )
        return checked, None
    return checked, patches


def check_features(
    subject: Subject,
    opened: AbstractContextManager[Any],
    read: Callable[[Any], tuple[attrs.Attributes, list[str]]],
    encoder: str,
    patches: Patches | None,
) -> Checked:
    """Check one slide's features.

    ``opened`` is the file or group; ``read`` returns its attributes and the texts of ``left_out``.

    ``patches`` are the slide's, or None where they are not to be had (which has been said).
    """
    checked = Checked()

    def look(node: Any) -> None:
        found, texts = read(node)
        checked.problems += _attribute_problems(subject, found)
        problems, checked.checksum = _array_problems(subject, node, found, ("coords", "features"))
        checked.problems += problems
        stated = found.get("left_out", {}).get("checksum")
        if stated is not None and stated != checksum.of_texts(texts):
            checked.problems.append(
                subject.problem("checksum", "the values of left_out are not those written")
            )
        count, coords = node["features"].shape[0], node["coords"]
        checked.patches = count
        if count != coords.shape[0] or int(found[""]["left_out"]) != len(texts):
            detail = f"{count} rows of features, {coords.shape[0]} coords; left out are {len(texts)}"
            detail += f" of {found['']['left_out']}"
            checked.problems.append(subject.problem("counts", detail))
        if not same_encoder(str(found[""]["encoder"]), encoder):
            detail = f"says that its encoder is {found['']['encoder']}, and lies among those of {encoder}"
            checked.problems.append(subject.problem("wrong name", detail))
        if patches is not None and not _wrong(checked):
            checked.problems += _against_patches(subject, found[""], np.asarray(coords[:]), texts, patches)

    _guarded(subject, checked, opened, look)
    return checked


def _wrong(checked: Checked) -> bool:
    return any(not each.is_remark for each in checked.problems)


def _guarded(
    subject: Subject, checked: Checked, opened: AbstractContextManager[Any], look: Callable[[Any], None]
) -> None:
    """Call ``look`` with the open file; what cannot be opened or read becomes a problem."""
    try:
        with opened as node:
            look(node)
    except FormatError as error:
        text = str(error).removeprefix(f"{subject.where}: ")
        if refusal(error):
            checked.problems.append(of_error(subject.problem("unreadable", text), error))
        elif "update wsi-mil" in text:
            checked.problems.append(subject.problem("wrong format", text, "update wsi-mil."))
        elif text.startswith("says it is"):  # whole, and of another program: not ours to remove
            advice = "move it out of the run folder, if it is not wsi-mil's."
            checked.problems.append(subject.problem("wrong format", text, advice))
        else:
            kind: Kind = "unreadable"
            if "checksum" in text:  # zarr's own, of a chunk or of a shard's index
                kind = "checksum"
            checked.problems.append(subject.problem(kind, text.split("; remove it")[0]))


def _attribute_problems(subject: Subject, found: attrs.Attributes) -> list[Problem]:
    """Return what is wrong with the attributes: checksum, name of the slide, digest of the settings."""
    root, problems = found[""], []
    stated = root.get("attributes_checksum")
    if stated is None:
        problems.append(
            subject.problem("not checked", "written before checksums", "nothing; it can be read.")
        )
    elif stated != checksum.of_attributes(found):
        return [subject.problem("checksum", "the attributes are not those written")]
    if root["slide_id"] != subject.slide_id:
        problems.append(subject.problem("wrong name", f"says that it is of slide {root['slide_id']}"))
    digest = configs.digest(json.loads(str(root["config"])))
    if root["config_digest"] != digest:
        detail = f"config_digest is {root['config_digest']}, its settings give {digest}"
        problems.append(subject.problem("other settings", detail))
    return problems


def _array_problems(
    subject: Subject, node: Any, found: attrs.Attributes, names: tuple[str, ...]
) -> tuple[list[Problem], str]:
    """Return what is wrong with the values of arrays, and the checksum of the last one."""
    problems: list[Problem] = []
    total = checksum.Checksum()
    for name in names:
        total, bad = checksum.Checksum(), -1
        start = 0
        for rows in _blocks(node[name]):
            total.update(rows)
            if bad < 0 and name == "features":  # a tissue_fraction is NaN where another tool did not keep it
                wrong = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
                bad = start + int(wrong[0]) if len(wrong) else bad
            start += len(rows)
        stated = found[name].get("checksum")
        if stated is None and "attributes_checksum" in found[""]:
            problems.append(subject.problem("checksum", f"that of {name} is missing"))
        elif stated is not None and stated != total.text():
            problems.append(subject.problem("checksum", f"the values of {name} are not those written"))
        elif bad >= 0:
            problems.append(subject.problem("not a number", f"NaN or infinity in {name}, first in row {bad}"))
    return problems, total.text()


def _blocks(array: Any) -> Iterator[NDArray[Any]]:
    shards = getattr(array, "shards", None)
    step = max(_ROWS if not shards else int(shards[0]), 1)
    for start in range(0, array.shape[0], step):
        yield np.asarray(array[start : start + step])


def _against_patches(
    subject: Subject, root: dict[str, Any], coords: NDArray[np.int64], texts: list[str], patches: Patches
) -> list[Problem]:
    if root["patches_digest"] != patches.digest:
        detail = f"made from patches {root['patches_digest']}; those there are {patches.digest}"
        return [subject.problem("other patches", detail)]
    geometry = attrs.to_geometry(root)
    if dataclasses.astuple(geometry) != dataclasses.astuple(patches.geometry):
        return [subject.problem("other patches", "its geometry is not that of its patches")]
    index = np.array([int(json.loads(each)["index"]) for each in texts], np.int64)
    if len(coords) + len(index) != len(patches.coords) or len(np.unique(index)) != len(index):
        detail = f"{len(coords)} patches and {len(index)} left out of {len(patches.coords)}"
        return [subject.problem("counts", detail)]
    if not np.array_equal(coords, np.delete(patches.coords, index, axis=0)):
        return [subject.problem("other patches", "its coords are not those of its patches")]
    return []
