"""The tensors of a model on disk: RUN/models/<name>/fold_K.safetensors.

Comes in: plain arrays and a head of JSON. Goes out: a file that says what it is. What a model is, and which
tensors it has, is ``models.py``'s business.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from wsi_mil import config as configs
from wsi_mil.errors import FormatError

FORMAT_VERSION = 2
"""Of fold_K.safetensors and of metrics.json: 1 knew classification only, and its networks were others."""


def write_fold(path: Path, tensors: dict[str, NDArray[np.float32]], head: dict[str, Any]) -> None:
    """Write one fold's model: its tensors and, as JSON in the file's metadata, everything to build it again.

    Call it inside ``atomic_folder``: the folder is what appears whole.
    """
    metadata = {
        "format": "wsi-mil model",
        "format_version": str(FORMAT_VERSION),
        "head": json.dumps(head, sort_keys=True),
    }
    # Not save_file: it makes files that only their owner may read, whatever the umask says.
    path.write_bytes(save({name: np.ascontiguousarray(value) for name, value in tensors.items()}, metadata))


def read_fold(path: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Return the tensors and the head of one fold's model.

    Raises:
        FormatError: no such file, no safetensors, or not a model of a version that this program knows.
    """
    if not path.exists():
        raise FormatError(f"{path}: no such model; run `wsi-mil train` first.")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path}: not readable as safetensors ({error}).") from error
    _check_version(path, metadata, "wsi-mil model")
    return tensors, json.loads(metadata["head"])


def model_digest(folder: Path) -> str:
    """Return a digest of what made the model in ``folder``: its settings, features and labels.

    Raises:
        FormatError: no metrics.json there that says them.
    """
    path = folder / "metrics.json"
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
        made_of = {key: scores[key] for key in ("config_digest", "features_digest", "labels_digest")}
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(f"{path}: does not say what made the model ({error!r}); train it again.") from error
    return configs.digest(made_of)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return the content of a model's metrics.json.

    Raises:
        FormatError: there is none, it is not JSON, or of a version that this program does not read.
    """
    path = folder / "metrics.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{path}: no such file; run `wsi-mil train` first.") from error
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read ({error}); train the model again.") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path}: holds no table of names and values; train the model again.")
    _check_version(path, content, "wsi-mil metrics")
    return content


def _check_version(path: Path, says: Mapping[str, Any], kind: str) -> None:
    """Refuse what is not ``kind``, or of another version; an earlier one is not read, but made again."""
    found, version = says.get("format"), str(says.get("format_version"))
    if found == kind and version.isdecimal() and version != str(FORMAT_VERSION):
        if int(version) < FORMAT_VERSION:
            raise FormatError(
                f"{path}: format version {version}, made by an earlier version of wsi-mil; this one reads "
                f"{FORMAT_VERSION}. Train the model again (`wsi-mil train` with --overwrite)."
            )
        raise FormatError(
            f"{path}: format version {version}, this program knows {FORMAT_VERSION}; update wsi-mil."
        )
    if found != kind or version != str(FORMAT_VERSION):
        raise FormatError(
            f"{path}: says it is {found!r} version {version}; wanted {kind!r} {FORMAT_VERSION}."
        )
