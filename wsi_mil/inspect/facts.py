"""What is known of a slide once it was inspected, as plain values; nothing here opens a file."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class LevelFacts:
    """One level: its size, how many level-0 pixels make one of it across, and its blocks.

    ``block_width``, ``block_height``: 0 where they are not known. ``blocks`` is None where the file is no
    TIFF of plain levels; ``empty`` have no data, ``beyond`` end after the file does. ``fast_path_reason``:
    why the fast path does not serve this level, or "".
    """

    width: int
    height: int
    downsample: float
    block_width: int
    block_height: int
    compression: str
    blocks: int | None
    empty: int
    beyond: int
    fast_path_reason: str


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Some pixels that were read: where (pixels of the level), and why they cannot be, or ""."""

    name: str
    level: int
    x: int
    y: int
    width: int
    height: int
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What is known of a slide.

    ``problems``: why it will fail, and what to do. ``remarks``: what to know about it. ``mpp`` is None where
    it is not known or refused; ``mpp_statements``: all that the file says of it. ``bounds``: level-0 (x, y,
    width, height) of what was scanned. ``fast_path_reason``: why patches are not put together from blocks, or
    "". Where a slide does not open, it has no levels.
    """

    slide_id: str
    path: str
    bytes: int | None = None
    fingerprint: str = ""
    reader: str = ""
    vendor: str = ""
    width: int | None = None
    height: int | None = None
    levels: tuple[LevelFacts, ...] = ()
    mpp: float | None = None
    mpp_source: str = ""
    mpp_statements: tuple[str, ...] = ()
    objective: float | None = None
    compression: str = ""
    icc_profile: str = ""
    bounds: tuple[int, int, int, int] | None = None
    fast_path: bool = False
    fast_path_reason: str = ""
    probes: tuple[Probe, ...] = ()
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return dataclasses.asdict(self)
