"""The run folder: which file lies where. The only place that builds these paths."""

from pathlib import Path

from wsi_mil.errors import ConfigError


def patches_path(run: Path, slide_id: str) -> Path:
    """RUN/patches/<slide_id>.h5."""
    return run / "patches" / f"{slide_id}.h5"


def features_folder(run: Path, encoder: str) -> Path:
    """RUN/features/<encoder>; characters that cannot stand in a folder's name become '_'."""
    safe = "".join(c if c.isalnum() or c in "._-+" else "_" for c in encoder)
    return run / "features" / safe


def features_path(run: Path, encoder: str, slide_id: str) -> Path:
    """RUN/features/<encoder>/<slide_id>.h5."""
    return features_folder(run, encoder) / f"{slide_id}.h5"


def model_folder(run: Path, name: str) -> Path:
    """RUN/models/<name>."""
    return run / "models" / name


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
