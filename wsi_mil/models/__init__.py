"""Multiple instance learning: bag -> prediction, always with the attention over the patches.

``pooling`` has the paper's equations, ``network`` the layers around them, ``committee`` the model that is
stored and used, ``tasks`` what its logits mean and how they are trained, ``evidence`` what each patch had to
do with a prediction.
"""

from wsi_mil.models.arrays import as_tensor
from wsi_mil.models.committee import (
    CHUNK,
    MilModel,
    Prediction,
    build,
    check_identity,
    network,
    restore,
    safe_std,
    tensors,
)
from wsi_mil.models.evidence import Explanation, against_others, as_array, explain, missing, of_parts
from wsi_mil.models.network import Front, Network
from wsi_mil.models.pooling import AttentionPool, MaxPool, MeanPool, ScorePool
from wsi_mil.models.tasks import TASKS, Task, make_task, task_of

__all__ = [
    "CHUNK",
    "TASKS",
    "AttentionPool",
    "Explanation",
    "Front",
    "MaxPool",
    "MeanPool",
    "MilModel",
    "Network",
    "Prediction",
    "ScorePool",
    "Task",
    "against_others",
    "as_array",
    "as_tensor",
    "build",
    "check_identity",
    "explain",
    "make_task",
    "missing",
    "network",
    "of_parts",
    "restore",
    "safe_std",
    "task_of",
    "tensors",
]
