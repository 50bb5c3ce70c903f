"""What a stage leaves about itself: RUN/<stage>/stage.json and RUN/<stage>/slides.csv.

Comes in: a config and, slide by slide, what became of it. Goes out: two files that a person can read. Both
are written also when the stage is interrupted or fails.
"""

import csv
import importlib.metadata
import io
import json
import platform
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wsi_mil import config as configs
from wsi_mil.errors import StaleOutputError
from wsi_mil.store.atomic import alone, check_writable, write_text
from wsi_mil.store.disk import disk_errors
from wsi_mil.store.layout import features_folder

_LIBRARIES = ("wsi-mil", "torch", "timm", "openslide-python", "tiffslide", "numpy", "h5py", "scikit-learn")

_OUTPUTS = {
    "tile": ("patches",), "import": ("patches", "features"), "embed": ("features",), "train": ("models",),
    "heatmap": ("heatmaps",), "predict": ("predictions",), "report": (".",),
}  # fmt: skip
"""Where in a run each stage writes, beside RUN/<stage>."""


@contextmanager
def stage_record(
    run: Path, stage: str, config: object, totals: Callable[[], Mapping[str, Any]] = dict
) -> Iterator[dict[str, Any]]:
    """Write RUN/<stage>/stage.json when the block ends, however it ends; the block may add keys.

    Holds the resolved config, its digest, versions, host, times and ``status``: done, interrupted or failed.
    Where the config has a ``share``, the record is of all shares of these settings: its times are from the
    first to the last of them, ``shares`` is what became of each, and ``status`` "done" once all are.
    ``totals`` returns the keys that are of all shares; it is called when the block has ended well, while no
    other share can write the record: whoever writes it last has counted what all others left.

    Raises:
        StoreError: the stage could not write its outputs, or its record; it has not begun then.
    """
    for folder in _folders(run, stage, config):
        check_writable(folder)
    started = datetime.now(UTC)
    record = configs.record(config)
    content: dict[str, Any] = {
        "format": "wsi-mil stage",
        "format_version": 1,
        "stage": stage,
        "config": json.loads(json.dumps(_fields(config), default=str)),
        "config_digest": configs.digest(record),
        "command": sys.argv,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
        "started": started.isoformat(timespec="seconds"),
    }
    content["status"] = "failed"
    try:
        yield content
        content["status"] = "done"
    except KeyboardInterrupt:
        content["status"] = "interrupted"
        raise
    except Exception as error:
        content["error"] = str(error) or type(error).__name__
        raise
    finally:
        ended = datetime.now(UTC)
        content["ended"] = ended.isoformat(timespec="seconds")
        content["seconds"] = round((ended - started).total_seconds(), 2)
        if run.is_dir() or content["status"] == "done":  # a mistyped --run makes no folder
            _write(run / stage / "stage.json", content, getattr(config, "share", ""), totals)


def _folders(run: Path, stage: str, config: object) -> list[Path]:
    """Return the folders that a stage writes into."""
    folders = [run / stage, *(run / each for each in _OUTPUTS.get(stage, ()))]
    if stage == "embed":
        folders.append(features_folder(run, str(getattr(config, "encoder", ""))))
    if stage == "export":
        folders.append(Path(getattr(config, "output", run)))
    return folders


def _write(path: Path, content: dict[str, Any], share: str, totals: Callable[[], Mapping[str, Any]]) -> None:
    """Write a stage's record; that of a share is joined with what the others left."""
    with disk_errors(path), alone(path) if share else nullcontext():
        if content["status"] == "done":
            content |= totals()
        if share:
            _join(path, content, share)
        write_text(path, json.dumps(content, indent=2) + "\n")


def _join(path: Path, content: dict[str, Any], share: str) -> None:
    """Change the record of one share into that of all that are there."""
    count = int(share.split("/")[1])
    shares = _shares_before(path, content["config_digest"], count)
    shares[share] = {
        name: content[name] for name in ("status", "host", "started", "ended", "error") if name in content
    }
    content["shares"] = dict(sorted(shares.items(), key=lambda each: int(each[0].split("/")[0])))
    content["status"] = _joint_status([each["status"] for each in shares.values()], count)
    content["started"] = min(each["started"] for each in shares.values())
    content["ended"] = max(each["ended"] for each in shares.values())
    first, last = (datetime.fromisoformat(content[name]) for name in ("started", "ended"))
    content["seconds"] = (last - first).total_seconds()


def _shares_before(path: Path, digest: str, count: int) -> dict[str, Any]:
    """Return what is noted of the other shares of the same settings; of another division nothing is kept."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        shares = dict(before["shares"]) if before["config_digest"] == digest else {}
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is of a run without shares
        return {}
    return {name: each for name, each in shares.items() if int(name.split("/")[1]) == count}


def _joint_status(statuses: Sequence[str], count: int) -> str:
    for worst in ("failed", "interrupted"):
        if worst in statuses:
            return worst
    return "done" if len(statuses) == count else f"{len(statuses)} of {count} shares done"


def read_stage(run: Path, stage: str) -> dict[str, Any] | None:
    """Return the content of RUN/<stage>/stage.json, or None where the stage has not run."""
    path = run / stage / "stage.json"
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def same_record(
    found: Mapping[str, Any], record: Mapping[str, Any], where: Path | str, overwrite: bool = False
) -> bool:
    """Tell whether an output that says it was made with ``found`` is what ``record`` would make.

    With ``overwrite`` an output of other settings counts as absent.

    Raises:
        StaleOutputError: it is of other settings or inputs; the message names the first that differs.
    """
    difference = configs.first_difference(found, record)
    if difference is None or overwrite:
        return difference is None
    raise StaleOutputError(
        f"{where}: made with other settings: {difference}. "
        "Restore the setting, use another --run (or --name), or make it again with --overwrite."
    )


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a CSV file atomically; the columns in their order, a missing value as an empty field."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file that ``write_csv`` wrote; an absent file has no rows."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _fields(config: object) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}  # type: ignore[attr-defined]


def _versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
