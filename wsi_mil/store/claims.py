"""Claims: which process works on which slide, so that several share a run without a coordinator.

A claim is a file ``<slide_id>.claim-<K>`` that one process creates and no other can (O_EXCL). The highest K
counts. Its holder touches it while it works; a claim whose process is gone, or that was not touched for
``EXPIRY_S``, is taken over by creating K + 1: of several that try, one succeeds. All that is asked of the
file system is exclusive creation and modification times, which shared ones have as well (NFS too).
"""

import contextlib
import json
import os
import re
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from wsi_mil.store.atomic import host, process_alive
from wsi_mil.store.disk import disk_errors

EXPIRY_S = 120.0
"""A claim that was not touched for so long belongs to nobody (its node is lost, or it hangs)."""

_TOUCH_S = 15.0
_PROCESS = uuid.uuid4().hex
_NAME = re.compile(r"^(?P<slide>.+)\.claim-(?P<turn>\d+)$")
CLOCK = re.compile(r"^\.clock-(?P<host>.+)-(?P<pid>\d+)(\.draft)?$")


@dataclass(frozen=True)
class Holder:
    """Who holds a claim: ``alive`` tells whether it still does; ``run`` is that of ``Claims``."""

    host: str
    pid: int
    run: str
    turn: int
    alive: bool

    def __str__(self) -> str:
        """Return words for messages."""
        return f"process {self.pid} on {self.host}"


class Claims:
    """The claims of this process in one folder. A context manager: leaving it gives back what is held.

    ``run`` names a command and all processes that it starts: a slide on which one of them died is not taken
    by another, for it may be the slide that kills them. ``handed_out`` says that a coordinator gives each
    slide to one process at a time, and counts deaths: what another process of the run holds is then taken.
    """

    def __init__(self, folder: Path, run: str, *, handed_out: bool = False) -> None:
        """Hold nothing yet; the folder is made.

        Raises:
            StoreError: the disk does not let us.
        """
        self._folder, self.run, self._handed_out = folder, run, handed_out
        self._held: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._clock = folder / f".clock-{host()}-{os.getpid()}"
        with disk_errors(self._clock):
            folder.mkdir(parents=True, exist_ok=True)
            self._clock.touch()
        self._keeper = threading.Thread(target=self._keep, name="claims", daemon=True)

    def __enter__(self) -> "Claims":
        """Start to touch what is held."""
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give everything back."""
        try:
            self._give_all_back()
        except BaseException:  # Ctrl-C once more
            self._give_all_back()
            raise

    def _give_all_back(self) -> None:
        self._stop.set()
        self._keeper.join()
        for slide_id in list(self._held):
            self.give_back(slide_id)
        _remove(self._clock)

    def take(self, slide_id: str) -> bool:
        """Claim a slide; tell whether it is ours now. The caller then looks whether it is already done.

        Raises:
            StoreError: the disk is full, or does not let us.
        """
        turn = max(self._turns(slide_id), default=0)
        holder = self._holder(slide_id, turn)
        if holder is not None:
            same = holder.run == self.run
            if not (same and self._handed_out) and (holder.alive or same):
                return False
        path = self._path(slide_id, turn + 1)
        with disk_errors(path):
            if not self._create(path):
                return False
        if self._holder(slide_id, turn) != holder:
            _remove(path)  # another took it over and gave it back meanwhile: the turns begin anew
            return False
        with self._lock:
            self._held[slide_id] = path
        return True

    def give_back(self, slide_id: str) -> None:
        """Remove our claim on a slide, and the older ones that it took over."""
        with self._lock:
            path = self._held.pop(slide_id, None)
        if path is None:
            return
        own = int(path.name.rpartition("-")[2])
        for turn in sorted(self._turns(slide_id)):
            if turn <= own:
                _remove(self._path(slide_id, turn))

    def sweep(self) -> None:
        """Remove what processes that are gone left in the folder.

        Each claim is taken over first, as ever, so that others may do the same at the same time.
        """
        for slide_id in {match["slide"] for match in map(_NAME.match, _names(self._folder)) if match}:
            holder = self.holder(slide_id)
            if holder is not None and not holder.alive and self.take(slide_id):
                self.give_back(slide_id)
        for name in _names(self._folder):
            clock = CLOCK.match(name)
            if clock and clock["host"] == host() and not process_alive(int(clock["pid"])):
                _remove(self._folder / name)

    def holder(self, slide_id: str) -> Holder | None:
        """Return who holds a slide, or None."""
        return self._holder(slide_id, max(self._turns(slide_id), default=0))

    def _holder(self, slide_id: str, turn: int) -> Holder | None:
        if not turn:
            return None
        path = self._path(slide_id, turn)
        try:
            age = self._now() - path.stat().st_mtime
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None  # given back this moment
        try:
            content = json.loads(text)
            where, pid = str(content["host"]), int(content["pid"])
        except (ValueError, KeyError, TypeError):
            content, where, pid = {}, "an unknown computer", 0  # being written, or was never: it expires
        # Our own number without our mark is an earlier process's: each container has a process 1.
        before = pid == os.getpid() and content.get("process") != _PROCESS
        gone = where == host() and (before or not process_alive(pid))
        return Holder(where, pid, str(content.get("run", "")), turn, alive=not gone and age < EXPIRY_S)

    def _path(self, slide_id: str, turn: int) -> Path:
        return self._folder / f"{slide_id}.claim-{turn}"

    def _create(self, path: Path) -> bool:
        """Make the file of a claim, with its content; False where another was quicker."""
        about = {"host": host(), "pid": os.getpid(), "process": _PROCESS, "run": self.run}
        content = json.dumps(about)
        draft = self._clock.with_name(f"{self._clock.name}.draft")
        draft.write_text(content, encoding="utf-8")
        try:
            os.link(draft, path)  # as exclusive as O_EXCL, and never seen without its content
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(content)
            except FileExistsError:
                return False
            except OSError:
                _remove(path)  # it was made and could not be filled
                raise
        finally:
            _remove(draft)
        return True

    def _turns(self, slide_id: str) -> list[int]:
        found = []
        with contextlib.suppress(FileNotFoundError):
            for name in _names(self._folder):
                match = _NAME.match(name)
                if match and match["slide"] == slide_id:
                    found.append(int(match["turn"]))
        return found

    def _now(self) -> float:
        """Return the time by the clock of the folder's file system, which may be another machine's."""
        with disk_errors(self._clock):
            self._clock.touch()
            return self._clock.stat().st_mtime

    def _keep(self) -> None:
        while not self._stop.wait(_TOUCH_S):
            with self._lock:
                held = list(self._held.values())
            for path in held:
                with contextlib.suppress(OSError):
                    os.utime(path)


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # gone, or the disk does not let us: then it expires
        path.unlink()
