"""Files of other tools: read them (``TOOLS``), and write them (``LAYOUTS``). See FORMATS.md."""

from wsi_mil.store.foreign.facts import Facts, Found, Source, Tool
from wsi_mil.store.foreign.layouts import LAYOUTS, ForeignFile
from wsi_mil.store.foreign.reading import digest_of
from wsi_mil.store.foreign.tools import TOOLS

__all__ = ["LAYOUTS", "TOOLS", "Facts", "ForeignFile", "Found", "Source", "Tool", "digest_of"]
