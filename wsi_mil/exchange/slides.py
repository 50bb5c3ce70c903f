"""What ``--slides`` says of slides whose other files are imported: place, size and resolution.

Comes in: a folder, a URL or a manifest. Goes out: facts per slide id. A slide is opened only where the
manifest does not say everything.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from wsi_mil import manifest
from wsi_mil.config import ImportConfig, Location
from wsi_mil.errors import LabelError
from wsi_mil.manifest import SlideEntry
from wsi_mil.slide import SUFFIXES, detect, dicom_series, open_slide


@dataclass(frozen=True, kw_only=True)
class SlideFacts:
    """Where a slide lies, and its level 0."""

    path: Location
    reader: str
    width_l0: int
    height_l0: int
    mpp_l0: float
    mpp_source: str


@dataclass(frozen=True)
class SlideBook:
    """The slides of ``--slides`` by id, and the (width, height) that a manifest gives for some."""

    entries: dict[str, SlideEntry]
    sizes: dict[str, tuple[int, int]]

    def look_up(self, slide_id: str, mpp: float | None) -> SlideFacts | None:
        """Return the facts of a slide, or None where ``--slides`` has no such slide.

        ``mpp`` is the level-0 resolution as it is known otherwise; the manifest's wins.

        Raises:
            SlideError: the slide cannot be opened, or nothing says its resolution.
        """
        entry = self.entries.get(slide_id)
        if entry is None:
            return None
        mpp = entry.mpp or mpp
        if slide_id in self.sizes and mpp is not None:
            width, height = self.sizes[slide_id]
            return SlideFacts(
                path=entry.path, reader="auto", width_l0=width, height_l0=height, mpp_l0=mpp,
                mpp_source="given",
            )  # fmt: skip
        with open_slide(entry.path, "auto", mpp) as slide:
            return SlideFacts(
                path=entry.path.absolute() if isinstance(entry.path, Path) else entry.path,
                reader=slide.reader, width_l0=slide.width_l0, height_l0=slide.height_l0,
                mpp_l0=slide.mpp_l0, mpp_source=slide.mpp_source,
            )  # fmt: skip


def read_book(config: ImportConfig) -> SlideBook | None:
    """Return what ``--slides`` lists; None without ``--slides``.

    Raises:
        ConfigError, LabelError: there is no such folder or manifest, or it is wrong.
    """
    where = config.slides
    if where is None:
        return None
    sizes: dict[str, tuple[int, int]] = {}
    entries = manifest.list_slides(where, suffixes=SUFFIXES, detect=detect, dicom_series=dicom_series).entries
    if isinstance(where, Path) and where.suffix.lower() == ".csv":
        sizes = _read_sizes(where)
    return SlideBook({entry.slide_id: entry for entry in entries}, sizes)


def _read_sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Return the columns width and height of a manifest, where they are filled in."""
    sizes = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            texts = [(row.get(name) or "").strip() for name in ("width", "height")]
            if not any(texts):
                continue
            if not all(each.isdecimal() and int(each) > 0 for each in texts):
                raise LabelError(
                    f"{path}: line {line}: width and height are {texts[0]!r} and {texts[1]!r}; wanted "
                    "level-0 pixels, or both empty."
                )
            sizes[str(row["slide_id"]).strip()] = int(texts[0]), int(texts[1])
    return sizes
