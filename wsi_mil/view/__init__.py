"""A run's slides in the browser, at full resolution, with their heatmaps over them: ``run``."""

from wsi_mil.view.run import run
from wsi_mil.view.server import Viewer

__all__ = ["Viewer", "run"]
