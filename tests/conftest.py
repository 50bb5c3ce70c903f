"""Slides drawn with tissue of known place and size, and where the real ones lie."""

import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipelines.pyramid import write_pyramid
from wsi_mil import parallel
from wsi_mil.cli import main

GLASS = np.array([243, 242, 244], dtype=np.uint8)
REAL = Path(__file__).parents[2] / "shared" / "data"


def pytest_configure() -> None:
    """Take SIGINT as in a terminal: background jobs of a shell ignore it, and so would what tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    """A test has one core: two run at once, and processes that only load libraries prove nothing.

    What is to start processes says how many; ``test_parallel`` knows how many there are where nobody does.
    """
    parallel.limit_cores(1)
    yield
    parallel.limit_cores(None)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; the test is skipped, and says so, where it is not."""
    if not REAL.is_dir():
        pytest.skip(f"no real data at {REAL}, which a user does not have: real slides were NOT tested")
    return REAL


@pytest.fixture(scope="session")
def real_slides(real_data: Path) -> Path:
    """The folder of real slides."""
    return real_data / "slides"


def draw_slide(
    width: int = 2048, height: int = 1536, tissue: tuple[tuple[int, int, int, int], ...] = ()
) -> np.ndarray:
    """Return glass with rectangles (left, top, right, bottom) of something as pink and uneven as tissue."""
    rng = np.random.default_rng(7)
    image = np.clip(GLASS + rng.normal(0, 1.5, (height, width, 1)), 0, 255).astype(np.uint8)
    for left, top, right, bottom in tissue:
        shade = rng.normal(0, 12, (bottom - top, right - left, 1))
        image[top:bottom, left:right] = np.clip(np.array([205, 120, 170]) + shade, 0, 255)
    return image


def break_blocks(path: Path) -> None:
    """Overwrite the compressed pixels of a slide and leave its directory: it opens and cannot be read."""
    with tifffile.TiffFile(path) as tiff:
        blocks = [
            block for page in tiff.pages for block in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
    with path.open("r+b") as file:
        for offset, count in blocks:
            file.seek(offset)
            file.write(bytes(count))


_written: dict[object, bytes] = {}
"""Slides that were drawn before: hundreds of tests begin with one of a few."""


@pytest.fixture
def make_slide(tmp_path: Path) -> Callable[..., Path]:
    """Write a drawn slide into tmp_path/slides and return its path."""

    def make(
        name: str = "a.tiff",
        tissue: tuple[tuple[int, int, int, int], ...] = ((256, 256, 1280, 1024),),
        mpp: float | None = 0.5,
        width: int = 2048,
        height: int = 1536,
        **options: object,
    ) -> Path:
        path = tmp_path / "slides" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        key = (name, tissue, mpp, width, height, tuple(options.items()))
        if key in _written:
            path.write_bytes(_written[key])
            return path
        write_pyramid(path, draw_slide(width, height, tissue), mpp, **options)  # type: ignore[arg-type]
        _written[key] = path.read_bytes()
        return path

    return make


@pytest.fixture
def wsi(capsys, monkeypatch):
    """Run a command; return (exit code, standard output, standard error) with line breaks folded."""
    monkeypatch.setenv("COLUMNS", "400")

    def run(*arguments):
        capsys.readouterr()
        try:
            code = main([str(each) for each in arguments])
        except SystemExit as exit_:  # usage errors and --help come from the parser
            code = exit_.code
        out, err = capsys.readouterr()
        return code, re.sub(r"\s+", " ", out), re.sub(r"\s+", " ", err)

    return run


@contextmanager
def mounted(*arguments: object) -> Iterator[Path]:
    """Mount with these arguments of `mount`, the last of them the folder; skips where that is not allowed."""
    if os.geteuid():
        pytest.skip("only root may mount: this disk was NOT tested")
    result = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"cannot mount here ({result.stderr.strip()}): this disk was NOT tested")
    try:
        yield Path(str(arguments[-1]))
    finally:
        subprocess.run(["umount", "-l", str(arguments[-1])], check=True)


class _Capabilities(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


@contextmanager
def without_roots_powers() -> Iterator[None]:
    """Take permissions seriously in this thread, and in those that it starts; skips where that cannot be had.

    Root may read and write everything, so permissions mean something only to a thread that gave that up for
    a while (capget(2)). Processes that it starts have it again.
    """
    overrides = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "capset"):
        pytest.skip("root may read and write everything, and there is no capset: permission was NOT tested")
    version_3_of_this_thread = (ctypes.c_uint32 * 2)(0x20080522, 0)
    now = (_Capabilities * 2)()
    assert libc.capget(version_3_of_this_thread, now) == 0
    before = now[0].effective
    try:
        now[0].effective = before & ~overrides
        assert libc.capset(version_3_of_this_thread, now) == 0
        yield
    finally:
        now[0].effective = before
        assert libc.capset(version_3_of_this_thread, now) == 0
