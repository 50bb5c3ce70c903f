"""Features as one sharded zarr v3 store per encoder: a group per slide, on a disk or at a URL.

On a disk a slide's folder is written under a temporary name and renamed. Where nothing can be renamed (s3://,
gs://, memory://, ...) the group's ``zarr.json`` is written last, and a group without it counts as absent.
What is at https:// is read only.
"""

import json
import re
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import fsspec
import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from wsi_mil.errors import ConfigError, FormatError, StoreError, WsiMilError
from wsi_mil.store import atomic, zarr_groups
from wsi_mil.store.disk import disk_errors
from wsi_mil.store.features import FeatureStore, Kind
from wsi_mil.store.items import Features, FeaturesHead, FeaturesSummary
from wsi_mil.store.layout import features_zarr, write_pointer
from wsi_mil.store.record import same_record

_ADVICE = "run `wsi-mil embed` first"


class ZarrFeatures(FeatureStore):
    """What the stores on a disk and at a URL share."""

    kind: Kind = "zarr"

    def read(self, slide_id: str) -> Features:  # noqa: D102 - as the base class says
        with self.opened(slide_id) as group:
            return zarr_groups.read_group(group, self.where(slide_id))

    def summary(self, slide_id: str) -> FeaturesSummary:  # noqa: D102
        with self.opened(slide_id) as group:
            return zarr_groups.summarise_group(group)

    def is_done(self, slide_id: str, record: dict[str, Any], overwrite: bool = False) -> bool:  # noqa: D102
        if not self._is_there(slide_id):
            return False
        try:
            with self.opened(slide_id) as group:
                found = json.loads(str(group.attrs["config"]))
        except FormatError:
            if overwrite:
                return False
            raise
        return same_record(found, record, self.where(slide_id), overwrite)

    @contextmanager
    def opened(self, slide_id: str) -> Iterator[Any]:
        """Open a slide's group for reading.

        Raises:
            FormatError: there is none, or it is not what it should be.
        """
        with zarr_groups.opened(self._at(slide_id), self.where(slide_id), _ADVICE) as group:
            yield group

    def _root(self) -> str:
        """Return the text of the store's own zarr.json."""
        attributes = {"format": "wsi-mil features store", "format_version": 1, "encoder": self.encoder}
        root = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        return json.dumps(root, indent=2) + "\n"

    @abstractmethod
    def _is_there(self, slide_id: str) -> bool:
        """Tell whether a slide's group is there, whole."""

    @abstractmethod
    def _at(self, path: str) -> Store:
        """Return a zarr store that is rooted at a path below this one."""


class LocalZarr(ZarrFeatures):
    """A zarr store on a disk."""

    def __init__(self, run: Path, encoder: str, folder: Path | None = None) -> None:
        """Stand for RUN/features/ENCODER.zarr (or another folder), which need not be there yet."""
        self.encoder = encoder
        self._run, self._elsewhere = run, folder is not None
        self._folder = folder or features_zarr(run, encoder)
        self.place = self._folder

    def slide_ids(self) -> list[str]:  # noqa: D102
        found = self._folder.glob("*/zarr.json")
        return sorted(path.parent.name for path in found if path.parent.name[0] != ".")

    def where(self, slide_id: str) -> str:  # noqa: D102
        return str(self._folder / slide_id)

    def remove(self, slide_id: str) -> None:  # noqa: D102
        path = self._folder / slide_id
        with disk_errors(path):
            atomic.remove_folder(path)

    def sweep(self) -> None:  # noqa: D102
        atomic.sweep(self._folder)

    def _is_there(self, slide_id: str) -> bool:
        return (self._folder / slide_id).is_dir()

    def _at(self, path: str) -> Store:
        return LocalStore(self._folder / path, read_only=True)

    def _spool_folder(self) -> Path:
        return self._folder

    def _publish(
        self,
        head: FeaturesHead,
        coords: NDArray[np.int64],
        blocks: Iterable[NDArray[np.float16]],
        left_out: Sequence[Mapping[str, Any]],
    ) -> None:
        path = self._folder / head.slide_id
        need = 2 * len(coords) * head.dim + coords.nbytes
        if not (self._folder / "zarr.json").exists():
            atomic.write_text(self._folder / "zarr.json", self._root())
        if self._elsewhere:
            write_pointer(self._run, self.encoder, str(self._folder))
        with atomic.atomic_folder(path, need) as temporary:
            zarr_groups.write_group(lambda name: LocalStore(temporary / name), head, coords, blocks, left_out)


class RemoteZarr(ZarrFeatures):
    """A zarr store at a URL that fsspec knows."""

    def __init__(self, run: Path, encoder: str, url: str) -> None:
        """Stand for the store at ``url``, which need not be there yet.

        Raises:
            ConfigError: the URL is of no kind that fsspec and what is installed know.
        """
        self.encoder = encoder
        self._run = run
        self.place: str = url.rstrip("/")
        try:
            self._fs, self._path = fsspec.url_to_fs(self.place)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"--store-url {url}: {error}; pip install 'wsi-mil[remote]' may help."
            ) from error
        self._path = self._path.rstrip("/")

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written there, whoever asks."""
        return self.place.startswith(("http://", "https://"))

    def slide_ids(self) -> list[str]:  # noqa: D102
        with _network(self.place, "read"):
            self._fs.invalidate_cache()
            try:
                names = self._fs.find(self._path)
            except FileNotFoundError:
                return []
        found = (re.fullmatch(r"([^/]+)/zarr\.json", name[len(self._path) + 1 :]) for name in names)
        slide_ids = (each[1] for each in found if each and each[1][0] != ".")
        return sorted(unquote(each) if self.read_only else each for each in slide_ids)

    def where(self, slide_id: str) -> str:  # noqa: D102
        return f"{self.place}/{slide_id}"

    def remove(self, slide_id: str) -> None:  # noqa: D102
        path = f"{self._path}/{slide_id}"
        with _network(self.where(slide_id), "removed"):
            self._fs.invalidate_cache()
            if self._fs.exists(f"{path}/zarr.json"):
                self._fs.rm_file(f"{path}/zarr.json")  # first: without it the rest counts as absent
            if self._fs.exists(path):
                self._fs.rm(path, recursive=True)

    def sweep(self) -> None:  # noqa: D102
        return  # a group without its zarr.json is overwritten when its slide's turn comes

    def encoder_there(self) -> str | None:
        """Return whose features the store at the URL says it holds; None where there is none yet."""
        with _network(self.place, "read"):
            try:
                root = json.loads(self._fs.cat_file(f"{self._path}/zarr.json"))
                return str(root["attributes"]["encoder"])
            except FileNotFoundError:
                return None
            except (ValueError, KeyError, TypeError) as error:
                raise FormatError(
                    f"{self.place}/zarr.json: not that of a store of features ({error!r}); "
                    "use another --store-url."
                ) from error

    def _is_there(self, slide_id: str) -> bool:
        with _network(self.where(slide_id), "read"):
            self._fs.invalidate_cache()
            name = quote(slide_id) if self.read_only else slide_id
            return bool(self._fs.exists(f"{self._path}/{name}/zarr.json"))

    @contextmanager
    def opened(self, slide_id: str) -> Iterator[Any]:  # noqa: D102
        with _network(self.where(slide_id), "read"), super().opened(slide_id) as group:
            yield group

    def _at(self, path: str) -> Store:
        below = quote(path) if self.read_only else path
        return FsspecStore.from_url(f"{self.place}/{below}".rstrip("/"), read_only=True)

    def _spool_folder(self) -> Path:
        return self._run / "features"

    def _publish(
        self,
        head: FeaturesHead,
        coords: NDArray[np.int64],
        blocks: Iterable[NDArray[np.float16]],
        left_out: Sequence[Mapping[str, Any]],
    ) -> None:
        if self.read_only:
            raise StoreError(f"{self.place}: can only be read; write to s3://, gs:// or a folder.")
        where = self.where(head.slide_id)
        write_pointer(self._run, self.encoder, self.place)
        self.remove(head.slide_id)
        with _network(where, "written"):
            if not self._fs.exists(f"{self._path}/zarr.json"):
                self._fs.pipe_file(f"{self._path}/zarr.json", self._root().encode())
            zarr_groups.write_group(
                lambda name: FsspecStore.from_url(f"{where}/{name}".rstrip("/")),
                head,
                coords,
                blocks,
                left_out,
            )


@contextmanager
def _network(where: str, what: str) -> Iterator[None]:
    """Turn what an object store or the way to it says within the block into a StoreError."""
    try:
        yield
    except WsiMilError:
        raise
    except _remote_errors() as error:
        raise StoreError(
            f"{where}: cannot be {what} ({type(error).__name__}: {error}). Check the address, the bucket, "
            "your credentials and the network, and give the command again: it goes on with what is missing."
        ) from error


def _remote_errors() -> tuple[type[Exception], ...]:
    """Return what the libraries raise that have been loaded for a URL, none of which we need otherwise."""
    names = {"botocore.exceptions": "BotoCoreError", "aiohttp": "ClientError", "gcsfs.retry": "HttpError"}
    found = [getattr(sys.modules[module], name) for module, name in names.items() if module in sys.modules]
    return (OSError, *found)
