"""Ctrl-C and SIGTERM where threads are at work: taken note of, and obeyed between two batches.

Python raises KeyboardInterrupt wherever the main thread is at that moment. Inside of a queue or a condition
that loses a wake-up or keeps a lock, and the threads that were to be ended are waited for without end.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Hold interrupts back within the block; yield what raises one, which any thread may call.

    A second interrupt is not held back. One that nobody asked for is raised when the block ends. A signal
    that is ignored, or ends the process at once, goes on doing so. Outside of the main thread nothing is
    done.

    Raises:
        KeyboardInterrupt: there was one.
    """
    asked = False

    def note(_signal: int, _frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for each in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(each)):
                previous[each] = signal.signal(each, note)
    try:
        yield check
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    check()
