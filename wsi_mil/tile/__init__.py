"""The tile stage: where on each slide the tissue patches lie.

Comes in: slides. Goes out: RUN/patches/<slide_id>.h5 with the coords, a preview JPG and the tissue's outline
as GeoJSON. No pixels of patches are stored, and nothing here knows what an encoder is.

``grid`` tiles one open slide in memory, ``preview`` draws it, ``run`` walks the slides and writes the files.
"""

from wsi_mil.tile.grid import PREVIEW_PX, Tiling, tile_slide
from wsi_mil.tile.preview import draw_preview
from wsi_mil.tile.run import run

__all__ = ["PREVIEW_PX", "Tiling", "draw_preview", "run", "tile_slide"]
