"""Which features a run holds, and as what kind: the one way to them for every stage.

Comes in: a run folder and an encoder's name. Goes out: a ``FeatureStore``; or an error that says what is
where, and what to do.
"""

import os
from pathlib import Path

from wsi_mil.errors import ConfigError, FormatError, StoreError
from wsi_mil.store.features import FeatureStore
from wsi_mil.store.hdf5_features import Hdf5Features
from wsi_mil.store.layout import features_folder, features_zarr, pointer_path, read_pointer, same_encoder
from wsi_mil.store.zarr_features import LocalZarr, RemoteZarr


def open_features(run: Path, encoder: str, kind: str | None = None, url: str | None = None) -> FeatureStore:
    """Return the features of an encoder in a run: of ``kind`` (which need not be there yet), or whichever is.

    ``url`` is where a zarr store lies, or is to lie, if not in the run folder: the store itself.

    Raises:
        ConfigError: there are none (without ``kind``), or those there are of another kind or elsewhere.
        FormatError, StoreError: the pointer, or the store at the URL, cannot be read.
    """
    if url is not None and "://" not in url.removeprefix("file://"):
        url = str(Path(url.removeprefix("file://")).absolute())  # the pointer holds from any folder
    there = _there(run, encoder)
    if len(there) > 1:
        raise ConfigError(
            f"{run}: holds features of {encoder} twice: {' and '.join(there.values())}. Keep one; move the "
            "other out of the run folder."
        )
    if url is not None and kind is None:
        kind = "zarr"
    if not there:
        if kind is None:
            raise ConfigError(
                f"{run / 'features'}: no features of {encoder} (there are: "
                f"{', '.join(encoders_in(run)) or 'none'}); run `wsi-mil embed` with that encoder first."
            )
        return Hdf5Features(run, encoder) if kind == "hdf5" else _zarr(run, encoder, url)
    found, place = next(iter(there.items()))
    if kind is not None and (kind == "hdf5") != (found == "hdf5"):
        other = "hdf5" if found == "hdf5" else "zarr"
        raise ConfigError(
            f"--store {kind}: the run has features of {encoder} as {other} already, in {place}. Go on with "
            f"--store {other}, use another --run, or remove those."
        )
    if found == "hdf5":
        return Hdf5Features(run, encoder)
    at = place if found == "pointer" else None
    if url is not None and url.rstrip("/") != (at or place).rstrip("/"):
        raise ConfigError(
            f"--store-url {url}: the run's features of {encoder} lie in {place} already. Leave --store-url "
            "out to go on there, use another --run, or remove those."
        )
    return _zarr(run, encoder, at)


def encoders_in(run: Path) -> list[str]:
    """Return the encoders whose features a run holds, by the names that the files say.

    Raises:
        FormatError: a pointer to a store elsewhere cannot be read.
    """
    parent = run / "features"
    if not parent.is_dir():
        return []
    names = set()
    for path in parent.iterdir():
        if path.name[0] == ".":
            continue
        if path.is_dir():
            base = path.name.removesuffix(".zarr")
            kind = "zarr" if path.name.endswith(".zarr") else "hdf5"
            if kind in _there(run, base):
                names.add(name_of(LocalZarr(run, base) if kind == "zarr" else Hdf5Features(run, base)))
        elif path.suffix == ".json":
            names.add(read_pointer(path)["encoder"])
    return sorted(names)


def only_encoder(run: Path) -> str:
    """Return the only encoder whose features a run holds, for a flag that the user left out.

    Raises:
        ConfigError: there is none (names the command that makes it) or there are several (names them).
    """
    names = encoders_in(run)
    if not names:
        raise ConfigError(f"{run / 'features'}: nothing there; run `wsi-mil embed` first.")
    if len(names) > 1:
        raise ConfigError(f"{run / 'features'} holds several: {', '.join(names)}; say which with --encoder.")
    return names[0]


def _there(run: Path, encoder: str) -> dict[str, str]:
    """Return where features of an encoder are, by kind; ``pointer`` is zarr outside the run folder."""
    found = {}
    folder, local = features_folder(run, encoder), features_zarr(run, encoder)
    pointer = pointer_path(run, encoder)
    if _holds(folder, ".h5"):
        found["hdf5"] = str(folder)
    if _holds(local, ""):
        found["zarr"] = str(local)
    if pointer.exists():
        found["pointer"] = read_pointer(pointer)["url"]
    return found


def _holds(folder: Path, ending: str) -> bool:
    """Tell whether a folder holds a name with that ending which is not hidden; many slides cost no more."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(each.name[0] != "." and each.name.endswith(ending) for each in entries)


def _zarr(run: Path, encoder: str, url: str | None) -> FeatureStore:
    if url is None:
        return LocalZarr(run, encoder)
    if "://" not in url:
        return LocalZarr(run, encoder, Path(url))
    store = RemoteZarr(run, encoder, url)
    whose = store.encoder_there()
    if whose is not None and not same_encoder(whose, encoder):
        raise ConfigError(
            f"--store-url {url}: there lies a store of features of {whose}, not of {encoder}; "
            "use another URL."
        )
    return store


def name_of(store: FeatureStore) -> str:
    """Return the encoder's name as the files say it; the folder's where they say another."""
    for slide_id in store.slide_ids():
        try:
            name = store.summary(slide_id).head.encoder
            # Files that a folder of another name holds are known by the folder: two are never taken for one.
            return name if same_encoder(name, store.encoder) else store.encoder
        except (FormatError, StoreError):
            continue
    return store.encoder
