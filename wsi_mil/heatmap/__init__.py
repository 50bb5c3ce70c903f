"""Where on each slide the model looked: ``run`` for a run folder, ``score_slide`` for one slide in memory."""

from wsi_mil.heatmap.run import run
from wsi_mil.heatmap.scores import SlideScore, scale, score_slide

__all__ = ["SlideScore", "run", "scale", "score_slide"]
