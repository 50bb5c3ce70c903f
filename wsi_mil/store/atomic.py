"""Files and folders that appear whole or not at all.

Everything is written beside its final place under a hidden temporary name, closed, flushed to disk, and only
then renamed: the presence of the final name means complete. A killed process leaves only temporary names
behind; ``sweep`` removes those of processes that are gone.
"""

import errno
import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from wsi_mil.store.disk import disk_errors

_TEMPORARY = re.compile(r"^\..+\.(?P<host>[^.]+)-(?P<pid>\d+)\.tmp$")
_OF_THE_COMPUTER = 0xEFFFFFFC  # the space of process numbers that Linux starts with (PROC_PID_INIT_INO)
_PROBE = 65_536  # bytes that a disk must have room for before work begins
_TRIES = 5  # to put a folder in the place of another


def host() -> str:
    """Return a name for where a process has its number: the computer, and the container within it.

    Containers that share the network of their computer have its name too, and each has a process 1.
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", socket.gethostname()) or "localhost"
    with suppress(OSError):
        space = Path("/proc/self/ns/pid").stat().st_ino
        return name if space == _OF_THE_COMPUTER else f"{name}-{space}"
    return name


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{host()}-{os.getpid()}.tmp")


@contextmanager
def atomic_file(path: Path, need: int | None = None) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well the file there becomes ``path``, else it is removed.

    ``need`` is how many bytes it will have, where that is known: for the message of a full disk.

    The block must have closed the file: it is reopened only to be flushed to disk.

    Raises:
        StoreError: the disk is full, read-only, or does not let us.
    """
    temporary = _temporary(path)
    with disk_errors(path, need):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _flush(temporary)
            temporary.replace(path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, need: int | None = None) -> Iterator[Path]:
    """Yield a temporary folder; when the block ends well it becomes ``path``, in place of an older one.

    ``need`` is how many bytes it will hold, where that is known: for the message of a full disk.

    Raises:
        StoreError: the disk is full, read-only, or does not let us.
    """
    temporary = _temporary(path)
    with disk_errors(path, need):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        with _removed(temporary):
            yield temporary
            _put_in_place(temporary, path)


@contextmanager
def _removed(temporary: Path) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, path: Path) -> None:
    for each in sorted(temporary.rglob("*")):
        _flush(each)
    for left in reversed(range(_TRIES)):
        aside = _step_aside(path)
        try:
            temporary.rename(path)
            break
        except OSError as error:  # another process puts the same in place at this moment
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST} or not left:
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    _flush(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there; its name is free at once, whatever happens then."""
    shutil.rmtree(_step_aside(path), ignore_errors=True)


def _step_aside(path: Path) -> Path:
    """Give a folder, if it is there, a temporary name: it can be neither replaced nor removed in one step."""
    aside = path.with_name(f".{path.name}.old.{host()}-{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(FileNotFoundError):
        path.rename(aside)
    return aside


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold other processes off a file that is read, changed and written, where the file system can."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.stem}.lock").open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_writable(folder: Path) -> None:
    """Write a small file into a folder, or the nearest one above that is there, and remove it again.

    Raises:
        StoreError: the disk is full, read-only, or does not let us.
    """
    there = next((each for each in (folder, *folder.absolute().parents) if each.is_dir()), Path("/"))
    probe = _temporary(there / "probe")
    with disk_errors(folder, _PROBE):
        try:
            probe.write_bytes(bytes(_PROBE))
            _flush(probe)
        except OSError as error:  # said of the folder that was asked for, and not of the probe
            raise OSError(error.errno, error.strerror) from error
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file (UTF-8) atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sweep(folder: Path) -> None:
    """Remove what killed processes of this host left in ``folder``; the living keep theirs."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if owner(path.name) == "here" and not is_alive(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def owner(name: str) -> Literal["here", "elsewhere"] | None:
    """Tell on which computer the process is that gave a temporary name; None for any other name."""
    match = _TEMPORARY.match(name)
    return None if match is None else "here" if match["host"] == host() else "elsewhere"


def is_alive(name: str) -> bool:
    """Tell whether the process of this host that gave a temporary name still lives."""
    match = _TEMPORARY.match(name)
    # Our own number on a leftover is that of an earlier process: nothing is being written yet.
    return match is not None and int(match["pid"]) != os.getpid() and process_alive(int(match["pid"]))


def process_alive(pid: int) -> bool:
    """Tell whether a process of this machine is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
