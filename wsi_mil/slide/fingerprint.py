"""Tell whether a slide is still the file that it was, without reading all of its gigabytes.

Comes in: a path or URL. Goes out: a short text that another file of the same name does not have. It is no
proof against somebody who means to deceive: it looks at a file's size, its ends and a few places between.
"""

import hashlib
import os
from pathlib import Path

import fsspec

from wsi_mil import pulse
from wsi_mil.config import Location
from wsi_mil.errors import SlideError, SlideMissingError

_END, _SAMPLE, _SAMPLES = 65536, 4096, 16  # bytes at either end; bytes at so many places between


def fingerprint(path: Location) -> str:
    """Return "blake2b-128:" and 32 hexadecimal digits of a slide's size and samples of its bytes.

    An MRXS slide is its file and the sizes of the files in its folder. Behind a URL only the size and both
    ends are read: two requests.

    Raises:
        SlideMissingError: there is no such file. SlideError: it cannot be read.
    """
    return _fingerprint(path, sampled=isinstance(path, Path))


def has_fingerprint(path: Location, wanted: str) -> bool:
    """Tell whether a slide has the fingerprint ``wanted``, which may be of a URL while ``path`` is none.

    Behind a URL fewer bytes are looked at, so that one file has two fingerprints: either will do.

    Raises:
        SlideMissingError: there is no such file. SlideError: it cannot be read.
    """
    return fingerprint(path) == wanted or _fingerprint(path, sampled=not isinstance(path, Path)) == wanted


def _fingerprint(path: Location, *, sampled: bool) -> str:
    pulse.at(f"comparing the bytes of {path}")
    try:
        parts = _local(path, sampled) if isinstance(path, Path) else _remote(path, sampled)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SlideMissingError(f"{path}: no such file.") from error
    except OSError as error:
        raise SlideError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return "blake2b-128:" + hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def bytes_on_disk(path: Location) -> int:
    """Return how many bytes a slide has on disk, with its folder (MRXS, DICOM); 0 where nobody can say.

    Behind a URL it is 0 too: to ask would be a request per slide.
    """
    if not isinstance(path, Path):
        return 0
    parts, kind = [path], path.suffix.lower()
    try:
        if kind == ".dcm":
            parts += path.parent.iterdir()
        if kind == ".mrxs" and path.with_suffix("").is_dir():
            parts += path.with_suffix("").iterdir()
        return sum(each.stat().st_size for each in set(parts))
    except OSError:
        return 0


def _places(size: int, sampled: bool) -> list[tuple[int, int]]:
    """Return (first byte, bytes) of what is looked at."""
    step = size // (_SAMPLES + 1)
    between = [(step * k, _SAMPLE) for k in range(1, _SAMPLES + 1)] if sampled else []
    return [(0, _END), *between, (max(size - _END, 0), _END)]


def _local(path: Path, sampled: bool) -> list[bytes]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        parts = [os.pread(descriptor, count, place) for place, count in _places(size, sampled)]
        parts.insert(0, str(size).encode())
    finally:
        os.close(descriptor)
    companions = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and companions.is_dir():
        parts += [f"{each.name} {each.stat().st_size}".encode() for each in sorted(companions.iterdir())]
    return parts


def _remote(url: str, sampled: bool) -> list[bytes]:
    try:
        store, where = fsspec.core.url_to_fs(url)
        size = int(store.size(where) or 0)
        ends = [(start, min(start + count, size)) for start, count in _places(size, sampled)]
        return [str(size).encode()] + [store.cat_file(where, start=start, end=end) for start, end in ends]
    except OSError:
        raise
    except Exception as error:  # every store has errors of its own
        raise OSError(f"{type(error).__name__}: {error}") from error
