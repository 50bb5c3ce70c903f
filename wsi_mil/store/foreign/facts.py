"""What the readers of other tools' files give: which files there are, and what they say of one slide.

No field has a default that is a guess: what a tool's files do not say is None, and whoever imports asks for
it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of one slide: ``coords`` and ``features`` may be in one. ``more`` are needed besides.

    ``encoder`` is None where the files do not say it. Without ``features`` they are patches only; without
    ``coords`` the slide has no patches (a tool may write no file then).
    """

    slide_id: str
    encoder: str | None = None
    coords: Path | None = None
    features: Path | None = None
    more: tuple[Path, ...] = ()

    @property
    def files(self) -> list[Path]:
        """All files that are read, each once."""
        return list(dict.fromkeys(each for each in (self.coords, self.features, *self.more) if each))


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is in a folder: sources; files that claim to be a slide's and are ``refused``; others, with
    why."""

    sources: list[Source]
    refused: dict[Path, str] = field(default_factory=dict)
    others: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the files of one slide say; None is what they do not.

    ``patch_px`` is the side in pixels of the patches' own resolution ``mpp``, ``patch_size_l0`` in level-0
    pixels (possibly rounded by the tool). ``patch_px_free``: it may be that of what was read, and --patch-px
    that of what the encoder saw. ``steps_l0``: steps between patches that the tool may have used, the
    likeliest first. ``beyond_l0``: level-0 pixels by which the tool may place patches wholly beyond the
    right and lower edges. ``notes`` are kept with the features.
    """

    patch_px: int | None = None
    patch_px_free: bool = False
    patch_size_l0: float | None = None
    steps_l0: tuple[float, ...] = ()
    beyond_l0: int = 0
    mpp: float | None = None
    mpp_l0: float | None = None
    width_l0: int | None = None
    height_l0: int | None = None
    slide_path: str = ""
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Tool:
    """The readers of one tool's files.

    ``find(folder)`` looks at names, ``facts(source)`` at heads. ``coords(source, mpp_l0, patch_size_l0)`` are
    (N, 2) int64 level-0 (x, y) of top-left corners, ``features(source)`` (N, D) float16, row by row the same.
    ``tissue(source)`` is (N,) float32, -1 where the tool does not keep it. All raise FormatError. ``wanted``
    says in words which files there should be.
    """

    name: str
    wanted: str
    find: Callable[[Path], Found]
    facts: Callable[[Source], Facts]
    coords: Callable[[Source, float, float], NDArray[np.int64]]
    features: Callable[[Source], NDArray[np.float16]]
    tissue: Callable[[Source, int], NDArray[np.float32]] = lambda _, n: np.full(n, -1, np.float32)


def by_stem(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Return the paths by their names without extension, in order."""
    found: dict[str, list[Path]] = {}
    for path in sorted(paths):
        found.setdefault(path.stem, []).append(path)
    return found


def twice(paths: dict[str, list[Path]]) -> dict[Path, str]:
    """Return a reason for each file of a slide that has several of a kind."""
    return {
        path: f"slide {stem} has several such files: {', '.join(map(str, several))}; "
        "import one folder at a time"
        for stem, several in paths.items()
        if len(several) > 1
        for path in several
    }
