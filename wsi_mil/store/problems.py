"""What can be wrong with a file of a run: the problems that ``wsi-mil verify`` names, and what to do.

Comes in: a path and what was found. Goes out: a ``Problem``, which knows how it can be repaired, if it can.
"""

import dataclasses
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsi_mil.store import atomic
from wsi_mil.store.disk import disk_errors, refusal, refused_advice

Kind = Literal[
    "unreadable",
    "wrong format",
    "earlier version",
    "checksum",
    "not a number",
    "counts",
    "wrong name",
    "other settings",
    "other patches",
    "missing",
    "leftover",
    "no permission",
    "not opened",
    "not checked",
]
"""How a file can be wrong.

* unreadable: no file of its format, cut off, or without something that it must have.
* wrong format: says that it is something else, or newer.
* earlier version: whole, and written by a version of this program whose files it does not read any more.
* checksum: other values or attributes than those that were written.
* not a number: NaN or infinity.
* counts: its parts, or its stage's table and it, do not agree on how many.
* wrong name: says that it is another slide's, or another encoder's.
* other settings: its digests are not those of its settings.
* other patches: not made from the patches that are there.
* missing: said to be done, or needed, and not there.
* leftover: of a crash.
* no permission, not opened: the system would not open or read it; nothing is known to be wrong with it.
* not checked: a remark, no problem.
"""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong: with which file, what kind, details, and what to do about it.

    ``removable`` is a file or folder inside the run whose removal repairs it, since a stage makes it again.
    ``command`` is that stage's; without either, only the user can repair it.
    """

    file: str
    kind: Kind
    detail: str
    command: str = ""
    advice: str = ""
    removable: Path | None = None

    @property
    def is_remark(self) -> bool:
        """Whether nothing is wrong: a file that has nothing to be checked against."""
        return self.kind == "not checked"

    def what_to_do(self) -> str:
        """Return a sentence."""
        if self.advice:
            return self.advice
        again = f"run `wsi-mil {self.command}` again" if self.command else ""
        if self.removable is None:
            return f"{again}." if again else ""
        return f"remove it (--repair does){', then ' + again if again else ''}."

    def repair(self) -> bool:
        """Remove what is wrong; tell whether that was possible.

        Raises:
            StoreError: the disk does not let us.
        """
        path = self.removable
        if path is None:
            return False
        with disk_errors(path):
            if path.is_dir() and not path.is_symlink():
                atomic.remove_folder(path)
            else:
                path.unlink(missing_ok=True)
        return True


def of_error(problem: Problem, error: BaseException) -> Problem:
    """Return the problem that an error is; what could not be opened or read is not damaged, and is kept."""
    said = refusal(error)
    if not said:
        return problem
    advice = f"{refused_advice(error)}; it was not checked, and nothing is known to be wrong with it."
    kind: Kind = "no permission" if said == os.strerror(errno.EACCES) else "not opened"
    return dataclasses.replace(problem, kind=kind, detail=said, advice=advice, removable=None)


def inside(run: Path, path: Path) -> bool:
    """Tell whether ``path`` lies in the run folder, links followed."""
    return path.resolve().is_relative_to(run.resolve())
