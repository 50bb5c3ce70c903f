"""What a trained model says of new slides: ``run`` for a run folder, ``predict_slide`` for one in memory."""

from wsi_mil.predict.ensemble import Ensemble, SlidePrediction, predict_slide, read_ensemble
from wsi_mil.predict.run import run

__all__ = ["Ensemble", "SlidePrediction", "predict_slide", "read_ensemble", "run"]
