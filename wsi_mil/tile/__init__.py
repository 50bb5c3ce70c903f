"""The tile stage: where on each slide the tissue patches lie.

Comes in: slides. Goes out: RUN/patches/<slide_id>.h5 with the coords and what is known of each patch, a
preview JPG, the tissue's outline as GeoJSON, and a contact sheet. Pixels of patches are stored on request
only, and nothing here knows what an encoder is.

``grid`` tiles one open slide in memory, with ``quality`` (columns beside the coords) and ``sample`` (some of
many patches); ``preview`` draws it; ``run`` walks the slides and writes the files; ``pixels`` writes images
of patches, ``sheet`` the page of all slides.
"""

from wsi_mil.tile.grid import PREVIEW_PX, Rejected, Tiling, tile_slide
from wsi_mil.tile.preview import draw_preview
from wsi_mil.tile.run import run

__all__ = ["PREVIEW_PX", "Rejected", "Tiling", "draw_preview", "run", "tile_slide"]
