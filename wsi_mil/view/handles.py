"""Open slides, shared by the threads of a server: few at a time, and none closed while it is read.

Comes in: where a slide lies. Goes out: a ``Slide`` for the length of a ``with`` block.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from wsi_mil.slide import Slide


class _Handle:
    def __init__(self) -> None:
        self.opening = threading.Lock()
        self.slide: Slide | None = None
        self.users = 0


class Handles:
    """Up to ``most`` slides stay open; the one that was used longest ago is closed when nobody reads it."""

    def __init__(self, most: int) -> None:
        """Keep up to ``most`` slides open."""
        self.most = most
        self._handles: OrderedDict[Hashable, _Handle] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def use(self, key: Hashable, opened: Callable[[], Slide]) -> Iterator[Slide]:
        """Give the slide of ``key``, which ``opened`` opens where it is not open yet.

        Raises:
            SlideError: it cannot be opened; the next call tries again.
        """
        with self._lock:
            handle = self._handles.setdefault(key, _Handle())
            self._handles.move_to_end(key)
            handle.users += 1
        try:
            with handle.opening:
                if handle.slide is None:
                    handle.slide = opened()
            yield handle.slide
        finally:
            with self._lock:
                handle.users -= 1
                closing = self._surplus()
            for each in closing:
                each.close()

    def close(self) -> None:
        """Close all that nobody reads."""
        with self._lock:
            idle = [key for key, handle in self._handles.items() if not handle.users]
            slides = [handle.slide for key in idle if (handle := self._handles.pop(key)).slide is not None]
        for slide in slides:
            slide.close()

    def _surplus(self) -> list[Slide]:
        """Take out, and return, the slides to close: too many, and those that did not open."""
        out = []
        for key, handle in list(self._handles.items()):
            if handle.users:
                continue
            if handle.slide is None:
                del self._handles[key]
            elif len(self._handles) > self.most:
                out.append(handle.slide)
                del self._handles[key]
        return out
