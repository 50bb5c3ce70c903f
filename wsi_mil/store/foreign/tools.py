"""The tools whose files can be read, by the names that ``--from`` takes."""

from wsi_mil.store.foreign import atlaspatch, clam, slide2vec, slideflow, stamp, torchmil, trident
from wsi_mil.store.foreign.facts import Tool

TOOLS: dict[str, Tool] = {
    each.TOOL.name: each.TOOL for each in (clam, trident, stamp, slideflow, atlaspatch, slide2vec, torchmil)
}
