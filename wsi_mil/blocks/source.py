"""Bytes of a slide's file: from the disk, or by ranged requests from a store that fsspec knows.

Both refuse to return fewer bytes than were asked for.
"""

import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import fsspec

Range = tuple[int, int]
"""(offset, count) in bytes."""

_GAP = 64 * 1024  # two ranges closer than this are one request: a gap costs less than a round trip
_REQUEST = 4 * 1024 * 1024  # and no request is larger than this
_CONNECTIONS = 8


class Source(Protocol):
    """Where the compressed bytes come from. Safe to use from several threads."""

    size: int
    remote: bool

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly ``count`` bytes; raises OSError."""

    def expect(self, ranges: Iterable[Range]) -> None:
        """Say what will be read soon, so that it can be fetched ahead."""

    def close(self) -> None:
        """Give the file back."""


class LocalFile:
    """A file on a disk."""

    remote = False

    def __init__(self, path: Path) -> None:
        """Open ``path``; raises OSError."""
        self._file = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._file).st_size

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly ``count`` bytes; raises OSError."""
        # Not a memory map: a file that shrinks meanwhile would kill the process, not raise.
        data = os.pread(self._file, count, offset)
        return _exactly(data, offset, count)

    def expect(self, ranges: Iterable[Range]) -> None:
        """Do nothing: the system reads ahead."""

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class RemoteFile:
    """A file behind a URL, read in ranges: neighbouring ones in one request, several requests at a time."""

    remote = True

    def __init__(self, url: str) -> None:
        """Ask for the file's size; raises OSError."""
        self._fs: Any
        self._fs, self._path = fsspec.core.url_to_fs(url)
        self.size = int(self._fs.size(self._path) or 0)
        self._pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="fetch")
        self._lock = threading.Lock()
        self._expected: dict[int, tuple[int, Future[bytes]]] = {}  # offset -> (start of its request, answer)

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly ``count`` bytes; raises OSError."""
        with self._lock:
            expected = self._expected.pop(offset, None)
        if expected is None:
            return self._fetch(offset, count)
        start, answer = expected
        return _exactly(answer.result()[offset - start : offset - start + count], offset, count)

    def expect(self, ranges: Iterable[Range]) -> None:
        """Start to fetch ``ranges``; each is kept until it is read once."""
        with self._lock:
            wanted = sorted({each for each in ranges if each[0] not in self._expected})
            for group in coalesce(wanted):
                start, end = group[0][0], max(offset + count for offset, count in group)
                answer = self._pool.submit(self._fetch, start, end - start)
                for offset, _ in group:
                    self._expected[offset] = start, answer

    def close(self) -> None:
        """Drop what was fetched and not read."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._expected.clear()

    def _fetch(self, offset: int, count: int) -> bytes:
        try:
            data = self._fs.cat_file(self._path, start=offset, end=offset + count)
        except OSError:
            raise
        except Exception as error:  # every store has errors of its own
            raise OSError(f"{type(error).__name__}: {error}") from error
        return _exactly(data, offset, count)


def coalesce(ranges: list[Range]) -> list[list[Range]]:
    """Group sorted ranges into requests: gaps below 64 KiB are read over, up to 4 MiB in one."""
    groups: list[list[Range]] = []
    start = end = 0
    for offset, count in ranges:
        if groups and offset - end <= _GAP and max(end, offset + count) - start <= _REQUEST:
            groups[-1].append((offset, count))
            end = max(end, offset + count)
        else:
            groups.append([(offset, count)])
            start, end = offset, offset + count
    return groups


def _exactly(data: bytes, offset: int, count: int) -> bytes:
    if len(data) != count:
        raise OSError(
            f"{len(data)} bytes instead of {count} at byte {offset}: the file ends early, or its server "
            "ignores ranges"
        )
    return data
