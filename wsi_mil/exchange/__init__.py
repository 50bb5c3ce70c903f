"""From other tools' files to a run, and back: ``import_run`` and ``export_run``."""

from wsi_mil.exchange.exports import export_run
from wsi_mil.exchange.imports import import_run

__all__ = ["export_run", "import_run"]
