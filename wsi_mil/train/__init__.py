"""Train and cross-validate a model on features: ``run`` for a run folder, ``fit`` for bags in memory."""

from wsi_mil.train.bags import Bag, Cohort, read_cohort
from wsi_mil.train.fit import Fitted, fit, predict
from wsi_mil.train.run import run

__all__ = ["Bag", "Cohort", "Fitted", "fit", "predict", "read_cohort", "run"]
