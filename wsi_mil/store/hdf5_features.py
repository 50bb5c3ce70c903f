"""Features as a folder of HDF5 files, one per slide: RUN/features/<encoder>/<slide_id>.h5."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil.store import atomic, hdf5
from wsi_mil.store.disk import disk_errors
from wsi_mil.store.features import FeatureStore, Kind
from wsi_mil.store.items import Features, FeaturesHead, FeaturesSummary
from wsi_mil.store.layout import features_folder, features_path


class Hdf5Features(FeatureStore):
    """The features of one encoder as HDF5 files in a folder of the run."""

    kind: Kind = "hdf5"

    def __init__(self, run: Path, encoder: str) -> None:
        """Stand for RUN/features/ENCODER, which need not be there yet."""
        self.encoder = encoder
        self._run = run
        self.place: Path = features_folder(run, encoder)

    def slide_ids(self) -> list[str]:  # noqa: D102 - as the base class says
        return sorted(path.stem for path in self.place.glob("*.h5") if path.name[0] != ".")

    def where(self, slide_id: str) -> str:  # noqa: D102
        return str(self._path(slide_id))

    def read(self, slide_id: str) -> Features:  # noqa: D102
        return hdf5.read_features(self._path(slide_id))

    def summary(self, slide_id: str) -> FeaturesSummary:  # noqa: D102
        return hdf5.summarise_features(self._path(slide_id))

    def is_done(self, slide_id: str, record: dict[str, Any], overwrite: bool = False) -> bool:  # noqa: D102
        return hdf5.is_done(self._path(slide_id), record, "features", overwrite)

    def remove(self, slide_id: str) -> None:  # noqa: D102
        path = self._path(slide_id)
        with disk_errors(path):
            path.unlink(missing_ok=True)

    def sweep(self) -> None:  # noqa: D102
        atomic.sweep(self.place)

    def _path(self, slide_id: str) -> Path:
        return features_path(self._run, self.encoder, slide_id)

    def _spool_folder(self) -> Path:
        return self.place

    def _publish(
        self,
        head: FeaturesHead,
        coords: NDArray[np.int64],
        blocks: Iterable[NDArray[np.float16]],
        left_out: Sequence[Mapping[str, Any]],
    ) -> None:
        hdf5.stream_features(self._path(head.slide_id), head, coords, blocks, left_out)
