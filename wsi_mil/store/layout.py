"""The run folder: which file lies where. The only place that builds these paths."""

import json
from pathlib import Path

from wsi_mil.errors import ConfigError, FormatError
from wsi_mil.store.atomic import write_text

_POINTER = "wsi-mil features pointer"


def patches_path(run: Path, slide_id: str) -> Path:
    """RUN/patches/<slide_id>.h5."""
    return run / "patches" / f"{slide_id}.h5"


def context_run(run: Path, mpp: float) -> Path:
    """RUN/mpp_<mpp>: a run folder of its own, of patches at another resolution around the same centres."""
    return run / f"mpp_{mpp:g}"


def features_folder(run: Path, encoder: str) -> Path:
    """RUN/features/<encoder>; characters that cannot stand in a folder's name become '_'."""
    safe = "".join(c if c.isalnum() or c in "._-+" else "_" for c in encoder)
    return run / "features" / safe


def features_path(run: Path, encoder: str, slide_id: str) -> Path:
    """RUN/features/<encoder>/<slide_id>.h5."""
    return features_folder(run, encoder) / f"{slide_id}.h5"


def features_zarr(run: Path, encoder: str) -> Path:
    """RUN/features/<encoder>.zarr."""
    folder = features_folder(run, encoder)
    return folder.with_name(folder.name + ".zarr")


def pointer_path(run: Path, encoder: str) -> Path:
    """RUN/features/<encoder>.json: says where the features lie, if not in the run folder."""
    folder = features_folder(run, encoder)
    return folder.with_name(folder.name + ".json")


def write_pointer(run: Path, encoder: str, url: str) -> None:
    """Note in the run that an encoder's features lie in the zarr store at ``url``."""
    path = pointer_path(run, encoder)
    if not path.exists() or read_pointer(path)["url"] != url:
        content = {"format": _POINTER, "format_version": 1, "encoder": encoder, "kind": "zarr", "url": url}
        write_text(path, json.dumps(content, indent=2) + "\n")


def read_pointer(path: Path) -> dict[str, str]:
    """Return what a pointer says: ``encoder``, ``kind`` and ``url``.

    Raises:
        FormatError: it is no pointer.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _POINTER or content["format_version"] != 1:
            raise ValueError(f"it says it is {content['format']!r} version {content['format_version']}")
        return {name: str(content[name]) for name in ("encoder", "kind", "url")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{path}: should say at which URL the features lie, and does not ({error!r}); remove it and run "
            "`wsi-mil embed` with --store zarr --store-url."
        ) from error


def same_encoder(one: str, other: str) -> bool:
    """Tell whether two names are the same encoder's, as far as a folder's name can tell."""
    return features_folder(Path(), one) == features_folder(Path(), other)


def model_folder(run: Path, name: str) -> Path:
    """RUN/models/<name>."""
    return run / "models" / name


def bags_folder(run: Path, encoder: str) -> Path:
    """RUN/train/bags/<encoder>: the features packed for training, a cache."""
    return run / "train" / "bags" / features_folder(run, encoder).name


def predictions_folder(run: Path, name: str) -> Path:
    """RUN/predictions/<name>."""
    return run / "predictions" / name


def heatmap_folder(run: Path, name: str, slide_id: str) -> Path:
    """RUN/heatmaps/<name>/<slide_id>."""
    return run / "heatmaps" / name / slide_id


def only_folder(parent: Path, flag: str, command: str) -> str:
    """Return the name of the only folder in ``parent``, for a flag that the user left out.

    Raises:
        ConfigError: there is none (names the command that makes it) or there are several (names them).
    """
    names = (
        sorted(p.name for p in parent.iterdir() if p.is_dir() and p.name[0] != ".") if parent.is_dir() else []
    )
    if not names:
        raise ConfigError(f"{parent}: nothing there; run `wsi-mil {command}` first.")
    if len(names) > 1:
        raise ConfigError(f"{parent} holds several: {', '.join(names)}; say which with {flag}.")
    return names[0]
