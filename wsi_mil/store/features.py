"""The features of one encoder, slide by slide, whatever kind of file holds them.

Comes in: rows of features in any order. Goes out: a slide's features, published whole or not at all. How they
lie on disk is the business of the kinds, ``hdf5_features`` and ``zarr_features``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsi_mil.errors import FormatError
from wsi_mil.store.items import Features, FeaturesHead, FeaturesSummary, check_finite
from wsi_mil.store.spool import Spool

Kind = Literal["hdf5", "zarr"]
_PUT, _LEFT_OUT = 1, 2


class FeaturesWriter:
    """Takes the features of one slide's patches; see ``FeatureStore.writer``."""

    def __init__(self, head: FeaturesHead, coords: NDArray[np.int64], spool: Spool) -> None:
        """Await a row for each of ``coords`` (N, 2)."""
        self._head, self._coords, self._spool = head, coords, spool
        self._state = np.zeros(len(coords), np.uint8)
        self._left_out: list[dict[str, Any]] = []

    def put(self, index: NDArray[np.int64], features: NDArray[np.floating[Any]]) -> None:
        """Take ``features`` (n, D) of the patches numbered ``index`` (n,), in any order, each once.

        Raises:
            FormatError: NaN or infinity among them (also beyond float16), another shape, or a patch that has
                been put or left out already.
            StoreError: the disk is full.
        """
        index = np.asarray(index, dtype=np.int64)
        if features.shape != (len(index), self._head.dim):
            raise FormatError(
                f"{self._head.slide_id}: features of shape {features.shape} for {len(index)} patches; "
                f"wanted {(len(index), self._head.dim)}."
            )
        self._mark(index, _PUT)
        with np.errstate(over="ignore"):  # what is too large for float16 becomes infinite, and is refused
            rows = features.astype("<f2", copy=False)
        check_finite(self._head.slide_id, rows, index, self._coords)
        self._spool.put(index, rows)

    def leave_out(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take note of patches that cannot be read: index, x_l0, y_l0, where, reason.

        Raises:
            FormatError: one of them has been put or left out already.
        """
        self._mark(np.array([each["index"] for each in rows], np.int64), _LEFT_OUT)
        self._left_out += [dict(each) for each in rows]

    def finish(self) -> tuple[NDArray[np.int64], tuple[dict[str, Any], ...]]:
        """Return which rows are kept (rising), and the patches left out.

        Raises:
            FormatError: a patch was neither put nor left out; the message names the first.
        """
        missing = np.flatnonzero(self._state == 0)
        if len(missing):
            raise FormatError(
                f"{self._head.slide_id}: {len(missing)} of {len(self._state)} patches were neither embedded "
                f"nor left out, the first is patch {missing[0]} at {self._coords[missing[0]].tolist()} "
                "(level-0 x, y)."
            )
        left_out = tuple(sorted(self._left_out, key=lambda each: int(each["index"])))
        return np.flatnonzero(self._state == _PUT), left_out

    def _mark(self, index: NDArray[np.int64], state: int) -> None:
        outside = index[(index < 0) | (index >= len(self._state))]
        if len(outside):
            raise FormatError(
                f"{self._head.slide_id}: there is no patch {outside[0]}; there are {len(self._state)}."
            )
        twice = index[self._state[index] != 0]
        if not len(twice) and len(np.unique(index)) != len(index):
            numbers, counts = np.unique(index, return_counts=True)
            twice = numbers[counts > 1]
        if len(twice):
            raise FormatError(
                f"{self._head.slide_id}: patch {twice[0]} at {self._coords[twice[0]].tolist()} "
                "(level-0 x, y) was given twice."
            )
        self._state[index] = state


class FeatureStore(ABC):
    """The features of one encoder in a run, slide by slide; ``open_features`` opens one."""

    kind: Kind
    encoder: str
    place: Path | str
    """The folder or the URL, for messages."""

    @abstractmethod
    def slide_ids(self) -> list[str]:
        """Return the slides whose features are complete, sorted."""

    @abstractmethod
    def where(self, slide_id: str) -> str:
        """Return where a slide's features lie, for messages."""

    @abstractmethod
    def read(self, slide_id: str) -> Features:
        """Return a slide's features, whole.

        Raises:
            FormatError: there are none, or they are not what they should be.
        """

    @abstractmethod
    def summary(self, slide_id: str) -> FeaturesSummary:
        """Return what a slide's features say about themselves, without reading the arrays.

        Raises:
            FormatError: there are none, or they are not what they should be.
        """

    @abstractmethod
    def is_done(self, slide_id: str, record: dict[str, Any], overwrite: bool = False) -> bool:
        """Tell whether a slide's features are there, made with the settings in ``record``.

        With ``overwrite`` features of other settings count as absent.

        Raises:
            StaleOutputError: they were made with other settings; the message names the first that differs.
            FormatError: what is there is not one of ours.
        """

    @abstractmethod
    def remove(self, slide_id: str) -> None:
        """Remove a slide's features, if there are any."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove what dead processes of this host left."""

    def write(self, features: Features) -> None:
        """Write a slide's features, whole or not at all, in place of older ones.

        Raises:
            StoreError: the disk is full, read-only, or does not let us.
            FormatError: they are of another encoder.
        """
        self._check(features.head)
        self._publish(features.head, features.coords, [features.features], features.left_out)

    @contextmanager
    def writer(self, head: FeaturesHead, coords: NDArray[np.int64]) -> Iterator[FeaturesWriter]:
        """Yield what takes the features of the patches at ``coords`` (N, 2); few rows are ever in memory.

        When the block ends well, patches that were left out are taken out of the coords, and the features are
        published whole, in place of older ones. When it does not, nothing stays.

        Raises:
            FormatError: a patch was neither put nor left out, or the head is another encoder's.
            StoreError: the disk is full, read-only, or does not let us.
        """
        self._check(head)
        with Spool(self._spool_folder(), len(coords), head.dim) as spool:
            writer = FeaturesWriter(head, coords, spool)
            yield writer
            kept, left_out = writer.finish()
            self._publish(head, coords[kept], spool.blocks(kept), left_out)

    def _check(self, head: FeaturesHead) -> None:
        if head.encoder != self.encoder:
            raise FormatError(
                f"{self.place}: holds features of {self.encoder}; "
                f"those of {head.slide_id} are of {head.encoder}."
            )

    @abstractmethod
    def _spool_folder(self) -> Path:
        """Return a folder on a disk with room for rows on their way."""

    @abstractmethod
    def _publish(
        self,
        head: FeaturesHead,
        coords: NDArray[np.int64],
        blocks: Iterable[NDArray[np.float16]],
        left_out: Sequence[Mapping[str, Any]],
    ) -> None:
        """Write a slide's features from blocks of rows, whole or not at all."""
