"""Train and cross-validate a model on features: ``run`` for a run folder, ``fit`` for bags in memory."""

from wsi_mil.train.bags import Bag, Cohort, read_cohort
from wsi_mil.train.crossval import FoldResult, Plan, cross_validate
from wsi_mil.train.fit import Fitted, assemble, fit, fit_jobs, make_jobs, predict, predict_logits
from wsi_mil.train.networks import Job, Trained
from wsi_mil.train.patches import Patches
from wsi_mil.train.plan import make_plan
from wsi_mil.train.run import run

__all__ = [
    "Bag",
    "Cohort",
    "Fitted",
    "FoldResult",
    "Job",
    "Patches",
    "Plan",
    "Trained",
    "assemble",
    "cross_validate",
    "fit",
    "fit_jobs",
    "make_jobs",
    "make_plan",
    "predict",
    "predict_logits",
    "read_cohort",
    "run",
]
