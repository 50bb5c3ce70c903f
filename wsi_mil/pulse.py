"""What this process is at, for the process that watches it: a page of memory that both of them see.

Comes in: word of each step, from whoever reads slides. Goes out: a count that rises with every step, and
words for where it is. Without a page (``watch`` was not called) all of it does nothing: nobody watches.
"""

import mmap
import struct

SIZE = 4096
"""Bytes of the page."""

_HEAD = struct.Struct("<QBH")  # how many steps; 1 while there is nothing to do; bytes of the words
_COUNT = struct.Struct("<Q")
_MOST = 400  # bytes of words

_page: mmap.mmap | None = None
_steps = 0


def watch(page: mmap.mmap) -> None:
    """Say every step on ``page`` from now on: a fact about this process, as its number of cores is."""
    global _page  # noqa: PLW0603
    _page = page
    rest()


def beat() -> None:
    """Say that something was achieved: a block was decoded, bytes came, a step of the work is over."""
    global _steps  # noqa: PLW0603
    if _page is not None:
        _steps += 1
        _COUNT.pack_into(_page, 0, _steps)


def at(words: str) -> None:
    """Say what is done from now on ("opening", "reading patch 7"), which is a step, too."""
    _say(words, 0)


def rest() -> None:
    """Say that there is nothing to do from now on: to wait for others is no hang."""
    _say("", 1)


def _say(words: str, resting: int) -> None:
    global _steps  # noqa: PLW0603
    if _page is None:
        return
    _steps += 1
    text = words.encode(errors="replace")[:_MOST]
    _page[_HEAD.size : _HEAD.size + len(text)] = text
    _HEAD.pack_into(_page, 0, _steps, resting, len(text))


def steps_of(page: mmap.mmap) -> tuple[int, bool]:
    """Return how many steps a process has said, and whether it has nothing to do."""
    steps, resting, _ = _HEAD.unpack_from(page)
    return steps, bool(resting)


def words_of(page: mmap.mmap) -> str:
    """Return what a process was last at."""
    _, _, length = _HEAD.unpack_from(page)
    return page[_HEAD.size : _HEAD.size + min(length, _MOST)].decode(errors="replace")
