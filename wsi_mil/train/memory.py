"""What a training keeps on disk while it runs, so that a kill costs half a minute and not a night.

Comes in: states of tensors and numbers. Goes out: the same, if they belong to the same training. It lies in
RUN/train/states/<name> and is gone when the model is there.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from wsi_mil import config as configs
from wsi_mil import store
from wsi_mil.errors import FormatError

EVERY = 30.0
"""Seconds between two states of a training."""


class Work:
    """The folder of one training; states of another (``record`` differs) are removed first."""

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Open the folder; nothing is created until there is a state to keep."""
        self.folder = folder
        self._record: dict[str, Any] = {"record": dict(record), "torch": torch.__version__}
        path = folder / "record.json"
        if folder.exists() and not _is(path, self._record):
            self.remove()

    @classmethod
    def joined(cls, folder: Path, record: Mapping[str, Any]) -> "Work":
        """Return the folder of a training that another process has begun; nothing is removed.

        Raises:
            FormatError: the folder is another training's, or of another version of torch.
        """
        wanted = {"record": dict(record), "torch": torch.__version__}
        if not _is(folder / "record.json", wanted):
            raise FormatError(
                f"{folder}: not of this training, or begun with another torch than {torch.__version__}, "
                "which is installed here; install the same version on all machines."
            )
        return cls(folder, record)

    @property
    def record(self) -> dict[str, Any]:
        """What the training is made from."""
        record: dict[str, Any] = self._record["record"]
        return record

    def memory(self, name: str) -> "FileMemory":
        """Return the memory of one part of the training."""
        return FileMemory(self, self.folder / f"{name}.pt")

    def part(self, name: str) -> "Work":
        """Return a part of the training whose memories lie apart."""
        return Work(self.folder / name, self._record["record"])

    def begin(self) -> None:
        """Say whose states these are."""
        path = self.folder / "record.json"
        if not path.exists():
            with store.atomic_file(path) as temporary:
                temporary.write_text(json.dumps(self._record, default=str) + "\n", encoding="utf-8")

    def remove(self) -> None:
        """Remove all states."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # other trainings are under way
            self.folder.parent.rmdir()


class FileMemory:
    """Keeps the last state of a part in a file, at most every ``EVERY`` seconds."""

    def __init__(self, work: Work, path: Path) -> None:
        """Take the file's path; it may be there from before."""
        self._work, self._path = work, path
        self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the state that was kept last, or None."""
        if not self._path.exists():
            return None
        state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
        return state

    def save(self, state: Callable[[], dict[str, Any]], last: bool = False) -> None:
        """Keep the state if it is the last one or half a minute has passed."""
        if not last and time.monotonic() - self._last < EVERY:
            return
        self._work.begin()
        with store.atomic_file(self._path) as temporary:
            torch.save(state(), temporary)
        self._last = time.monotonic()


def _is(path: Path, record: Mapping[str, Any]) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    same: bool = configs.first_difference(found, json.loads(json.dumps(record, default=str))) is None
    return same
