"""Who is trained on, validated on and tested: the folds of a cohort and its members' validation parts.

Comes in: a cohort and the settings. Goes out: a ``Plan``. Patients, and groups where --group-by names them, are
never parted: not by a fold, and not by a validation part.
"""

import numpy as np

from wsi_mil import manifest, metrics, store
from wsi_mil.config import TrainConfig
from wsi_mil.errors import LabelError
from wsi_mil.train.bags import Cohort
from wsi_mil.train.crossval import Plan, fold_seed
from wsi_mil.train.patches import Indices
