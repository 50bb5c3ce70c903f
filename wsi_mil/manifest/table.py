"""A labels file as rows of text: read, but not yet understood.

Comes in: a path. Goes out: the header and the rows with their line numbers, or what is no CSV about it.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from wsi_mil.errors import LabelError

WANTED = "wanted a header slide_id,label and, if you have them, patient_id and split"

Row = tuple[int, dict[str, str]]
"""The number of a line, and its fields by column."""

_SHOWN = 10


def some(names: Sequence[str]) -> str:
    """Return the first names and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def read_table(path: Path) -> tuple[list[str], list[Row]]:
    """Return the header and each row with its line number, all stripped; blank lines are passed over.

    Raises:
        LabelError: the file cannot be read, is no UTF-8, or has rows of another length than the header.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabelError(f"--labels {path}: cannot be read ({error.strerror}); {WANTED}.") from error
    except UnicodeDecodeError as error:
        raise LabelError(
            f"--labels {path}: not UTF-8 text ({error.reason}); save it as CSV UTF-8."
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip() for name in next(reader, [])]
        lines = [(reader.line_num, fields) for fields in reader if any(field.strip() for field in fields)]
    except csv.Error as error:
        raise LabelError(
            f"--labels {path}: no CSV at line {reader.line_num} ({error}); is a quotation mark not closed?"
        ) from error
    rows, ragged = [], []
    for line, fields in lines:
        if len(fields) != len(header):
            ragged.append(f"line {line} ({len(fields)})")
        rows.append((line, {k: v.strip() for k, v in zip(header, fields, strict=False)}))
    if ragged:
        raise LabelError(
            f"{path}: {len(ragged)} rows do not have the {len(header)} fields of the header: {some(ragged)}."
        )
    return header, rows


def other_delimiter(header: Sequence[str]) -> bool:
    """Tell whether the fields of a header seem to be separated by something else than commas."""
    return len(header) == 1 and any(mark in header[0] for mark in (";", "\t"))
