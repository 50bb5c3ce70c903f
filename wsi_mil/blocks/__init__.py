"""Many patches of one slide, fast: every compressed block is decoded once, patches put together.

Comes in: an open slide, a geometry and coords. Goes out: batches of patches in the order of the coords, equal
to what ``Slide.read`` gives. Slides whose blocks it does not know are read through ``Slide``, by threads,
with the same interface. It knows nothing of encoders, and writes nothing.

``batches`` is what is called: threads that read ahead. ``reader`` puts one patch together, from blocks or
through ``Slide``; ``resample`` brings it to the target mpp. ``cache`` keeps decoded blocks within a memory
budget; ``table`` says where a TIFF's blocks lie and decodes one; ``source`` is the bytes of a local or remote
file. ``regions`` makes pictures of whole slides; ``survey`` looks at all levels and decodes nothing.
"""

from wsi_mil.blocks.batches import (
    Batch,
    BrokenPatch,
    Filled,
    Take,
    own_memory,
    stream,
    stream_into,
    sweep_order,
)
from wsi_mil.blocks.regions import thumbnail
from wsi_mil.blocks.survey import LevelBlocks, survey

__all__ = [
    "Batch",
    "BrokenPatch",
    "Filled",
    "LevelBlocks",
    "Take",
    "own_memory",
    "stream",
    "stream_into",
    "survey",
    "sweep_order",
    "thumbnail",
]
