"""Names for the arrays and tasks that the metrics work on."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Targets = NDArray[Any]
"""Classification, ordinal: codes (N,). Multilabel: 0/1 (N, L). Regression: (N,). Survival: time, event."""

Task = Literal["classification", "multilabel", "ordinal", "regression", "survival"]
