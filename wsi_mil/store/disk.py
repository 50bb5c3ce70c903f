"""What a disk says when it refuses, as one clear error.

Comes in: an OSError of the system, of h5py or of zarr. Goes out: a ``StoreError`` that says which file, why,
how much it needs and how much is free, and what to do. Errors about anything else pass through unchanged.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wsi_mil.errors import StoreError, WsiMilError

_FREE_SOME = "free some space or use another disk"
_WORDS = {
    errno.ENOSPC: ("the disk is full", _FREE_SOME),
    errno.EDQUOT: ("your quota of disk space is used up", _FREE_SOME),
    errno.EFBIG: (
        "it would be larger than files may be here",
        "raise the limit (ulimit -f) or use another disk",
    ),
    errno.EROFS: ("the file system is read-only", "make it writable or use another --run"),
    errno.EACCES: (
        "no permission to write there",
        "change the permissions (chmod, chown) or use another --run",
    ),
    errno.EPERM: (
        "not permitted to write there",
        "change the permissions (chmod, chattr) or use another --run",
    ),
    errno.EIO: ("the disk reports an input/output error", "check the disk or use another one"),
}

_OF_FILES = {
    0,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EINVAL,
    errno.EFBIG,
    errno.EOVERFLOW,
    errno.EFAULT,
}
"""What also a file that is missing or damaged ends in: its parts are sought where nothing can be."""
_LOCK = "unable to lock file"  # HDF5's words


@contextmanager
def disk_errors(path: Path, need: int | None = None) -> Iterator[None]:
    """Turn what the disk says about ``path`` within the block into a StoreError; ``need`` is in bytes.

    Raises:
        StoreError: the disk is full or read-only, or a quota, limit or permission is in the way.
    """
    try:
        yield
    except WsiMilError:
        raise
    except OSError as error:
        number = disk_errno(error)
        if number not in _WORDS or not _concerns(error, path):
            raise
        raise StoreError(_sentence(path, number, need)) from error


def disk_errno(error: OSError) -> int:
    """Return the number of the system's error; HDF5 has it in its text only."""
    found = re.search(r"errno = (\d+)", str(error))
    return error.errno if error.errno is not None else int(found[1]) if found else 0


def refusal(error: BaseException | None) -> str:
    """Return what the system said where it would not open or read a file; '' where the file itself is wrong.

    The errors that an error was raised from count, too: a file that could not be read is not a damaged file.
    """
    while error is not None:
        if isinstance(error, OSError):
            number = disk_errno(error)
            if number not in _OF_FILES or _LOCK in str(error):
                return os.strerror(number) if number else str(error)
        error = error.__cause__
    return ""


def refused_advice(error: BaseException | None) -> str:
    """Return what to do about a ``refusal``."""
    while error is not None:
        if _LOCK in str(error):
            return (
                "the file system grants no locks: set HDF5_USE_FILE_LOCKING=FALSE and give the command again"
            )
        if isinstance(error, PermissionError):
            return "change its permissions (chmod)"
        error = error.__cause__
    return "see to the disk or its mount, and give the command again"


def megabytes(count: int) -> str:
    """Return a count of bytes for people."""
    return (
        f"{count / 1e9:.1f} GB"
        if count >= 1e9
        else f"{count / 1e6:.1f} MB"
        if count >= 1e5
        else f"{count} bytes"
    )


def _sentence(path: Path, number: int, need: int | None) -> str:
    what, advice = _WORDS[number]
    limits = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    facts = [f"it needs {megabytes(need)}"] if need and number in limits else []
    if number in {errno.ENOSPC, errno.EDQUOT} and (free := _free(path)) is not None:
        facts.append(f"{megabytes(free)} are free")
    detail = f" ({', '.join(facts)})" if facts else ""
    return (
        f"{path}: cannot be written: {what}{detail}. Nothing partial stays; {advice} and give the command "
        "again: it goes on with what is missing."
    )


def _free(path: Path) -> int | None:
    for folder in path.parents:
        if folder.is_dir():
            return shutil.disk_usage(folder).free
    return None


def _concerns(error: OSError, path: Path) -> bool:
    """Tell whether an error is about ``path``: what it names lies beside it or above it, or it names none."""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return True
    named = Path(os.fsdecode(error.filename))
    if not named.is_absolute():
        return True  # of a folder that is walked: it has no name of its own
    return path.parent == named or path.parent in named.parents or named in path.parents
