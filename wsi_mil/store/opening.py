"""Which features a run holds, and as what kind: the one way to them for every stage.

Comes in: a run folder and an encoder's name. Goes out: a ``FeatureStore``; or an
error that says what is where.
"""

from pathlib import Path

from wsi_mil.errors import ConfigError, FormatError
from wsi_mil.store.features import FeatureStore
from wsi_mil.store.hdf5_features import Hdf5Features
from wsi_mil.store.layout import features_folder


def open_features(run: Path, encoder: str, kind: str | None = None, url: str | None = None) -> FeatureStore:
    """Return the features of an encoder in a run; without ``kind``, whichever is there.

    Raises:
        ConfigError: there are none (without ``kind``), or those there are of another kind or elsewhere.
    """
    del url
    if kind is None and encoder not in encoders_in(run):
        safe = features_folder(run, encoder).name
        if safe not in {features_folder(run, each).name for each in encoders_in(run)}:
            there = ", ".join(encoders_in(run)) or "none"
            raise ConfigError(
                f"--encoder {encoder}: no features in {features_folder(run, encoder)} (there are: {there}); "
                "run `wsi-mil embed` with that encoder first."
            )
    return Hdf5Features(run, encoder)


def encoders_in(run: Path) -> list[str]:
    """Return the encoders whose features a run holds, by the names that the files say."""
    parent = run / "features"
    if not parent.is_dir():
        return []
    return sorted(_name(run, path.name) for path in parent.iterdir() if path.is_dir() and path.name[0] != ".")


def _name(run: Path, folder: str) -> str:
    store = Hdf5Features(run, folder)
    for slide_id in store.slide_ids():
        try:
            return store.summary(slide_id).head.encoder
        except FormatError:
            continue
    return folder
