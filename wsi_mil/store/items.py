"""What is stored of a slide, as it is in memory: patches and features, whatever kind of file holds them.

Comes in: arrays and facts. Goes out: frozen records that refuse what does not belong together. Nothing here
knows a file.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil import config as configs
from wsi_mil.config import Icc, Location
from wsi_mil.errors import FormatError
from wsi_mil.geometry import PatchGeometry


@dataclass(frozen=True, kw_only=True)
class Patches:
    """Where the patches of one slide lie.

    ``coords`` (N, 2) int64 level-0 (x, y) of top-left corners, row-major; ``tissue_fraction`` (N,) float32;
    ``record`` the settings that made them (``config.record``). N = 0 is a slide without tissue.
    ``slide_fingerprint`` says which bytes the slide's file had; empty where it was not taken. ``quality`` has
    further columns (N,) float32 by their name, -1 where a value is not known; ``notes`` what was found and
    what was left out, as plain JSON values.
    """

    slide_id: str
    slide_path: Location
    reader: str
    mpp_source: str
    geometry: PatchGeometry
    coords: NDArray[np.int64]
    tissue_fraction: NDArray[np.float32]
    record: dict[str, Any]
    slide_fingerprint: str = ""
    quality: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse columns that do not belong to the coords."""
        for name, column in self.quality.items():
            if column.shape != (len(self.coords),):
                raise FormatError(
                    f"{self.slide_id}: {name} of shape {column.shape} for {len(self.coords)} patches."
                )

    @property
    def icc(self) -> Icc:
        """What is done with the colours of the slide when these patches are read; see ``Slide.icc``."""
        return _icc(self.record)

    @property
    def digest(self) -> str:
        """Digest of the settings and the coords: other patches have another digest."""
        coords = hashlib.sha256(np.ascontiguousarray(self.coords, dtype="<i8").tobytes()).hexdigest()
        return configs.digest(self.record | {"coords": coords})


@dataclass(frozen=True, kw_only=True)
class FeaturesHead:
    """All that is known of a slide's features before the first patch is embedded.

    ``dim`` is D, the length of a feature vector; ``patches_digest`` that of the patches they are made from;
    ``record`` the settings and inputs that make them. ``mpp_source``: as in ``Patches``; "" in files that
    were written before it was kept.
    """

    slide_id: str
    slide_path: Location
    reader: str
    geometry: PatchGeometry
    encoder: str
    weights_digest: str
    patches_digest: str
    dim: int
    record: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)
    mpp_source: str = ""

    @property
    def icc(self) -> Icc:
        """What was done with the colours of the slide; see ``Slide.icc``."""
        return _icc(self.record.get("tile", {}))

    @property
    def slide_fingerprint(self) -> str:
        """Which bytes the slide's file had when it was tiled; "" where that is not known (imported)."""
        return str(self.record.get("tile", {}).get("slide_fingerprint", ""))

    @property
    def identity(self) -> dict[str, Any]:
        """What a model must find unchanged in every bag: encoder, weights, dimension, mpp and patch size.

        And the stain normalisation and the conversion of colours, where there was one.
        """
        colours = {"stain": self.record.get("stain", "none"), "icc": self.icc}
        return {
            "encoder": self.encoder,
            "weights_digest": self.weights_digest,
            "dim": self.dim,
            "mpp": self.geometry.mpp,
            "patch_px": self.geometry.patch_px,
        } | {name: value for name, value in colours.items() if value != "none"}


@dataclass(frozen=True, kw_only=True)
class FeaturesSummary:
    """What a slide's features say about themselves, without the arrays.

    ``patches`` is N, ``left_out`` how many patches are missing; ``checksums`` has ``attributes`` and the
    name of each dataset, and is empty for files that were written before there were checksums.
    """

    head: FeaturesHead
    patches: int
    left_out: int
    checksums: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Features:
    """What an encoder made of the patches of one slide: enough for training and heatmaps.

    ``features`` (N, D) float16, row k belongs to ``coords`` row k. ``patches_digest`` is that of the patches
    they were made from. ``left_out``: for each of those patches that could not be read and is missing here, a
    dict (index among the patches, x_l0, y_l0, where, reason).
    """

    slide_id: str
    slide_path: Location
    reader: str
    geometry: PatchGeometry
    coords: NDArray[np.int64]
    features: NDArray[np.float16]
    encoder: str
    weights_digest: str
    patches_digest: str
    record: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[dict[str, Any], ...] = ()
    mpp_source: str = ""

    def __post_init__(self) -> None:
        """Refuse features that do not belong to the coords, or are not numbers."""
        if self.features.ndim != 2 or len(self.features) != len(self.coords):
            raise FormatError(
                f"{self.slide_id}: features of shape {self.features.shape} for {len(self.coords)} patches."
            )
        check_finite(self.slide_id, self.features, np.arange(len(self.coords)), self.coords)

    @property
    def head(self) -> FeaturesHead:
        """What the features say beside their arrays."""
        return FeaturesHead(
            slide_id=self.slide_id,
            slide_path=self.slide_path,
            reader=self.reader,
            geometry=self.geometry,
            encoder=self.encoder,
            weights_digest=self.weights_digest,
            patches_digest=self.patches_digest,
            dim=int(self.features.shape[1]),
            record=self.record,
            notes=self.notes,
            mpp_source=self.mpp_source,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What a model must find unchanged in every bag; see ``FeaturesHead.identity``."""
        return self.head.identity


def _icc(record: Mapping[str, Any]) -> Icc:
    return "srgb" if record.get("icc") == "srgb" else "none"


def check_finite(
    slide_id: str, features: NDArray[np.float16], index: NDArray[np.int64], coords: NDArray[np.int64]
) -> None:
    """Raise FormatError where ``features`` (n, D) of patches ``index`` (n,) hold NaN or infinity."""
    step = 256  # rows that stay in the processor's cache
    starts = range(0, len(features), step)
    parts = [
        start + np.flatnonzero(~_finite(features[start : start + step]).all(axis=1))
        for start in starts
        if not _all_finite(features[start : start + step])
    ]
    bad = np.concatenate(parts) if parts else np.empty(0, np.int64)
    if len(bad):
        first = int(index[bad].min())
        raise FormatError(
            f"{slide_id}: the features of {len(bad)} patches hold NaN or infinity, the first is "
            f"patch {first} at {coords[first].tolist()} (level-0 x, y); "
            "embed with --precision fp32, or check the weights."
        )


def _all_finite(values: NDArray[np.float16]) -> bool:
    """Tell whether all values are numbers; five times as fast as asking which."""
    if values.dtype == np.float16 and values.flags.c_contiguous and values.size:
        return bool((values.view(np.uint16) & 0x7FFF).max() < 0x7C00)
    return bool(_finite(values).all())


def _finite(values: NDArray[np.float16]) -> NDArray[np.bool_]:
    """Tell which values are numbers; by the bits of float16, which numpy would convert one by one."""
    if values.dtype == np.float16 and values.flags.c_contiguous:
        finite: NDArray[np.bool_] = (values.view(np.uint16) & 0x7C00) != 0x7C00
        return finite
    return np.isfinite(values)
