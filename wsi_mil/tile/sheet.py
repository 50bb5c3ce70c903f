"""RUN/patches/contact_sheet.html: every slide of the run on one page, to be looked at before anything else.

Comes in: the patches, previews and outcomes of a run. Goes out: one self-contained page that sorts itself by
tissue, patches, or what is odd about a slide. What it flags are questions to a person, not verdicts.
"""

import base64
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from wsi_mil import store
from wsi_mil.errors import FormatError
from wsi_mil.parallel import cpu_count
from wsi_mil.tile import quality
from wsi_mil.tile.preview import PATCH_RGB, REASON_RGB

_TEMPLATE = "contact_sheet.html.j2"
_PICTURE_PX = 420
_LITTLE_TISSUE, _MUCH_TISSUE, _MUCH_PEN = 0.01, 0.95, 0.01
_WORDS = {
    "tissue": "too little tissue", "pen": "pen", "focus": "blurred", "sample": "passed over by --max-patches",
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """A slide on the page. ``picture`` is a data URI or empty; ``flags`` what a person should look at."""

    slide_id: str
    picture: str
    patches: int = 0
    tissue_mm2: float = 0.0
    tissue: str = ""
    mpp: str = ""
    removed: str = ""
    flags: Sequence[str] = ()
    status: str = "not in this call"
    reason: str = ""


def card_of(patches: store.Patches, preview: NDArray[np.uint8] | None) -> Card:
    """Return a slide's card, but for its status.

    ``preview`` is its picture, shape (height, width, 3), RGB. Whoever drew it makes the card: to do it for
    every slide at the end is what a folder of thousands would wait for.
    """
    notes = patches.notes
    removed = {name: count for name, count in notes.get("removed", {}).items() if count}
    return Card(
        slide_id=patches.slide_id,
        picture=_data_uri(preview),
        patches=len(patches.coords),
        tissue_mm2=float(notes.get("tissue_mm2", 0.0)),
        tissue=str(notes.get("tissue", "")),
        mpp=f"{patches.geometry.mpp_l0:.4g} ({patches.mpp_source})",
        removed=", ".join(f"{count} {_WORDS.get(name, name)}" for name, count in removed.items()),
        flags=_flags(patches),
    )


def write_sheet(folder: Path, table: Path, cards: Mapping[str, Card]) -> Path:
    """Write the page of all slides that are in ``folder`` (RUN/patches) or in the stage's table.

    ``cards`` are those that this call made; others are made of the files. Of shares that end side by side
    the last to write has seen the files of all.
    """
    path = folder / "contact_sheet.html"
    with store.alone(table.with_name(path.name)):  # the lock lies beside the table, not among the patches
        rows = {row["slide_id"]: row for row in store.read_csv(table)}
        ids = sorted({each.stem for each in folder.glob("*.h5")} | set(rows))
        with ThreadPoolExecutor(cpu_count()) as threads:  # thousands of pictures may have to be decoded
            known = list(threads.map(lambda each: cards.get(each) or _card_in(folder, each), ids))
        _write(path, [_with_status(card, rows.get(card.slide_id)) for card in known])
    return path


def _write(path: Path, cards: Sequence[Card]) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    legend = [("kept", PATCH_RGB), *((_WORDS[name], colour) for name, colour in REASON_RGB.items())]
    page = environment.get_template(_TEMPLATE).render(
        cards=cards, legend=legend, patches=sum(card.patches for card in cards),
        flagged=sum(bool(card.flags) for card in cards), run=path.parents[1].name,
    )  # fmt: skip
    store.write_text(path, page)


def _card_in(folder: Path, slide_id: str) -> Card:
    """Return the card of a slide by its files, or one that says that it has none."""
    preview = _preview(folder / f"{slide_id}.jpg")
    try:
        return card_of(store.read_patches(folder / f"{slide_id}.h5"), preview)
    except FormatError as error:
        return Card(slide_id, _data_uri(preview), flags=["unreadable"], reason=str(error))


def _with_status(card: Card, row: Mapping[str, str] | None) -> Card:
    """Return a card with what the stage's table says of the slide."""
    if row is None:
        return card
    flags = ["failed"] if row["status"] == "failed" else card.flags
    return replace(card, status=row["status"], reason=row["reason"] or card.reason, flags=flags)


def _flags(patches: store.Patches) -> list[str]:
    """Return what is odd about a slide, in words."""
    notes, count = patches.notes, len(patches.coords)
    fraction = float(notes.get("tissue_fraction", 0.5))
    removed = notes.get("removed", {})
    focus = patches.quality.get("focus")
    lost = sum(removed.get(name, 0) for name in ("pen", "focus"))
    found = (
        (count == 0, "no patches"),
        (0 < fraction < _LITTLE_TISSUE, "little tissue"),
        (fraction > _MUCH_TISSUE, "all tissue"),
        (float(notes.get("pen_fraction", 0)) > _MUCH_PEN, "pen"),
        (lost > 0.2 * (count + lost), "a fifth or more removed by pen or blur"),
        (notes.get("tissue") == "hed", "faint stain"),
        (notes.get("tissue") == "fluorescence", "fluorescence"),
        (focus is not None and bool((focus == quality.UNKNOWN).any()), "patches that cannot be read"),
    )
    return [words for is_so, words in found if is_so]


def _preview(path: Path) -> NDArray[np.uint8] | None:
    """Read a preview, RGB, at half its size where that is enough: a third of the time."""
    if not path.is_file():
        return None
    image = cv2.imread(str(path), cv2.IMREAD_REDUCED_COLOR_2)
    if image is not None and max(image.shape[:2]) < _PICTURE_PX:
        image = cv2.imread(str(path))
    return None if image is None else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _data_uri(preview: NDArray[np.uint8] | None) -> str:
    """Return a picture as a small JPEG in a data URI; empty where there is none."""
    if preview is None:
        return ""
    height, width = preview.shape[:2]
    times = max(1, min(round(max(height, width) / _PICTURE_PX), height, width))
    size = width // times, height // times
    whole = preview[: size[1] * times, : size[0] * times]  # by a whole number it takes a tenth of the time
    small = cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
    coded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return "data:image/jpeg;base64," + base64.b64encode(coded.tobytes()).decode()
