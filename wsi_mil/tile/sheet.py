"""RUN/patches/contact_sheet.html: every slide of the run on one page, to be looked at before anything else.

Comes in: the patches, previews and outcomes of a run. Goes out: one self-contained page that sorts itself by
tissue, patches, or what is odd about a slide. What it flags are questions to a person, not verdicts.
"""

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import jinja2

from wsi_mil import store
from wsi_mil.errors import FormatError
from wsi_mil.parallel import Outcome, cpu_count
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
    status: str
    reason: str
    picture: str
    preview: str
    patches: int
    tissue_mm2: float
    tissue: str
    mpp: str
    removed: str
    flags: list[str]


def write_sheet(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """Write the page of all slides in ``folder`` (RUN/patches) and of those that failed; return its path."""
    status = {each.slide_id: each for each in outcomes}
    ids = {path.stem for path in folder.glob("*.h5")} | set(status)
    with ThreadPoolExecutor(cpu_count()) as threads:  # thousands of pictures are decoded here
        cards = list(threads.map(lambda each: _card(folder, each, status.get(each)), sorted(ids)))
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
        flagged=sum(bool(card.flags) for card in cards), run=folder.parent.name,
    )  # fmt: skip
    path = folder / "contact_sheet.html"
    store.write_text(path, page)
    return path


def _card(folder: Path, slide_id: str, outcome: Outcome | None) -> Card:
    status = outcome.status if outcome else "not in this call"
    reason = outcome.reason or str(outcome.facts.get("reason", "")) if outcome else ""
    picture = _picture(folder / f"{slide_id}.jpg")
    preview = f"{slide_id}.jpg" if picture else ""
    try:
        patches = store.read_patches(folder / f"{slide_id}.h5")
    except FormatError as error:
        flags = ["failed" if status == "failed" else "unreadable"]
        return Card(slide_id, status, reason or str(error), picture, preview, 0, 0.0, "", "", "", flags)
    notes = patches.notes
    removed = {name: count for name, count in notes.get("removed", {}).items() if count}
    return Card(
        slide_id=slide_id,
        status=status,
        reason=reason,
        picture=picture,
        preview=preview,
        patches=len(patches.coords),
        tissue_mm2=float(notes.get("tissue_mm2", 0.0)),
        tissue=str(notes.get("tissue", "")),
        mpp=f"{patches.geometry.mpp_l0:.4g} ({patches.mpp_source})",
        removed=", ".join(f"{count} {_WORDS.get(name, name)}" for name, count in removed.items()),
        flags=_flags(patches, status),
    )


def _flags(patches: store.Patches, status: str) -> list[str]:
    """Return what is odd about a slide, in words."""
    notes, count = patches.notes, len(patches.coords)
    fraction = float(notes.get("tissue_fraction", 0.5))
    removed = notes.get("removed", {})
    focus = patches.quality.get("focus")
    lost = sum(removed.get(name, 0) for name in ("pen", "focus"))
    found = (
        (status == "failed", "failed"),
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


def _picture(path: Path) -> str:
    """Return a preview as a small JPEG in a data URI; empty where there is none."""
    if not path.is_file():
        return ""
    image = cv2.imread(str(path), cv2.IMREAD_REDUCED_COLOR_2)  # half the size in a third of the time
    if image is not None and max(image.shape[:2]) < _PICTURE_PX:
        image = cv2.imread(str(path))
    if image is None:
        return ""
    scale = min(1.0, _PICTURE_PX / max(image.shape[:2]))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
