"""Predictions of new slides on disk: RUN/predictions/<name>/, a table and the record of what made it.

Comes in: rows of text, and from which features each was made. Goes out: a folder that appears whole. What the
columns mean is the predict stage's business.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_mil import config as configs
from wsi_mil.errors import FormatError
from wsi_mil.store import checksum as checksums
from wsi_mil.store.atomic import atomic_folder
from wsi_mil.store.record import read_csv, write_csv

FORMAT_VERSION = 1
_FORMAT = "wsi-mil predictions"
_TABLE, _RECORD = "predictions.csv", "predict.json"


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a model said of the slides of a run.

    ``rows`` are those of predictions.csv by slide; ``features`` the checksum of the features behind each;
    ``record`` is what else made them; ``facts`` are what a reader should know (task, names).
    """

    record: dict[str, Any]
    facts: dict[str, Any]
    columns: tuple[str, ...]
    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    features: dict[str, str] = field(default_factory=dict)


def write_predictions(folder: Path, predictions: Predictions, more: Mapping[str, str] | None = None) -> None:
    """Write the folder, whole, in place of an older one; ``more`` are further text files by their names."""
    with atomic_folder(folder) as temporary:
        rows = [predictions.rows[slide_id] for slide_id in sorted(predictions.rows)]
        write_csv(temporary / _TABLE, predictions.columns, rows)
        content = {
            "format": _FORMAT,
            "format_version": FORMAT_VERSION,
            **predictions.facts,
            "config": predictions.record,
            "config_digest": configs.digest(predictions.record),
            "table_checksum": table_checksum(temporary),
            "slides": {slide_id: predictions.features[slide_id] for slide_id in sorted(predictions.rows)},
        }
        (temporary / _RECORD).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for name, text in (more or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")


def read_predictions(folder: Path) -> Predictions:
    """Return the predictions of a folder.

    Raises:
        FormatError: no predictions are there, or not those that were written, or of another version.
    """
    path = folder / _RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _check_format(path, content)
        rows = read_csv(folder / _TABLE)
        features, record = dict(content["slides"]), dict(content["config"])
        facts = {name: content[name] for name in ("task", "names")}
        stated = content["table_checksum"]
        if stated != table_checksum(folder):
            raise FormatError(f"{folder / _TABLE}: not the table that was written (its checksum differs)")
        if [row["slide_id"] for row in rows] != sorted(features):
            raise FormatError(f"{folder / _TABLE}: its slides are not those of {_RECORD}")
        if configs.digest(record) != content["config_digest"]:
            raise FormatError(f"{path}: its config_digest is not that of its config")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, FormatError) else f"{path}: cannot be read ({error!r})"
        raise FormatError(f"{reason}; predict again with --overwrite.") from error
    columns = tuple(rows[0]) if rows else ()
    return Predictions(
        record=record,
        facts=facts,
        columns=columns,
        rows={row["slide_id"]: row for row in rows},
        features=features,
    )


def table_checksum(folder: Path) -> str:
    """Return the checksum of the table of a folder of predictions."""
    return checksums.of_texts([(folder / _TABLE).read_text(encoding="utf-8")])


def _check_format(path: Path, content: Mapping[str, Any]) -> None:
    found, version = content["format"], content["format_version"]
    if found != _FORMAT or version != FORMAT_VERSION:
        raise FormatError(
            f"{path}: says it is {found!r} version {version}; wanted {_FORMAT!r} {FORMAT_VERSION}"
        )
