"""The slide's own picture, as the ground that heatmaps lie on: read once, kept in RUN/report/thumbnails.

Comes in: where a slide lies. Goes out: a JPEG that shows all of it, edge to edge; of a slide that cannot be
read the preview that tiling drew, which has the patches framed.
"""

from pathlib import Path

from PIL import Image

from wsi_mil import blocks, store
from wsi_mil.errors import SlideError
from wsi_mil.locate import SlideFinder
from wsi_mil.report.gather import Place
from wsi_mil.slide import open_slide

_SIDE = 1200  # pixels of the longer side


def thumbnail(run: Path, slide_id: str, place: Place, finder: SlideFinder) -> tuple[Path | None, str]:
    """Return the file with the slide's picture, or None; and, where it is not the slide's own, why."""
    kept = run / "report" / "thumbnails" / f"{slide_id}.jpg"
    patches = store.patches_path(run, slide_id)
    if kept.exists() and kept.stat().st_mtime_ns >= patches.stat().st_mtime_ns:
        return kept, ""
    geometry = place.geometry
    try:
        path = finder.find(slide_id, [place.path], place.fingerprint)
        with open_slide(path, place.reader, geometry.mpp_l0) as slide:  # type: ignore[arg-type]
            if (slide.width_l0, slide.height_l0) != (geometry.width_l0, geometry.height_l0):
                raise SlideError(f"{path}: another slide under the same name")
            longer = max(geometry.width_l0, geometry.height_l0)
            pixels = blocks.thumbnail(slide, geometry.mpp_l0 * max(1.0, longer / _SIDE))
    except SlideError as error:
        return (place.preview if place.preview.exists() else None), str(error)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with store.atomic_file(kept) as temporary:
        Image.fromarray(pixels).save(temporary, "JPEG", quality=90)
    return kept, ""
