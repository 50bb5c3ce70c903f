"""The attributes of patches and features: the same names and values in HDF5 and in zarr (FORMATS.md).

Comes in: records in memory. Goes out: attributes by object (``""`` is the root), and back. Besides our own
names they have those that CLAM's and TRIDENT's readers look for.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil.errors import FormatError
from wsi_mil.geometry import PatchGeometry
from wsi_mil.store import checksum as checksums
from wsi_mil.store.items import Features, FeaturesHead, FeaturesSummary, Patches

FORMAT_VERSION = 1
PATCHES, FEATURES = "wsi-mil patches", "wsi-mil features"
Attributes = dict[str, dict[str, Any]]


def of_patches(patches: Patches) -> Attributes:
    """Return the attributes of a patches file, but for the checksums."""
    root = _root(PATCHES, patches) | {"mpp_source": patches.mpp_source, "patches_digest": patches.digest}
    root["slide_fingerprint"] = patches.slide_fingerprint
    root["notes"] = json.dumps(patches.notes)
    columns: Attributes = {name: {} for name in ("tissue_fraction", *patches.quality)}
    return {"": root, "coords": _coords(patches)} | columns


def of_features(head: FeaturesHead, left_out: int) -> Attributes:
    """Return the attributes of a features file, but for the checksums."""
    root = _root(FEATURES, head) | {
        "encoder": head.encoder,
        "weights_digest": head.weights_digest,
        "patches_digest": head.patches_digest,
        "mpp_source": head.mpp_source,
        "notes": json.dumps(head.notes),
        "left_out": left_out,
    }
    names = {"name": head.slide_id, "encoder": head.encoder}
    more: Attributes = {"left_out": {}} if left_out else {}
    return {"": root, "coords": _coords(head), "features": names} | more


def to_head(root: Mapping[str, Any], dim: int) -> FeaturesHead:
    """Return what a features file says, from its root's attributes and the width of its array."""
    return FeaturesHead(
        slide_id=str(root["slide_id"]),
        slide_path=configs.location(str(root["slide_path"])),
        reader=str(root["reader"]),
        geometry=to_geometry(root),
        encoder=str(root["encoder"]),
        weights_digest=str(root["weights_digest"]),
        patches_digest=str(root["patches_digest"]),
        dim=dim,
        record=json.loads(str(root["config"])),
        notes=json.loads(str(root["notes"])),
        mpp_source=str(root.get("mpp_source", "")),
    )


def to_features(
    where: str,
    root: Mapping[str, Any],
    *,
    coords: NDArray[Any],
    features: NDArray[np.float16],
    checksum: Any,
    left_out: Iterable[str],
) -> Features:
    """Return features from the root's attributes and the arrays, whose ``checksum`` may be missing.

    Raises:
        FormatError: they are not those that were written.
    """
    if checksum is not None and checksum != checksums.of_array(features):
        raise FormatError(
            f"{where}: the features are not those that were written (their checksum differs): the disk or a "
            "copy damaged them. Run `wsi-mil verify --repair`, then embed again."
        )
    head = to_head(root, features.shape[1])
    return Features(
        slide_id=head.slide_id,
        slide_path=head.slide_path,
        reader=head.reader,
        geometry=head.geometry,
        coords=coords.astype(np.int64),
        features=features,
        encoder=head.encoder,
        weights_digest=head.weights_digest,
        patches_digest=head.patches_digest,
        record=head.record,
        notes=head.notes,
        mpp_source=head.mpp_source,
        left_out=tuple(json.loads(each) for each in left_out),
    )


def to_summary(attributes: Attributes, shape: tuple[int, ...]) -> FeaturesSummary:
    """Return the summary of a features file from its attributes and the shape of its array."""
    root = attributes[""]
    stated = {name: str(each["checksum"]) for name, each in attributes.items() if "checksum" in each}
    if "attributes_checksum" in root:
        stated["attributes"] = str(root["attributes_checksum"])
    head = to_head(root, int(shape[1]))
    return FeaturesSummary(head=head, patches=int(shape[0]), left_out=int(root["left_out"]), checksums=stated)


def to_geometry(root: Mapping[str, Any]) -> PatchGeometry:
    """Return the geometry from the root's attributes."""
    return PatchGeometry(
        mpp=float(root["mpp"]),
        patch_px=int(root["patch_px"]),
        patch_size_l0=float(root["patch_size_l0"]),
        stride_l0=float(root["stride_l0"]),
        width_l0=int(root["width_l0"]),
        height_l0=int(root["height_l0"]),
        mpp_l0=float(root["mpp_l0"]),
    )


def check_format(where: str, root: Mapping[str, Any], kind: str) -> None:
    """Refuse what is not ``kind`` of a version that this program knows.

    Raises:
        FormatError: it says that it is something else, or newer.
    """
    found = root.get("format")
    try:
        version = int(root.get("format_version", 0))
    except (TypeError, ValueError):
        version = 0
    if found == kind and version > FORMAT_VERSION:
        raise FormatError(
            f"{where}: format version {version}, this program knows {FORMAT_VERSION}; update wsi-mil."
        )
    if found != kind or version != FORMAT_VERSION:
        raise FormatError(f"{where}: says it is {found!r} version {version}; wanted {kind!r} version 1.")


def _root(kind: str, item: Patches | FeaturesHead) -> dict[str, Any]:
    return {
        "format": kind,
        "format_version": FORMAT_VERSION,
        "config": json.dumps(item.record),
        "config_digest": configs.digest(item.record),
        "slide_id": item.slide_id,
        "slide_path": str(item.slide_path),
        "reader": item.reader,
    } | dataclasses.asdict(item.geometry)


def _coords(item: Patches | FeaturesHead) -> dict[str, Any]:
    """Return the names under which TRIDENT's readers look for the same facts.

    Its patch reader insists on magnifications and takes only their quotient; 10 / mpp is its own convention.
    """
    geometry = item.geometry
    overlap = geometry.patch_px * (1 - geometry.stride_l0 / geometry.patch_size_l0)
    return {
        "patch_size": geometry.patch_px,
        "patch_size_level0": round(geometry.patch_size_l0),
        "level0_magnification": 10 / geometry.mpp_l0,
        "target_magnification": 10 / geometry.mpp,
        "overlap": round(overlap),
        "level0_width": geometry.width_l0,
        "level0_height": geometry.height_l0,
        "name": item.slide_id,
    }
