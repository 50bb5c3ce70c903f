"""The features that a training needs, in one memory-mapped array: as they lie packed already, or packed now.

Comes in: the features of one encoder, and which slides are wanted. Goes out: ``store.Packed``, and why a
slide is not in it. One slide at a time is in memory. It knows no label.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil import models, parallel, store
from wsi_mil.errors import FormatError
from wsi_mil.store import checksum as checksums

_NO_PATCHES = "0 patches: no tissue was found on it, so there is nothing to train on or to score"


def pack(
    run: Path, features: store.FeatureStore, slide_ids: Sequence[str]
) -> tuple[store.Packed | None, dict[str, str]]:
    """Return the features of slides packed, in their order, and why those that are not in it cannot be used.

    What RUN/train/bags holds is used where the features still say the same checksums; else it is written
    anew, with what else it held and is still so. None where not one of the slides can be used.

    Raises:
        FormatError: features of different encoders, weights, mpp or patch sizes.
        StoreError: the disk is full, read-only, or does not let us; or features at a URL cannot be reached.
    """
    failed: dict[str, str] = {}
    store.sweep(store.bags_folder(run, features.encoder).parent)
    heads = _heads(features, slide_ids, failed)
    identity = _identity(features, heads)
    wanted = {slide_id: _checksum(features, slide_id, each, failed) for slide_id, each in heads.items()}
    old = _packed_before(run, features.encoder, identity)
    held = dict(zip(old.slide_ids, old.checksums, strict=True)) if old else {}
    missing = [each for each in wanted if each not in failed and held.get(each) != wanted[each]]
    if missing:
        gone = {*missing, *failed}
        kept = _kept(features, old, [each for each in held if each not in gone], wanted, failed)
        need = 2 * int(identity["dim"]) * sum(each.patches for each in heads.values())
        with parallel.progress("pack bags", len(missing)) as report:
            readings = _readings(features, missing, failed, report)
            first = next(readings, None)
            if first is not None:  # else there is nothing to add
                slides = chain([first], readings, kept)
                old = store.write_packed(run, features.encoder, identity, slides, need)
    usable = [slide_id for slide_id in slide_ids if slide_id not in failed]
    return (old.take(usable) if old and usable else None), failed


def tensor_of(packed: store.Packed) -> torch.Tensor:
    """Return the packed array (T, D) as a tensor on the same memory map; it must never be written to.

    The file is read ahead in the background: its bags are needed in any order, and a disk is fast in one.
    """
    packed.read_ahead()
    return models.as_tensor(packed.array)


def _heads(
    features: store.FeatureStore, slide_ids: Sequence[str], failed: dict[str, str]
) -> dict[str, store.FeaturesSummary]:
    """Return what the features of each slide say about themselves."""
    heads = {}
    for slide_id in slide_ids:
        try:
            summary = features.summary(slide_id)
        except FormatError as error:
            failed[slide_id] = str(error)
            continue
        if summary.patches:
            heads[slide_id] = summary
        else:
            failed[slide_id] = _NO_PATCHES
    return heads


def _identity(features: store.FeatureStore, heads: dict[str, store.FeaturesSummary]) -> dict[str, Any]:
    """Return what all features share."""
    identity: dict[str, Any] = {}
    first = ""
    for slide_id, each in heads.items():
        if not identity:
            identity, first = each.head.identity, features.where(slide_id)
        difference = configs.first_difference(identity, each.head.identity)
        if difference is not None:
            raise FormatError(
                f"{features.where(slide_id)}: other features than {first}: {difference}. One model "
                "needs one kind; tile and embed all slides with the same settings."
            )
    return identity


def _checksum(
    features: store.FeatureStore, slide_id: str, summary: store.FeaturesSummary, failed: dict[str, str]
) -> str:
    """Return the checksum of a slide's features; where the file has none they are read for it."""
    if "features" in summary.checksums:
        return summary.checksums["features"]
    try:
        return checksums.of_array(features.read(slide_id).features)
    except FormatError as error:
        failed[slide_id] = str(error)
        return ""


def _packed_before(run: Path, encoder: str, identity: dict[str, Any]) -> store.Packed | None:
    try:
        packed = store.read_packed(run, encoder)
    except FormatError:
        return None  # it is made anew, whatever was wrong with it
    return packed if packed.identity == identity else None


def _readings(
    features: store.FeatureStore,
    slide_ids: Sequence[str],
    failed: dict[str, str],
    report: Callable[[int], None],
) -> Iterator[tuple[str, NDArray[np.float16]]]:
    """Yield the features of slides, one after the other; note those that cannot be read."""
    for slide_id in slide_ids:
        try:
            read = features.read(slide_id).features
        except FormatError as error:
            failed[slide_id] = str(error)
        else:
            yield slide_id, read
        report(1)


def _kept(
    features: store.FeatureStore,
    old: store.Packed | None,
    slide_ids: Sequence[str],
    wanted: dict[str, str],
    failed: dict[str, str],
) -> Iterator[tuple[str, NDArray[np.float16]]]:
    """Yield what was packed before and is still so; what is not whole any more is read again."""
    if old is None:
        return
    there = set(features.slide_ids())
    at = {slide_id: i for i, slide_id in enumerate(old.slide_ids)}
    for slide_id in slide_ids:
        if slide_id not in wanted and not _unchanged(features, slide_id, old.checksums[at[slide_id]], there):
            continue
        if old.is_whole(at[slide_id]):
            yield slide_id, old.bag(at[slide_id])
        elif slide_id in wanted:
            yield from _readings(features, [slide_id], failed, lambda _: None)


def _unchanged(features: store.FeatureStore, slide_id: str, checksum: str, there: set[str]) -> bool:
    """Tell whether a slide that this training does not want still has the features that were packed."""
    try:
        return slide_id in there and features.summary(slide_id).checksums.get("features") == checksum
    except FormatError:
        return False
