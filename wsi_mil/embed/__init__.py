"""The embed stage: every patch becomes a feature vector.

Comes in: RUN/patches and the slides they point to. Goes out: RUN/features/<encoder>, float16, with the coords
and geometry repeated: enough for training and heatmaps. It knows neither labels nor models.

``run`` plans the stage and keeps its table; ``work`` is one process with one device; ``devices`` are several.
A process is a chain: ``source`` says which slide is next, the package ``readers`` reads patches into batches
that cross from slide to slide, ``engine`` computes, ``writing`` stores. ``precision`` says in which
arithmetic, ``spent`` what the time went into.
"""

from wsi_mil.embed.run import run
from wsi_mil.embed.work import Embedding, embed_slide, encode

__all__ = ["Embedding", "embed_slide", "encode", "run"]
